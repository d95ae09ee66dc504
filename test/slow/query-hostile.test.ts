import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Config } from "../../services/base/config.js";
import { TributaryError } from "../../services/base/errors.js";
import { emptySql, visibleColumns } from "../../services/query/catalog.js";
import { type QueryAnswer, QueryService } from "../../services/query/query-service.js";
import { Session } from "../../services/query/session.js";
import { type Expected, hostile } from "../hostile/statements.js";
import { asker, createLake, leaks, others, type TestLake } from "../support/query-lake.js";

const limits: Config["query"] = {
  timeoutMs: 20_000,
  memoryBytes: 256 * 1024 * 1024,
  maxRows: 20_000,
  maxSqlBytes: 65_536,
  maxHeldBytes: 256 * 1024 * 1024,
  workers: 2,
  maxWaiting: 64,
};

let lake: TestLake;
let service: QueryService;

beforeAll(async () => {
  lake = await createLake([others[0]!, asker, others[1]!, others[2]!]);
  await lake.write([others[1]!, asker]);
  service = new QueryService(lake, limits);
});

afterAll(async () => {
  await service.close();
  lake.close();
});

/** What a client would get to see: the answer or the error body, as text. */
async function ask(sql: string, tenant = asker.id): Promise<{ outcome: Expected; shown: string }> {
  try {
    const answer = await service.run({ tenant, sql, format: "json", numbers: "exact" });
    return { outcome: "own", shown: JSON.stringify({ ...answer, rows: textOf(answer), snapshot: "" }) };
  } catch (error) {
    if (!(error instanceof TributaryError)) throw error;
    return { outcome: error.code, shown: JSON.stringify(error.toBody()) };
  }
}

const textOf = ({ rows }: QueryAnswer): string => Buffer.concat(rows).toString();

const fill = (sql: string): string =>
  sql
    .replaceAll("$FILE", `${lake.folder}/scm.files-1.parquet`)
    .replaceAll("$FOLDER", lake.folder)
    .replaceAll("$OTHER", others[0]!.id);

/** What the user wrote, the answer may repeat: only words that were not in the SQL are leaks. */
const leaksBeyond = (shown: string, sql: string): string[] =>
  leaks(shown, lake).filter((word) => !sql.toLowerCase().includes(word.toLowerCase()));

test("the canaries are there to be found", async () => {
  for (const other of others) {
    const { outcome, shown } = await ask("select * from files, projects limit 3", other.id);
    expect(outcome).toBe("own");
    expect(leaks(shown, lake)).toContain(other.canary);
  }
});

for (const [expected, statements] of Object.entries(hostile) as [Expected, string[]][]) {
  describe(`hostile SQL that ends as ${expected}`, () => {
    test.each(statements.map((sql) => [sql.length > 120 ? `${sql.slice(0, 120)}…` : sql, sql]))(
      "%s",
      async (_, raw) => {
        const sql = fill(raw);
        const { outcome, shown } = await ask(sql);
        expect(outcome).toBe(expected);
        expect(leaksBeyond(shown, sql)).toEqual([]);
      },
    );
  });
}

test("refusals repeat of the SQL no more than a name, and nothing of the engine's words", async () => {
  for (const [expected, statements] of Object.entries(hostile)) {
    if (expected === "own") continue;
    for (const raw of statements) {
      const { shown } = await ask(fill(raw));
      expect(shown).not.toMatch(/DuckDB|Candidate|Did you mean|Binder|Catalog Error|LINE \d|SET |exception/);
      expect(shown.length).toBeLessThan(400);
    }
  }
});

test("with the gate taken away, the sandbox still has no other tenant's rows and no way to files", async () => {
  const tables = await lake.tables();
  const session = await Session.open(
    limits.memoryBytes,
    asker.id,
    await Promise.all(
      tables.map(async (table) => {
        const columns = visibleColumns(table).map(({ name }) => name);
        return {
          domain: table.domain,
          model: table.model,
          columns,
          loadSql: await table.withRows(columns, asker.id, async (sql) => sql),
          emptySql: emptySql(table, columns),
          unqualified: true,
        };
      }),
    ),
    () => {},
  );
  let ran = 0;
  for (const [expected, raw] of Object.entries(hostile).flatMap(([code, list]) =>
    list.map((sql) => [code, sql] as const),
  )) {
    // What waits or binds for ever is a matter for the time limit.
    if (expected === "TRB-QUERY-TOO-LONG" || /sleep|\0/.test(raw)) continue;
    const sql = fill(raw);
    let shown = "";
    const limit = setTimeout(() => session.connection.interrupt(), 2_000);
    try {
      const request = { sql, parameters: {}, maxRows: 10_000, maxCharacters: 10_000_000, timeoutMs: 5_000 };
      const { columns } = await session.run(
        { type: "run", tenant: asker.id, tables: [], format: "json", numbers: "exact", ...request },
        (text) => {
          shown += text;
        },
      );
      shown += JSON.stringify(columns);
      ran++;
    } catch (error) {
      shown += String(error);
    } finally {
      clearTimeout(limit);
    }
    const canaries = others.flatMap(({ id, canary }) => [id, canary]);
    const asked = sql.toLowerCase();
    const found = canaries.filter(
      (word) => shown.toLowerCase().includes(word.toLowerCase()) && !asked.includes(word),
    );
    expect(sql.includes(others[0]!.id) ? [] : found, sql).toEqual([]);
    expect(shown, sql).not.toMatch(/root:x?:0|PAR1/);
  }
  session.close();
  // The engine's own listings do run here; the gate is what refuses them.
  expect(ran).toBeGreaterThan(100);
});

test("there are at least 150 of them", () => {
  expect(Object.values(hostile).flat().length).toBeGreaterThan(150);
});
