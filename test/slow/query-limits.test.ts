import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Config } from "../../services/base/config.js";
import { TributaryError } from "../../services/base/errors.js";
import { type QueryAnswer, QueryService } from "../../services/query/query-service.js";
import { asker, createLake, others, type TestLake } from "../support/query-lake.js";

const limits: Config["query"] = {
  timeoutMs: 1_500,
  memoryBytes: 256 * 1024 * 1024,
  maxRows: 5_000,
  maxSqlBytes: 65_536,
  maxHeldBytes: 256 * 1024 * 1024,
  workers: 2,
  maxRunningPerTenant: 2,
  maxWaitingPerTenant: 3,
  maxWaiting: 3,
};
const other = others[0]!.id;

/** Runs until stopped; the engine can be interrupted in it. */
const ENDLESS = "select count(*) from range(10000000) a(i), range(10000000) b(j) where a.i * b.j % 7 = 3";
/** Runs while the query is still being bound, where the engine cannot be interrupted. */
const UNSTOPPABLE = `with ${Array.from({ length: 40 }, (_, at) =>
  at === 0
    ? "c0 as (select 1 as x)"
    : `c${at} as not materialized (select a.x from c${at - 1} a, c${at - 1} b)`,
).join(", ")} select count(*) from c39`;

let lake: TestLake;
let service: QueryService;
/** With time enough: what ends in it ends for another reason. */
let patient: QueryService;

beforeAll(async () => {
  lake = await createLake([asker, ...others]);
  service = new QueryService(lake, limits);
  patient = new QueryService(lake, { ...limits, timeoutMs: 120_000 });
});

afterAll(async () => {
  await Promise.all([service.close(), patient.close()]);
  lake.close();
});

const ask = (sql: string, tenant = asker.id, of = service): Promise<QueryAnswer> =>
  of.run({ tenant, sql, format: "json", numbers: "exact" });

async function codeOf(answer: Promise<QueryAnswer>): Promise<string> {
  try {
    await answer;
    return "answered";
  } catch (error) {
    if (error instanceof TributaryError) return error.code;
    throw error;
  }
}

const rowsOf = (answer: QueryAnswer): unknown => JSON.parse(`[${answer.rows.join("")}]`);

/** Asks for another tenant's rows over and over until `until` has settled; every answer must be right. */
async function unharmedWhile(until: Promise<unknown>, of: QueryService): Promise<number> {
  let settled = false;
  const end = until.finally(() => {
    settled = true;
  });
  let answers = 0;
  while (!settled || answers === 0) {
    const answer = await ask("select count(*), count(distinct tenant_id) from files", other, of);
    expect(rowsOf(answer)).toEqual([[String(others[0]!.rows), "1"]]);
    answers++;
  }
  await end;
  return answers;
}

describe("a query over a limit is ended, and another tenant's go on", () => {
  const cases: [string, string, string][] = [
    ["past its time", ENDLESS, "TRB-QUERY-TIMEOUT"],
    ["past its time while it is bound", UNSTOPPABLE, "TRB-QUERY-TIMEOUT"],
    [
      "recursive without end",
      "with recursive r as (select 1 i union all select i + 1 from r) select max(i) from r",
      "TRB-QUERY-TIMEOUT",
    ],
    ["with memory the engine counts", "select list(i) from range(100000000000) r(i)", "TRB-QUERY-MEMORY"],
    ["with memory the engine does not count", "select len(range(3000000000))", "TRB-QUERY-MEMORY"],
    [
      "with long texts",
      "select len(repeat('x', 400000000) || i::varchar) from range(30) r(i)",
      "TRB-QUERY-MEMORY",
    ],
    ["with wide rows", "select repeat('x', 1000000) || i::varchar from range(4000) r(i)", "TRB-QUERY-MEMORY"],
    [
      "with a large sort",
      "select * from (select i, md5(i::varchar) s from range(100000000) r(i)) order by s, i limit 1 offset 9000000",
      "TRB-QUERY-MEMORY",
    ],
    ["with too many rows", "select i from range(1000000000000) r(i)", "TRB-QUERY-ROWS"],
    ["with one row too many", "select i from range(5001) r(i)", "TRB-QUERY-ROWS"],
  ];
  test.each(cases)("%s", async (_, sql, code) => {
    const of = code === "TRB-QUERY-TIMEOUT" ? service : patient;
    const over = codeOf(ask(sql, asker.id, of));
    expect(await unharmedWhile(over, of)).toBeGreaterThan(0);
    expect(await over).toBe(code);
    expect(rowsOf(await ask("select 1", asker.id, of))).toEqual([[1]]);
  });

  test("as many rows as allowed are answered in full", async () => {
    const answer = await ask("select i from range(5000) r(i)");
    expect(answer.rowCount).toBe(5_000);
    expect(rowsOf(answer)).toHaveLength(5_000);
  });
});

