import { setTimeout as sleep } from "node:timers/promises";
import { DynamoLeaseStore } from "../../services/lease/dynamo-lease-store.js";
import { startDynamoDb } from "../servers/dynamodb.js";
import { startKinesis } from "../servers/kinesis.js";
import { TestStream } from "../support/kinesis.js";
import { LEASE_MS, workersSuite } from "../support/workers-suite.js";

workersSuite("Kinesis", "shards are split and merged", async () => {
  const [kinesis, dynamo] = await Promise.all([startKinesis(), startDynamoDb()]);
  return {
    stop: async () => {
      await Promise.all([kinesis.stop(), dynamo.stop()]);
    },
    round: async (seed, random) => {
      const table = `leases-${seed}`;
      const leases = await DynamoLeaseStore.open({ client: dynamo.client(), table, group: "unused" });
      const stream = await TestStream.create({ endpoint: kinesis.endpoint, leases, shards: 3 });
      return {
        env: {
          TRIBUTARY_STREAM__KIND: "kinesis",
          TRIBUTARY_STREAM__KINESIS__ENDPOINT: kinesis.endpoint,
          TRIBUTARY_STREAM__KINESIS__STREAM: stream.stream,
          TRIBUTARY_STREAM__KINESIS__LEASE_TABLE: table,
          TRIBUTARY_STREAM__KINESIS__LEASE_ENDPOINT: dynamo.endpoint,
          TRIBUTARY_STREAM__KINESIS__LEASE_MS: String(LEASE_MS),
        },
        shake: async () => {
          const open = await stream.openShards();
          const split = random.below(open.length);
          await stream.split(open[split]!);
          await sleep(random.below(3_000));
          const [one, other] = open.filter((_, i) => i !== split);
          // Of three, the first and the last have no border in common.
          if (split !== 1) await stream.merge(one!, other!);
          else await stream.split(one!);
        },
        dispose: () => stream.dispose(),
      };
    },
  };
});
