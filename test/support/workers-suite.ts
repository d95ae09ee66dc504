import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { credentials, startS3 } from "../servers/s3.js";
import { readBySpark } from "./foreign.js";
import { ingestRound, type LandedTable } from "./ingest-round.js";
import { Random } from "./lake.js";
import { newBucket, onS3, readOnS3, type S3Place } from "./s3-lake.js";
import { changeLogs } from "./shared-data.js";
import { removeFolder, temporaryFolder } from "./stack.js";

/** TEST_ROUNDS=30 for the whole of it; TEST_SEED repeats one. */
const rounds = Number(process.env.TEST_ROUNDS ?? 1);
const first = Number(process.env.TEST_SEED ?? Math.floor(Math.random() * 2 ** 31));

/** A worker that stands still for so long has lost what it had. */
export const LEASE_MS = 6_000;

/** Servers of a stream, for all rounds. */
export interface StreamServers {
  round(seed: number, random: Random): Promise<StreamOfRound>;
  stop(): Promise<void>;
}

/** A stream of one round's own. */
export interface StreamOfRound {
  /** Settings of the processes on it. */
  readonly env: NodeJS.ProcessEnv;
  /** What befalls it in mid-stream. */
  shake(): Promise<void>;
  dispose(): Promise<void>;
}

/**
 * Rounds of a bus and workers on a stream and S3. A round's seed decides over the change log that it publishes, too.
 * deltalake compares each round's tables; Spark reads what all of them have left behind.
 */
export function workersSuite(stream: string, troubles: string, start: () => Promise<StreamServers>): void {
  const logs = changeLogs();
  const left: { readonly address: string; readonly note: string; readonly table: LandedTable }[] = [];
  let s3: Awaited<ReturnType<typeof startS3>>;
  let servers: StreamServers;
  let folder: string;
  beforeAll(async () => {
    [s3, servers, folder] = await Promise.all([startS3(), start(), temporaryFolder()]);
  }, 900_000);
  afterAll(async () => {
    await Promise.all([s3?.stop(), servers?.stop()]);
    await removeFolder(folder);
  });

  describe(`workers on ${stream} and S3`, () => {
    test.each(Array.from({ length: rounds }, (_, i) => first + i))(
      `one is killed, one frozen, one joins, ${troubles}: each record once, refined as the oracle says (seed %i)`,
      async (seed) => {
        const random = new Random(seed);
        const log = random.pick(logs);
        const note = `seed ${seed}, ${log.name}`;
        console.info(`TEST_SEED=${seed} (${log.name}, ${log.lines.length} events)`);
        const place: S3Place = {
          endpoint: s3.endpoint,
          bucket: await newBucket(s3.endpoint),
          prefix: "lakes/test",
        };
        const here = join(folder, String(seed));
        mkdirSync(here);
        const { env, shake, dispose } = await servers.round(seed, random);
        try {
          await ingestRound({
            ...{ folder: here, lines: log.lines, random, leaseMs: LEASE_MS, note, shake },
            env: { ...onS3(place), ...env },
            readTable: (root) => readOnS3(place, root),
            landed: (table) => {
              left.push({ address: `s3a://${place.bucket}/${place.prefix}/${table.root}`, note, table });
            },
          });
        } finally {
          await dispose();
        }
      },
      600_000,
    );

    test("Spark reads the same from S3, raw and refined", async () => {
      const env = { ...credentials, AWS_REGION: "us-east-1" };
      const found = await readBySpark(
        s3.endpoint,
        left.map(({ address }) => address),
        env,
      );
      for (const [at, { table, note }] of left.entries())
        expect(table.digestOf(found[at]!), `${note}: ${table.root}`).toBe(table.digest);
      // Raw and refined of two types each.
      expect(left).toHaveLength(4 * rounds);
    }, 900_000);
  });
}
