import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, test } from "vitest";
import { DynamoLeaseStore } from "../../services/lease/dynamo-lease-store.js";
import { startDynamoDb } from "../servers/dynamodb.js";
import { startKinesis } from "../servers/kinesis.js";
import { credentials, startS3 } from "../servers/s3.js";
import { readForeign } from "../support/foreign.js";
import { ingestRound } from "../support/ingest-round.js";
import { TestStream } from "../support/kinesis.js";
import { Random } from "../support/lake.js";
import { newBucket } from "../support/s3-lake.js";
import { changeLogs } from "../support/shared-data.js";
import { removeFolder, temporaryFolder } from "../support/stack.js";

/** TEST_ROUNDS=30 for the whole of it; TEST_SEED repeats one. */
const rounds = Number(process.env.TEST_ROUNDS ?? 1);
const first = Number(process.env.TEST_SEED ?? Math.floor(Math.random() * 2 ** 31));
const LEASE_MS = 6_000;

const [log] = changeLogs().toSorted((a, b) => a.lines.length - b.lines.length);

let s3: Awaited<ReturnType<typeof startS3>>;
let kinesis: Awaited<ReturnType<typeof startKinesis>>;
let dynamo: Awaited<ReturnType<typeof startDynamoDb>>;
let folder: string;
beforeAll(async () => {
  [s3, kinesis, dynamo] = await Promise.all([startS3(), startKinesis(), startDynamoDb()]);
  folder = await temporaryFolder();
  Object.assign(process.env, {
    AWS_ENDPOINT_URL_S3: s3.endpoint,
    AWS_ENDPOINT_URL: s3.endpoint,
    AWS_ALLOW_HTTP: "true",
    AWS_REGION: "us-east-1",
  });
}, 900_000);
afterAll(async () => {
  await Promise.all([s3?.stop(), kinesis?.stop(), dynamo?.stop()]);
  await removeFolder(folder);
});

describe("workers on Kinesis and S3", () => {
  test.each(Array.from({ length: rounds }, (_, i) => first + i))(
    "one is killed, one frozen, one joins, shards are split and merged: each record once, refined as the oracle says (seed %i)",
    async (seed) => {
      console.info(`TEST_SEED=${seed}`);
      const random = new Random(seed);
      const bucket = await newBucket(s3.endpoint);
      const prefix = "lakes/test";
      const here = join(folder, String(seed));
      mkdirSync(here);
      const table = `leases-${seed}`;
      const leases = await DynamoLeaseStore.open({ client: dynamo.client(), table, group: "unused" });
      const stream = await TestStream.create({ endpoint: kinesis.endpoint, leases, shards: 3 });
      try {
        await ingestRound({
          folder: here,
          lines: log!.lines,
          random,
          leaseMs: LEASE_MS,
          note: `seed ${seed}`,
          readTable: (root) => readForeign(`s3://${bucket}/${prefix}/${root}`),
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
          env: {
            ...credentials,
            AWS_REGION: "us-east-1",
            TRIBUTARY_STORAGE__KIND: "s3",
            TRIBUTARY_STORAGE__S3__BUCKET: bucket,
            TRIBUTARY_STORAGE__S3__PREFIX: prefix,
            TRIBUTARY_STORAGE__S3__ENDPOINT: s3.endpoint,
            TRIBUTARY_STORAGE__S3__FORCE_PATH_STYLE: "true",
            TRIBUTARY_STREAM__KIND: "kinesis",
            TRIBUTARY_STREAM__KINESIS__ENDPOINT: kinesis.endpoint,
            TRIBUTARY_STREAM__KINESIS__STREAM: stream.stream,
            TRIBUTARY_STREAM__KINESIS__LEASE_TABLE: table,
            TRIBUTARY_STREAM__KINESIS__LEASE_ENDPOINT: dynamo.endpoint,
            TRIBUTARY_STREAM__KINESIS__LEASE_MS: String(LEASE_MS),
          },
        });
      } finally {
        await stream.dispose();
      }
    },
    600_000,
  );
});
