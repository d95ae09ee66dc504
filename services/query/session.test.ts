import { DuckDBInstance } from "@duckdb/node-api";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { asker, createLake, others, type TestLake } from "../../test/support/query-lake.js";
import { shut } from "../base/sealed-engine.js";
import { emptySql, TENANT_COLUMN, visibleColumns } from "./catalog.js";
import { failureOf, loadFailureOf } from "./failure.js";
import type { AnswerColumn, AnswerFormat, Failure, Parameter, SessionTable } from "./protocol.js";
import { Session } from "./session.js";

const MEMORY = 256 * 1024 * 1024;
let lake: TestLake;
let session: Session;

beforeAll(async () => {
  lake = await createLake([asker, ...others]);
  session = await Session.open(MEMORY, asker.id, await sessionTables(), () => {});
});
afterAll(() => {
  session.close();
  lake.close();
});

async function sessionTables(): Promise<SessionTable[]> {
  return Promise.all(
    (await lake.tables()).map(async (table) => {
      const columns = visibleColumns(table).map(({ name }) => name);
      return {
        domain: table.domain,
        model: table.model,
        columns,
        loadSql: await table.withRows([...columns], asker.id, async (sql) => sql),
        emptySql: emptySql(table, columns),
        unqualified: true,
      };
    }),
  );
}

interface RunOptions {
  readonly format?: AnswerFormat;
  readonly numbers?: "exact" | "js";
  readonly parameters?: Record<string, Parameter>;
  readonly maxRows?: number;
  readonly maxCharacters?: number;
}

async function run(
  sql: string,
  options: RunOptions = {},
): Promise<{ columns: AnswerColumn[]; text: string; pieces: number }> {
  let text = "";
  let pieces = 0;
  const { columns } = await session.run(
    {
      type: "run",
      tenant: asker.id,
      tables: [],
      sql,
      parameters: {},
      format: "json",
      numbers: "exact",
      maxRows: 1_000_000,
      maxCharacters: 100_000_000,
      timeoutMs: 10_000,
      ...options,
    },
    (piece) => {
      text += piece;
      pieces++;
    },
  );
  return { columns, text, pieces };
}

const one = async (expression: string, options: RunOptions = {}): Promise<unknown> =>
  (JSON.parse(`[${(await run(`select ${expression}`, options)).text}]`) as unknown[][])[0]![0];

const codeOf = async (ran: Promise<unknown>): Promise<string> => {
  try {
    await ran;
    return "answered";
  } catch (error) {
    return failureOf(error).code;
  }
};

