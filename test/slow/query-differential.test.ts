import { afterAll, beforeAll, expect, test } from "vitest";
import type { Config } from "../../services/base/config.js";
import { TributaryError } from "../../services/base/errors.js";
import { QueryService } from "../../services/query/query-service.js";
import { generateQueries } from "../support/query-generator.js";
import { asker, createLake, leaks, others, type TestLake } from "../support/query-lake.js";

const limits: Config["query"] = {
  timeoutMs: 30_000,
  memoryBytes: 256 * 1024 * 1024,
  maxRows: 50_000,
  maxSqlBytes: 65_536,
  maxHeldBytes: 256 * 1024 * 1024,
  workers: 1,
  maxWaiting: 4,
};
const QUERIES = 700;

let shared: TestLake;
let alone: TestLake;
let ofShared: QueryService;
let ofAlone: QueryService;

beforeAll(async () => {
  shared = await createLake([others[0]!, asker, ...others.slice(1)]);
  alone = await createLake([asker]);
  ofShared = new QueryService(shared, limits);
  ofAlone = new QueryService(alone, limits);
});

afterAll(async () => {
  await Promise.all([ofShared.close(), ofAlone.close()]);
  shared.close();
  alone.close();
});

/** Columns and rows, or the error's body: all of an answer that may not differ. */
async function answerOf(service: QueryService, sql: string, ordered: boolean): Promise<string> {
  try {
    const answer = await service.run({ tenant: asker.id, sql, format: "ndjson", numbers: "exact" });
    const lines = Buffer.concat(answer.rows).toString().split("\n");
    return JSON.stringify([answer.columns, answer.rowCount, ordered ? lines : lines.sort()], null, 1);
  } catch (error) {
    if (error instanceof TributaryError) return JSON.stringify(error.toBody());
    throw error;
  }
}

test("generated queries answer the same on the shared lake as on the tenant's own", async () => {
  const seed = Number(process.env.TRIBUTARY_TEST_SEED ?? Date.now() % 1_000_000);
  let answered = 0;
  let withRows = 0;
  for (const { sql, ordered } of generateQueries(seed, QUERIES)) {
    const [onShared, onAlone] = await Promise.all([
      answerOf(ofShared, sql, ordered),
      answerOf(ofAlone, sql, ordered),
    ]);
    expect(onShared, `seed ${seed}: ${sql}`).toBe(onAlone);
    const found = leaks(onShared, shared).filter((word) => !sql.includes(word));
    expect(found, `seed ${seed}: ${sql}`).toEqual([]);
    if (onShared.startsWith("[")) answered++;
    if (onShared.includes("{\\")) withRows++;
  }
  // The generator must write SQL that works, and ask for what is there: or this test shows nothing.
  expect(answered, `seed ${seed}`).toBeGreaterThan(QUERIES * 0.97);
  // Some seven in ten have rows; seeds differ by a few in a hundred.
  expect(withRows, `seed ${seed}`).toBeGreaterThan(QUERIES * 0.6);
});
