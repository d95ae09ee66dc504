import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, test } from "vitest";
import { KafkaCluster } from "../servers/kafka.js";
import { credentials, startS3 } from "../servers/s3.js";
import { readForeign } from "../support/foreign.js";
import { ingestRound } from "../support/ingest-round.js";
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
let kafka: KafkaCluster;
let folder: string;
beforeAll(async () => {
  [s3, kafka] = await Promise.all([startS3(), KafkaCluster.start({ nodes: 3 })]);
  folder = await temporaryFolder();
  Object.assign(process.env, {
    AWS_ENDPOINT_URL: s3.endpoint,
    AWS_ALLOW_HTTP: "true",
    AWS_REGION: "us-east-1",
  });
}, 900_000);
afterAll(async () => {
  await Promise.all([s3?.stop(), kafka?.stop()]);
  await removeFolder(folder);
});

describe("workers on Kafka and S3", () => {
  test.each(Array.from({ length: rounds }, (_, i) => first + i))(
    "one is killed, one frozen, one joins and a broker dies: each record once, refined as the oracle says (seed %i)",
    async (seed) => {
      console.info(`TEST_SEED=${seed}`);
      const random = new Random(seed);
      const bucket = await newBucket(s3.endpoint);
      const prefix = "lakes/test";
      const here = join(folder, String(seed));
      mkdirSync(here);
      await ingestRound({
        folder: here,
        lines: log!.lines,
        random,
        leaseMs: LEASE_MS,
        note: `seed ${seed}`,
        readTable: (root) => readForeign(`s3://${bucket}/${prefix}/${root}`),
        shake: async () => {
          const node = random.below(3);
          await kafka.signal(node, "SIGKILL");
          await sleep(random.below(3_000));
          await kafka.startNode(node);
        },
        env: {
          ...credentials,
          TRIBUTARY_STORAGE__KIND: "s3",
          TRIBUTARY_STORAGE__S3__BUCKET: bucket,
          TRIBUTARY_STORAGE__S3__PREFIX: prefix,
          TRIBUTARY_STORAGE__S3__ENDPOINT: s3.endpoint,
          TRIBUTARY_STORAGE__S3__FORCE_PATH_STYLE: "true",
          TRIBUTARY_STREAM__KIND: "kafka",
          TRIBUTARY_STREAM__PARTITIONS: "8",
          TRIBUTARY_STREAM__KAFKA__BROKERS: kafka.brokers.join(","),
          TRIBUTARY_STREAM__KAFKA__TOPIC_PREFIX: `r${seed}-`,
          TRIBUTARY_STREAM__KAFKA__SESSION_MS: String(LEASE_MS),
        },
      });
    },
    600_000,
  );
});