describe("the barrier", () => {
  test("a session holds the tenant's rows, all of them, and no hidden column", async () => {
    expect(
      JSON.parse((await run("select count(*), min(tenant_id), max(tenant_id) from scm.files")).text),
    ).toEqual([...[String(asker.rows), asker.id, asker.id]]);
    const { columns } = await run("select * from files");
    expect(columns.map(({ name }) => name).filter((name) => /tributary|partition/.test(name))).toEqual([]);
  });

  test("trusted SQL that forgets the tenant's column loads nothing", async () => {
    const [table] = await sessionTables();
    const without = table!.loadSql!.replace('"tenant_id", ', "");
    expect(without).not.toBe(table!.loadSql);
    const columns = table!.columns.filter((name) => name !== TENANT_COLUMN);
    const opened = Session.open(MEMORY, asker.id, [{ ...table!, columns, loadSql: without }], () => {});
    await expect(opened).rejects.toThrow();
  });

  test("rows that the filter takes for the tenant's are looked at again, byte by byte", async () => {
    const table = {
      domain: "d",
      model: "m",
      columns: [TENANT_COLUMN],
      emptySql: `SELECT NULL::VARCHAR AS ${TENANT_COLUMN} WHERE false`,
      unqualified: true,
    };
    const loadSql = `SELECT '${asker.id.toUpperCase()}' COLLATE NOCASE AS ${TENANT_COLUMN}`;
    await expect(Session.open(MEMORY, asker.id, [{ ...table, loadSql }], () => {})).rejects.toThrow(
      "assertion failed: a session holds rows of its tenant only",
    );
  });

  test("a sandbox that is not closed is not used", async () => {
    for (const [setting, value] of [
      ["threads", "2"],
      ["temp_directory", "/tmp"],
      ["allow_community_extensions", "true"],
    ] as const) {
      const closed = {
        threads: "1",
        temp_directory: "",
        autoinstall_known_extensions: "false",
        autoload_known_extensions: "false",
        allow_community_extensions: "false",
        allow_persistent_secrets: "false",
      };
      const instance = await DuckDBInstance.create(":memory:", { ...closed, [setting]: value });
      const connection = await instance.connect();
      await expect(shut(connection)).rejects.toThrow(`assertion failed: the sandbox is closed: ${setting}`);
      connection.closeSync();
      instance.closeSync();
    }
  });

  test("behind the gate are walls that do not lean on each other: no files at all, and nothing is written", async () => {
    const { connection } = session;
    await expect(connection.run("SELECT * FROM read_text('/etc/hostname')")).rejects.toThrow(
      "File system LocalFileSystem has been disabled",
    );
    await connection.run("CREATE SEQUENCE counter");
    await expect(run("select nextval('counter')")).rejects.toThrow("read-only");
  });

  test("without a tenant, or with what cannot be one, there is no session", async () => {
    for (const tenant of ["", "~shared", "a'b", "..", "a b", "x".repeat(129)]) {
      await expect(Session.open(MEMORY, tenant, [], () => {})).rejects.toThrow("assertion failed");
    }
  });

  test("a domain may not hide the engine's own schemas", async () => {
    const [table] = await sessionTables();
    for (const domain of ["main", "Temp", "pg_catalog", "information_schema"]) {
      await expect(Session.open(MEMORY, asker.id, [{ ...table!, domain }], () => {})).rejects.toThrow(
        "assertion",
      );
    }
  });

  test("a session serves its tenant and its files only", async () => {
    const [table] = await sessionTables();
    expect(session.serves(asker.id, [table!])).toBe(true);
    expect(session.serves(others[0]!.id, [table!])).toBe(false);
    expect(session.serves(asker.id, [{ ...table!, loadSql: `${table!.loadSql} ` }])).toBe(false);
    expect(session.serves(asker.id, [{ ...table!, model: "else" }])).toBe(false);
    // Where only columns are asked for, rows of any version will do, but not other columns.
    expect(session.serves(asker.id, [{ ...table!, loadSql: undefined }])).toBe(true);
    const other = { ...table!, loadSql: undefined, emptySql: "SELECT 1 WHERE false" };
    expect(session.serves(asker.id, [other])).toBe(false);
  });

  test("only a SELECT runs in it, also where no gate has looked", async () => {
    for (const sql of ["insert into scm.files select * from scm.files", "explain select 1"]) {
      await expect(run(sql), sql).rejects.toThrow("the gate lets only SELECT pass");
    }
  });
});

describe("the sandbox", () => {
  test("files, settings and writing are out of reach even of SQL that no gate has seen", async () => {
    const path = `${lake.folder}/scm.files-1.parquet`;
    for (const sql of [
      `select * from read_parquet('${path}')`,
      `select * from '${path}'`,
      "select * from read_text('/etc/passwd')",
      "select * from glob('/*')",
      `copy (select 1) to '${lake.folder}/evil'`,
      `attach '${lake.folder}/evil.db' as evil`,
      "set enable_external_access=true",
      "set lock_configuration=false",
      "install httpfs",
      "load httpfs",
      "create table x as select 1",
      "drop table scm.files",
    ]) {
      expect(await codeOf(run(sql)), sql).not.toBe("answered");
    }
    expect(await codeOf(run("select count(*) from files"))).toBe("answered");
  });
});

