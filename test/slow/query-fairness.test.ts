import { setMaxListeners } from "node:events";
import { availableParallelism, loadavg } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadConfig } from "../../services/base/config.js";
import type { TributaryError } from "../../services/base/errors.js";
import { QueryService } from "../../services/query/query-service.js";
import { asker, createLake, type LakeTenant, others, type TestLake } from "../support/query-lake.js";

/** What an analyst can do to others: keep the engine busy, where it can be interrupted and where it cannot, and full. */
const HEAVY = [
  "select count(*) from range(10000000) a(i), range(10000000) b(j) where a.i * b.j % 7 = 3",
  `with ${Array.from({ length: 40 }, (_, at) =>
    at === 0
      ? "c0 as (select 1 as x)"
      : `c${at} as not materialized (select a.x from c${at - 1} a, c${at - 1} b)`,
  ).join(", ")} select count(*) from c39`,
  "select len(range(3000000000))",
  "select * from (select i, md5(i::varchar) s from range(100000000) r(i)) order by s, i limit 1 offset 9000000",
  "select max(f.path || g.path || h.path) from files f, files g, files h, files i where f.path < i.path",
];
const SECONDS = 18;

/** The defaults, but for the time a query has: each heavy one makes room several times while the test runs. */
const limits = loadConfig({ query: { timeoutMs: 8_000 } }, { env: {} }).query;
let lake: TestLake;
let service: QueryService;

beforeAll(async () => {
  lake = await createLake([asker, ...others]);
  service = new QueryService(lake, limits);
});
afterAll(async () => {
  await service.close();
  lake.close();
});

const ask = (sql: string, tenant: LakeTenant, signal?: AbortSignal) =>
  service.run({ tenant: tenant.id, sql, format: "json", numbers: "js" }, signal && { signal });

/** 200 clients that send heavy queries and, when refused, send them again. Ends when the signal says so. */
async function flood(tenants: readonly LakeTenant[], signal: AbortSignal): Promise<Map<string, number>> {
  const outcomes = new Map<string, number>();
  setMaxListeners(1_000, signal);
  await Promise.all(
    Array.from({ length: 200 }, async (_, at) => {
      while (!signal.aborted) {
        const outcome = await ask(HEAVY[at % HEAVY.length]!, tenants[at % tenants.length]!, signal).then(
          () => "answered",
          (error: TributaryError) => error.code,
        );
        outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
        if (outcome === "TRB-QUERY-BUSY") await sleep(500);
      }
    }),
  );
  return outcomes;
}

/** Milliseconds that small queries take, one after the other. None may fail, and each answer must be right. */
async function small(tenant: LakeTenant, seconds: number): Promise<number[]> {
  const times: number[] = [];
  const end = performance.now() + seconds * 1000;
  // On a busy machine fewer fit into the time: enough for a figure there must be.
  while (performance.now() < end || times.length < 30) {
    const started = performance.now();
    const answer = await ask("select count(*), min(tenant_id), max(tenant_id) from files", tenant);
    times.push(performance.now() - started);
    expect(JSON.parse(answer.rows.join(""))).toEqual([tenant.rows, tenant.id, tenant.id]);
    await sleep(25);
  }
  return times;
}

const p99 = (times: readonly number[]): number =>
  times.toSorted((a, b) => a - b)[Math.ceil(times.length * 0.99) - 1]!;

describe("heavy queries", () => {
  const cases: [string, number, readonly LakeTenant[]][] = [
    ["200 of one tenant", 1_000, [asker]],
    ["200 of three tenants, as many as may run at once", 2_500, [asker, others[1]!, others[2]!]],
  ];
  test.each(cases)("%s: another's small query is never refused, p99 ≤ %i ms", async (_, limit, flooding) => {
    await small(others[0]!, 1);
    // What else runs on this machine takes its share of every process that starts; alone on it, the factor is 1.
    const crowd = Math.max(1, loadavg()[0]! / availableParallelism() - 2);
    const quiet = p99(await small(others[0]!, 4));
    const stop = new AbortController();
    const flooded = flood(flooding, stop.signal);
    await sleep(1_000);
    const times = await small(others[0]!, SECONDS);
    stop.abort();
    const outcomes = await flooded;
    // The flood was one: places were taken all the time, and what was beyond the shares was refused.
    expect(outcomes.get("TRB-QUERY-BUSY")).toBeGreaterThan(200);
    const loud = p99(times);
    console.log(
      `small queries: quiet p99 ${quiet.toFixed(0)} ms, beside the flood ${loud.toFixed(0)} ms, ${times.length} of them`,
      Object.fromEntries(outcomes),
    );
    expect(loud).toBeLessThan(Math.max(limit * crowd, 4 * quiet));
  });
});