describe("waiting", () => {
  test("more than the queue holds is refused at once, the rest is answered", async () => {
    const busy = Array.from({ length: 12 }, () => codeOf(ask(ENDLESS)));
    const outcomes = await Promise.all(busy);
    expect(outcomes.filter((code) => code === "TRB-QUERY-BUSY")).toHaveLength(
      12 - limits.workers - limits.maxWaiting,
    );
    expect(outcomes.filter((code) => code === "TRB-QUERY-TIMEOUT")).toHaveLength(
      limits.workers + limits.maxWaiting,
    );
  });

  test("a tenant with many slow queries does not push another's to the end of the line", async () => {
    const order: string[] = [];
    const slow = Array.from({ length: 4 }, () => codeOf(ask(ENDLESS)).then(() => order.push("slow")));
    const quick = ask("select count(*) from files", other).then(() => order.push("quick"));
    await Promise.all([...slow, quick]);
    // Two were running already; it comes before those that waited longer.
    expect(order.indexOf("quick")).toBeLessThan(3);
  });

  test("a caller that goes away frees its place", async () => {
    const leaving = new AbortController();
    const abandoned = codeOf(
      service.run(
        { tenant: asker.id, sql: ENDLESS, format: "json", numbers: "exact" },
        { signal: leaving.signal },
      ),
    );
    setTimeout(() => leaving.abort(), 50);
    expect(await abandoned).not.toBe("answered");
    expect(service.pool.running).toBe(0);
  });
});

describe("sessions", () => {
  test("new rows are seen by the next query, and only the asker's", async () => {
    const fresh = await createLake([asker, ...others]);
    const own = new QueryService(fresh, { ...limits, timeoutMs: 60_000 });
    const count = async (tenant: string) =>
      rowsOf(await own.run({ tenant, sql: "select count(*) from files", format: "json", numbers: "exact" }));
    expect(await count(asker.id)).toEqual([[String(asker.rows)]]);
    await fresh.write([{ ...asker, rows: 5 }, others[0]!]);
    expect(await count(asker.id)).toEqual([[String(asker.rows + 5)]]);
    expect(await count(other)).toEqual([[String(others[0]!.rows * 2)]]);
    await own.close();
    fresh.close();
  });

  test("many tenants take turns on few workers and each sees its own", async () => {
    const tenants = [asker, ...others];
    const wide = new QueryService(lake, {
      ...limits,
      timeoutMs: 20_000,
      maxWaiting: 64,
      maxWaitingPerTenant: 64,
    });
    const answers = await Promise.all(
      Array.from({ length: 24 }, async (_, at) => {
        const tenant = tenants[at % tenants.length]!;
        const sql = "select tenant_id, count(*) from scm.files group by all";
        const answer = await wide.run({ tenant: tenant.id, sql, format: "json", numbers: "js" });
        return [rowsOf(answer), [[tenant.id, tenant.rows]]];
      }),
    );
    for (const [found, expected] of answers) expect(found).toEqual(expected);
    await wide.close();
  });

  test("snapshot tokens tell nothing: each is new and of one length", async () => {
    const tokens = new Set<string>();
    for (let at = 0; at < 5; at++)
      tokens.add((await ask("select count(*) from files", asker.id, patient)).snapshot);
    expect(tokens.size).toBe(5);
    expect(new Set([...tokens].map(({ length }) => length)).size).toBe(1);
    for (const token of tokens)
      expect(Buffer.from(token, "base64url").toString("latin1")).not.toMatch(/files|420000/);
  });
});