describe("the catalog", () => {
  test("the first statements of BI tools are answered, with what the tenant has and nothing else", async () => {
    const rows = async (sql: string) => JSON.parse(`[${(await run(sql)).text}]`) as unknown[][];
    expect(await rows("show tables")).toEqual([["commits"], ["files"], ["issues"], ["projects"]]);
    expect((await rows("describe scm.files")).map(([name, type]) => `${name} ${type}`)).toContain(
      "path VARCHAR",
    );
    expect((await rows("summarize files")).map(([name]) => name)).toContain("change_count");
    const tables = await rows(
      "select table_schema, table_name from information_schema.tables where table_schema <> 'main' order by all",
    );
    expect(tables).toEqual([
      ["scm", "commits"],
      ["scm", "files"],
      ["tracker", "issues"],
      ["tracker", "projects"],
    ]);
    const columns = await rows("select column_name from information_schema.columns");
    expect(columns.length).toBeGreaterThan(20);
    expect(columns.flat().filter((name) => /_tributary|partition/.test(String(name)))).toEqual([]);
    expect(await rows("select version() = version(), current_schema(), current_database()")).toEqual([
      [true, "main", "memory"],
    ]);
  });
});

describe("answers", () => {
  const values: [string, unknown][] = [
    ["1", 1],
    ["1::bigint", "1"],
    ["(-9223372036854775808)::bigint", "-9223372036854775808"],
    ["18446744073709551615::ubigint", "18446744073709551615"],
    ["170141183460469231731687303715884105727::hugeint", "170141183460469231731687303715884105727"],
    ["1.50::decimal(10,2)", "1.50"],
    ["-0.05::decimal(10,2)", "-0.05"],
    ["1.1::float", 1.1],
    ["16777217::float", 16777216],
    ["0.1::double", 0.1],
    ["'nan'::double", "NaN"],
    ["'-inf'::float", "-Infinity"],
    ["true", true],
    ["null", null],
    ["''", ""],
    ["'a\"\\b'", 'a"\\b'],
    ["timestamptz '2024-02-29 23:59:59.123456+02'", "2024-02-29T21:59:59.123456Z"],
    ["timestamptz '2024-01-01 00:00:00Z'", "2024-01-01T00:00:00Z"],
    ["timestamptz '2024-01-01 00:00:00.5Z'", "2024-01-01T00:00:00.500Z"],
    ["timestamp '1969-12-31 23:59:59.999999'", "1969-12-31T23:59:59.999999"],
    ["timestamp_ns '2024-01-01 00:00:00.000000001'", "2024-01-01T00:00:00.000000001"],
    ["'2024-01-01 00:00:01'::timestamp_s", "2024-01-01T00:00:01"],
    ["'2024-01-01 00:00:01.250'::timestamp_ms", "2024-01-01T00:00:01.250"],
    ["timestamptz 'infinity'", "infinity"],
    ["date '0001-01-01'", "0001-01-01"],
    ["date '0044-03-15 (BC)'", "-000043-03-15"],
    ["date '2000-02-29'", "2000-02-29"],
    ["date '1900-03-01'", "1900-03-01"],
    ["date '20240-12-31'", "+020240-12-31"],
    ["date '-infinity'", "-infinity"],
    ["time '10:20:30.5'", "10:20:30.500"],
    ["timetz '10:20:30+01:30'", "10:20:30+01:30"],
    ["timetz '10:20:30-08'", "10:20:30-08:00"],
    ["interval '14 months 3 days 3661.5 seconds'", "P1Y2M3DT1H1M1.5S"],
    ["interval '-1 second'", "PT-1S"],
    ["interval '0 days'", "PT0S"],
    ["'\\xAA\\x00'::blob", "qgA="],
    ["uuid 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"],
    ["'101'::bit", "101"],
    ["[1, null]::bigint[]", ["1", null]],
    ["[1.5, 'nan'::double]::double[2]", [1.5, "NaN"]],
    ["{'a': 1, 'b': [date '2024-01-01']}", { a: 1, b: ["2024-01-01"] }],
    ["(1, 'x')", [1, "x"]],
    ["row(row(1, 2), null, row(3))", [[1, 2], null, [3]]],
    ["[(1, 'a'), null, (2, null)]", [[1, "a"], null, [2, null]]],
    [
      "[(1, 2), (3, 4)]::struct(x int, y int)[2]",
      [
        { x: 1, y: 2 },
        { x: 3, y: 4 },
      ],
    ],
    ["map {'k': (1, [(2, 3)])}", { k: [1, [[2, 3]]] }],
    ["map {(1, 'a'): 'b'}", { '[1,"a"]': "b" }],
    [
      "{'t': (1, 2), 'u': union_value(__proto__ := (3, 4))}",
      JSON.parse('{"t":[1,2],"u":{"__proto__":[3,4]}}'),
    ],
    ["{'10': 'ten', '9': 'nine'}", { "10": "ten", "9": "nine" }],
    ["map {'k': 1::bigint}", { k: "1" }],
    ["map {2: 'two'}", { "2": "two" }],
    ["map {date '2024-01-01': 1}", { "2024-01-01": 1 }],
    ["union_value(n := 1)", { n: 1 }],
    ["'{\"a\":1}'::json", '{"a":1}'],
  ];
  test.each(values)("%s", async (sql, expected) => {
    expect(await one(sql)).toEqual(expected);
  });

  test("a struct's field may have any name", async () => {
    expect((await run("select {'constructor': 2, 'toString': null}")).text).toBe(
      '[{"constructor":2,"toString":null}]',
    );
    // One that JavaScript would swallow, and some it would put into another order.
    expect((await run("select [{'__proto__': 1, '2': 3, '1': 4}]")).text).toBe(
      '[[{"__proto__":1,"2":3,"1":4}]]',
    );
  });

  test("columns of one name are told apart in every format, whatever the others are called", async () => {
    const sql = `select 1 as a, 2 as "a:1", 3 as a, 4 as a, 5 as __proto__`;
    const { columns, text } = await run(sql, { format: "ndjson" });
    expect(columns.map(({ name }) => name)).toEqual(["a", "a:1", "a:2", "a:3", "__proto__"]);
    expect(text).toBe('{"a":1,"a:1":2,"a:2":3,"a:3":4,"__proto__":5}\n');
    expect((await run(sql, { format: "csv" })).text).toBe("a,a:1,a:2,a:3,__proto__\r\n1,2,3,4,5\r\n");
  });

  test("a name that stands later is kept, too", async () => {
    const { columns } = await run(`select 1 as a, 2 as a, 3 as "a:1"`);
    expect(columns.map(({ name }) => name)).toEqual(["a", "a:2", "a:1"]);
  });

  test("tuples are lists in every format", async () => {
    const sql =
      "select (extension, null, [(change_count, 'x,y')]) as t from files order by entity_id limit 1";
    expect((await run(sql, { format: "json" })).text).toBe('[["ts",null,[[0,"x,y"]]]]');
    expect((await run(sql, { format: "ndjson" })).text).toBe('{"t":["ts",null,[[0,"x,y"]]]}\n');
    expect((await run(sql, { format: "csv" })).text).toBe('t\r\n"[""ts"",null,[[0,""x,y""]]]"\r\n');
  });

  test("a type that answers cannot hold is refused before the first row", async () => {
    expect(await codeOf(run("select time_ns '10:00:00'"))).toBe("TRB-QUERY-CONSTRUCT");
    expect(await codeOf(run("select [{'a': 1::variant}]"))).toBe("TRB-QUERY-CONSTRUCT");
  });

  test("numbers=js gives numbers, deep inside too", async () => {
    expect(await one("[{'n': 5::bigint, 'd': 1.5::decimal(4,1)}]", { numbers: "js" })).toEqual([
      { n: 5, d: 1.5 },
    ]);
  });

  test("dates agree with JavaScript's over ten thousand years", async () => {
    const { text } = await run(
      "select i::integer, date '1970-01-01' + (i * 37)::integer from range(-19000, 79000) r(i)",
    );
    for (const [i, day] of JSON.parse(`[${text}]`) as [number, string][]) {
      const expected = new Date(i * 37 * 86_400_000).toISOString().split("T")[0];
      if (day !== expected) expect(day, `day ${i * 37}`).toBe(expected);
    }
  });

  test("many rows come in several pieces that join to one answer", async () => {
    const { text, pieces } = await run("select i, repeat('x', 20) from range(50000) r(i)");
    const rows = JSON.parse(`[${text}]`) as [string, string][];
    expect(pieces).toBeGreaterThan(2);
    expect(rows).toHaveLength(50_000);
    expect(rows.every(([i], at) => i === String(at))).toBe(true);
  });

  test("names are told apart and types spelled as the engine does", async () => {
    const { columns } = await run(
      `select 1 as a, 2 as a, '1'::json as j, [1.5] as l, timestamptz '2024-01-01' as t`,
    );
    expect(columns).toEqual([
      { name: "a", type: "INTEGER" },
      { name: expect.stringMatching(/^a.+/), type: "INTEGER" },
      { name: "j", type: "JSON" },
      { name: "l", type: "DECIMAL(2,1)[]" },
      { name: "t", type: "TIMESTAMP WITH TIME ZONE" },
    ]);
  });
});

