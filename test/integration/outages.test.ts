import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { DynamoLeaseStore } from "../../services/lease/dynamo-lease-store.js";
import { startDynamoDb } from "../servers/dynamodb.js";
import { KafkaCluster } from "../servers/kafka.js";
import { startKinesis } from "../servers/kinesis.js";
import { startS3 } from "../servers/s3.js";
import { HttpFaultProxy } from "../support/fault-proxy.js";
import { onKafka } from "../support/kafka.js";
import { TestStream } from "../support/kinesis.js";
import { Random } from "../support/lake.js";
import { type OutageOptions, outageRound } from "../support/outage-round.js";
import { newBucket, onS3, readOnS3 } from "../support/s3-lake.js";
import { removeFolder, temporaryFolder } from "../support/stack.js";

/** TEST_OUTAGE_SECONDS=300 for the whole of it, on both streams; a short one draws its stream. TEST_SEED repeats one. */
const asked = process.env.TEST_OUTAGE_SECONDS;
const away = Number(asked ?? 20);
const seconds = { refusing: Math.min(60, away), failing: Math.min(20, away), away };
const seed = Number(process.env.TEST_SEED ?? Math.floor(Math.random() * 2 ** 31));
const drawn = (stream: "Kinesis" | "Kafka") =>
  asked !== undefined || stream === (seed % 2 === 0 ? "Kinesis" : "Kafka");
const PREFIX = "lakes/test";
const REFUSED = 0.3;
const LIMIT_MS = 900_000 + 2_000 * away;

let s3: Awaited<ReturnType<typeof startS3>>;
let store: HttpFaultProxy;
let folder: string;
let bucket: string;
beforeAll(async () => {
  [s3, folder] = await Promise.all([startS3(), temporaryFolder()]);
  store = await HttpFaultProxy.start(s3.endpoint);
}, 900_000);
beforeEach(async () => {
  bucket = await newBucket(s3.endpoint);
});
afterAll(async () => {
  await store?.stop();
  await s3?.stop();
  await removeFolder(folder);
});

async function round(name: string, env: NodeJS.ProcessEnv, refuse: OutageOptions["refuse"]): Promise<void> {
  console.info(`TEST_SEED=${seed}`);
  const here = join(folder, name);
  mkdirSync(here);
  const seen = await outageRound({
    folder: here,
    store,
    refuse,
    seconds,
    random: new Random(seed),
    readTable: (root) => readOnS3({ endpoint: s3.endpoint, bucket, prefix: PREFIX }, root),
    env: {
      ...onS3({ endpoint: store.endpoint, bucket, prefix: PREFIX }),
      ...env,
    },
  });
  console.info(JSON.stringify(seen));
  // The backlog's limit was reached, and said so.
  expect(seen.refusedWhileAway).toBeGreaterThan(0);
}

interface Put {
  readonly Records: readonly unknown[];
}
interface PutAnswer {
  readonly Records: readonly unknown[];
}
const REFUSAL = { ErrorCode: "ProvisionedThroughputExceededException", ErrorMessage: "injected" };

/** PutRecords without those that the stream has no room for; the answer says so of each. */
function withoutRoom(body: Buffer, refused: () => boolean) {
  const asked = JSON.parse(body.toString()) as Put;
  const without = asked.Records.map(refused);
  const Records = asked.Records.filter((_, i) => !without[i]);
  return {
    body: Records.length === 0 ? undefined : Buffer.from(JSON.stringify({ ...asked, Records })),
    answer: (bytes: Buffer) => {
      const answers = bytes.length === 0 ? [] : [...(JSON.parse(bytes.toString()) as PutAnswer).Records];
      const all = without.map((was) => (was ? REFUSAL : answers.shift()));
      return Buffer.from(JSON.stringify({ Records: all, FailedRecordCount: all.length }));
    },
  };
}

const kinesisRound = () =>
  test(
    "Kinesis has no room for 30 % of the records",
    async () => {
      const [kinesis, dynamo] = await Promise.all([startKinesis(), startDynamoDb()]);
      const proxy = await HttpFaultProxy.start(kinesis.endpoint);
      const table = `leases-${seed}`;
      const leases = await DynamoLeaseStore.open({ client: dynamo.client(), table, group: "unused" });
      const stream = await TestStream.create({ endpoint: kinesis.endpoint, leases, shards: 4 });
      try {
        const env = {
          TRIBUTARY_STREAM__KIND: "kinesis",
          TRIBUTARY_STREAM__KINESIS__ENDPOINT: proxy.endpoint,
          TRIBUTARY_STREAM__KINESIS__STREAM: stream.stream,
          TRIBUTARY_STREAM__KINESIS__LEASE_TABLE: table,
          TRIBUTARY_STREAM__KINESIS__LEASE_ENDPOINT: dynamo.endpoint,
        };
        let [sent, refused] = [0, 0];
        const random = new Random(seed);
        await round("kinesis", env, async () => {
          proxy.fault = ({ headers }) => {
            if (!String(headers["x-amz-target"]).endsWith(".PutRecords")) return undefined;
            const refuses = () => {
              sent++;
              const does = random.chance(REFUSED);
              if (does) refused++;
              return does;
            };
            return { kind: "edit", edit: (body) => withoutRoom(body, refuses) };
          };
          return async () => {
            proxy.fault = () => undefined;
          };
        });
        console.info(`records refused: ${refused} of ${sent}`);
        expect(refused).toBeGreaterThan(0);
      } finally {
        await stream.dispose();
        await proxy.stop();
        await Promise.all([kinesis.stop(), dynamo.stop()]);
      }
    },
    LIMIT_MS,
  );

const kafkaRound = () =>
  test(
    "3 of 10 partitions of Kafka lack a replica and take nothing",
    async () => {
      const kafka = await KafkaCluster.start({ nodes: 3 });
      try {
        // Without its second broker a partition has one replica left, and wants two.
        const replicas = Array.from({ length: 10 }, (_, p) =>
          p % 4 === 1 ? "1:2" : p % 2 === 0 ? "1:3" : "3:1",
        );
        const options = {
          "bootstrap-server": kafka.brokers[0]!,
          topic: "outage",
          "replica-assignment": replicas.join(","),
        };
        const configs = [
          "min.insync.replicas=2",
          "unclean.leader.election.enable=false",
          "max.message.bytes=4194304",
        ];
        await kafka.tool(
          "org.apache.kafka.tools.TopicCommand",
          "--create",
          ...Object.entries(options).flatMap(([name, value]) => [`--${name}`, value]),
          ...configs.flatMap((config) => ["--config", config]),
        );
        const env = {
          ...onKafka(kafka),
          TRIBUTARY_STREAM__PARTITIONS: "10",
          TRIBUTARY_STREAM__KAFKA__TOPIC: "outage",
        };
        await round("kafka", env, async () => {
          await kafka.signal(1, "SIGKILL");
          return () => kafka.startNode(1);
        });
      } finally {
        await kafka.stop();
      }
    },
    LIMIT_MS,
  );

describe("the stream refuses, the store fails, then is away", () => {
  if (drawn("Kinesis")) kinesisRound();
  if (drawn("Kafka")) kafkaRound();
});