describe("failures", () => {
  test("an error far behind the first rows is an error, not a short answer", async () => {
    const late =
      "select i, i + 1, i + 2, i + 3, case when i = 800000 then cast('x' || i as integer) end from range(900000) r(i)";
    const ran = run(late, { maxRows: 1e9, maxCharacters: 1e9 });
    // Without a place: it came after the rows that are read ahead, where the engine's own error is lost.
    expect(await ran.catch(failureOf)).toEqual({
      type: "failed",
      code: "TRB-QUERY-RUNTIME",
      message: "the query failed on a value",
    });
  });

  test("an error within the first rows has its place", async () => {
    const failed = await run(
      "select case when i = 100000 then cast('x' || i as integer) else 1 end from range(400000) r(i)",
    ).catch(failureOf);
    expect(failed).toEqual({ type: "failed", code: "TRB-QUERY-RUNTIME", offset: 33 });
  });

  test("a failure carries a code and a place and nothing the engine said", async () => {
    for (const [sql, code] of [
      ["select cast(path as integer) from files", "TRB-QUERY-RUNTIME"],
      ["select strptime(path, '%Y') from files", "TRB-QUERY-RUNTIME"],
      ["select nothing from files", "TRB-QUERY-COLUMN"],
      ["select f.nothing from files f", "TRB-QUERY-COLUMN"],
      ["select sum(path) from files", "TRB-QUERY-BIND"],
      ["select list(i) from range(100000000000) r(i)", "TRB-QUERY-MEMORY"],
    ] as const) {
      const failed = await run(sql).catch(failureOf);
      const { offset, message, ...rest } = failed as Failure;
      expect(rest, sql).toEqual({ type: "failed", code });
      expect(message ?? "", sql).not.toMatch(/path|nothing|src|quokka|VARCHAR|Candidate|hugeint/i);
      expect(offset === undefined || Number.isInteger(offset), sql).toBe(true);
    }
  });

  test("what is not about types is told as what it is", async () => {
    for (const [sql, words] of [
      ["select unnest([1]) group by unnest([1])", "stands where it cannot"],
      ["select row_number() over () from files group by row_number() over ()", "stands where it cannot"],
      ["select 1 from files where sum(change_count) > 1", "stands where it cannot"],
      ["select 1 from files limit -1", "LIMIT and OFFSET must not be negative"],
      ["select 1 from files limit 1 offset -1", "LIMIT and OFFSET must not be negative"],
      ["select path, sum(change_count) from files", "must stand in GROUP BY"],
      ["select 1 union select 1, 2", "same number of columns"],
      ["select sum(path) from files", "takes values of these types"],
    ] as const) {
      const failed = await run(sql).catch(failureOf);
      expect(failed, sql).toMatchObject({ type: "failed", code: "TRB-QUERY-BIND" });
      expect((failed as Failure).message, sql).toContain(words);
    }
  });

  test("rows that cannot be loaded are told as that, without a path", async () => {
    const [table] = await sessionTables();
    const missing = table!.loadSql!.replaceAll(".parquet", "-lost.parquet");
    const failed = await Session.open(MEMORY, asker.id, [{ ...table!, loadSql: missing }], () => {}).catch(
      loadFailureOf,
    );
    expect(failed).toEqual({ type: "failed", code: "TRB-QUERY-UNREADABLE" });
    const small = Session.open(
      8 * 1024 * 1024,
      asker.id,
      [
        {
          ...table!,
          loadSql: "SELECT list(i)::VARCHAR AS path, 'acme' AS tenant_id FROM range(10000000) r(i)",
          columns: ["path"],
        },
      ],
      () => {},
    );
    expect(await small.catch(loadFailureOf)).toMatchObject({ code: "TRB-QUERY-MEMORY" });
  });

  test("a fault of the engine is the statement's doing while that runs, and ours before", async () => {
    const error = await run("select array_inner_product([1.0]::float[1], [null]::float[1])").catch(
      (thrown: unknown) => thrown,
    );
    expect(failureOf(error, true)).toMatchObject({ code: "TRB-QUERY-RUNTIME", broken: true });
    expect(failureOf(error)).toMatchObject({ code: "TRB-INTERNAL", cause: "INTERNAL" });
  });

  test("a session answers on after each failure", async () => {
    for (const sql of [
      "select 'x'::integer",
      "selec",
      "select nothing",
      "insert into scm.files select * from scm.files",
    ]) {
      expect(await codeOf(run(sql))).not.toBe("answered");
      expect(await one("count(*) from files")).toBe(String(asker.rows));
    }
  });

  test("rows and characters are counted before they are sent", async () => {
    expect(await codeOf(run("select i from range(2049) r(i)", { maxRows: 2048 }))).toBe("TRB-QUERY-ROWS");
    expect(await codeOf(run("select i from range(2048) r(i)", { maxRows: 2048 }))).toBe("answered");
    expect(await codeOf(run("select repeat('x', 1000) from range(2048)", { maxCharacters: 100_000 }))).toBe(
      "TRB-QUERY-ROWS",
    );
  });
});

describe("parameters", () => {
  test("texts stay texts, and whole numbers whole", async () => {
    const parameters = { a: "'; drop table files; --", n: 5, f: 1.5, b: true, z: null };
    const { columns, text } = await run("select $a, $n, $f, $b, $z", { parameters });
    expect(JSON.parse(text)).toEqual(["'; drop table files; --", "5", 1.5, true, null]);
    expect(columns.slice(1, 4).map(({ type }) => type)).toEqual(["BIGINT", "DOUBLE", "BOOLEAN"]);
  });

  test("texts compare with what they are compared with", async () => {
    const parameters = { 1: "2024-01-01T00:00:00Z", 2: "9007199254740993" };
    expect(
      await one("timestamptz '2024-01-02 00:00:00Z' > $1 and 9007199254740993 = $2", { parameters }),
    ).toBe(true);
  });

  test("lists keep their items' kind", async () => {
    const parameters = { w: [1, 2, null], f: [1, 2.5], t: ["a"], e: [] };
    expect(await one("[typeof($w), typeof($f), typeof($t), typeof($e)]", { parameters })).toEqual([
      "BIGINT[]",
      "DOUBLE[]",
      "VARCHAR[]",
      "VARCHAR[]",
    ]);
  });
});
