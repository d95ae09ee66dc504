import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { gateTables } from "../../test/support/query-lake.js";
import { TributaryError } from "../base/errors.js";
import type { CatalogTable } from "./catalog.js";
import { checkQuery, type GatedQuery } from "./gate.js";
import { Session } from "./session.js";
import { checkText } from "./sql-text.js";

let parser: Session;
beforeAll(async () => {
  parser = await Session.parser(128 * 1024 * 1024);
});
afterAll(() => parser.close());

async function gate(sql: string): Promise<GatedQuery<CatalogTable>> {
  checkText(sql, 65_536);
  return checkQuery(sql, await parser.parse(sql), gateTables);
}

/** The tables a query reads, or the code it is refused with. */
async function outcome(sql: string): Promise<string> {
  try {
    const { tables } = await gate(sql);
    return tables
      .map(({ domain, model }) => `${domain}.${model}`)
      .sort()
      .join(" ");
  } catch (error) {
    if (error instanceof TributaryError) return error.code;
    throw error;
  }
}

describe("names resolve as the engine resolves them", () => {
  const cases: [string, string][] = [
    ["select 1", ""],
    ["select * from files", "scm.files"],
    ["select * from scm.files", "scm.files"],
    [`select * from "SCM"."Files"`, "scm.files"],
    ["select * from files, commits c, scm.files f2", "scm.commits scm.files"],
    // Two domains have projects.
    ["select * from projects", "TRB-QUERY-TABLE"],
    ["select * from crm.projects", "crm.projects"],
    ["select * from scm.projects", "TRB-QUERY-TABLE"],
    ["select * from memory.scm.files", "TRB-QUERY-CONSTRUCT"],
    // A common table hides a table of its name, where it can be seen and nowhere else.
    ["with files as (select 1) select * from files", ""],
    ["with files as (select 1) select * from scm.files", "scm.files"],
    ["with files as (select * from files) select * from files", "scm.files"],
    ["with recursive files as (select 1 union all select * from files) select * from files", ""],
    ["with a as (select 1), b as (select * from a) select * from b", ""],
    ["with a as (select * from b), b as (select 1) select * from a", "TRB-QUERY-TABLE"],
    ["select * from (with issues as (select 1) select * from issues) x, issues", "tracker.issues"],
    ["with issues as (select 1) select * from (select * from issues) x", ""],
    ["with c as (select 1) select (select count(*) from c), (select count(*) from commits)", "scm.commits"],
    ["with c as (select 1) (select * from c union select * from c)", ""],
    ["(with c as (select 1) select * from c) union select * from c", "TRB-QUERY-TABLE"],
    ["with c as (with d as (select * from issues) select * from d) select * from c", "tracker.issues"],
    ["with c as (with d as (select 1) select * from d) select * from d", "TRB-QUERY-TABLE"],
    ["with C as (select 1) select * from c", ""],
    [`with "ſ" as (select 1) select * from s`, "TRB-QUERY-TABLE"],
    // Every place a query can stand.
    ["select 1 where exists (select 1 from files)", "scm.files"],
    ["select 1 order by (select count(*) from files)", "scm.files"],
    ["select 1 limit (select count(*) from files)", "scm.files"],
    ["select case when (select true from files) then 1 end", "scm.files"],
    ["select sum(1) over (order by (select count(*) from files))", "scm.files"],
    ["select count(*) filter (where exists (select 1 from files))", "scm.files"],
    [
      "select * from issues i join commits c on (select true from files)",
      "scm.commits scm.files tracker.issues",
    ],
    ["values ((select count(*) from files))", "scm.files"],
    ["select * from range((select count(*) from files))", "scm.files"],
    [
      "select * from issues i, lateral (select * from files f where f.path = i.key)",
      "scm.files tracker.issues",
    ],
    ["select list_transform([1], lambda x: (select count(*) from files))", "scm.files"],
    ["select * replace ((select 1 from files) as key) from issues", "scm.files tracker.issues"],
    ["select array(select path from files)", "scm.files"],
    ["select 1 group by (select 1 from files)", "scm.files"],
    ["select distinct on ((select 1 from files)) 1", "scm.files"],
    ["select string_agg('x', ',' order by (select 1 from files))", "scm.files"],
    ["with recursive r(k) using key (k) as (select 1 union select k from r where k < 0) select * from r", ""],
    ["describe files", "scm.files"],
    ["summarize select * from files, issues", "scm.files tracker.issues"],
    ["select * from (describe (with c as (select 1) select * from c))", ""],
    ["pivot files on extension in ('ts', 'md') using sum(change_count) group by directory", "scm.files"],
    ["from (select (select 1 from commits) as e, 1 as v) pivot (max(v) for e in (1))", "scm.commits"],
    ["unpivot files on change_count, lines_added into name n value v", "scm.files"],
    ["unpivot (select 1 as a from issues) on columns(* exclude (b)) into name n value v", "tracker.issues"],
  ];
  test.each(cases)("%s → %s", async (sql, expected) => {
    expect(await outcome(sql)).toBe(expected);
  });
});

describe("the catalog's own views", () => {
  test.each([
    ["show tables", true],
    ["show all tables", true],
    ["describe", true],
    ["select * from information_schema.tables t join INFORMATION_SCHEMA.Columns c using (table_name)", true],
    ["select 1 where exists (from information_schema.schemata)", true],
    ["describe files", false],
    ["select * from files", false],
  ])("%s", async (sql, expected) => {
    expect((await gate(sql)).readsCatalog).toBe(expected);
  });

  test.each([
    "show databases",
    "show schemas",
    "show variables",
    "show tables from scm",
    "describe (from pragma_database_list)",
    "summarize duckdb_settings",
    "describe nowhere",
    "select * from information_schema.key_column_usage",
    "select * from pg_catalog.pg_class",

    "select * from memory.information_schema.tables",
    "select * from tables",
    "select * from duckdb_tables()",
    "describe '/etc/passwd'",
    "summarize 'x.parquet'",
    "describe table_that_is_not",
    "pivot files on extension in some_enum using count(*)",
    "pivot nowhere on a in (1) using sum(b)",

    "pivot files on getenv(path) in ('x') using count(*)",
    "pivot files on path in ('x') using getenv('y')",
    "unpivot files on columns(x -> getenv(x)) into name n value v",
  ])("%s is refused", async (sql) => {
    expect(await outcome(sql)).toMatch(/^TRB-QUERY-/);
  });
});

describe("what is no plain SELECT over the tenant's tables is refused", () => {
  test.each([
    ["select 1; select 2", "TRB-QUERY-STATEMENT"],
    ["", "TRB-QUERY-STATEMENT"],
    ["insert into files select 1", "TRB-QUERY-STATEMENT"],
    ["select * from files positional join commits", "TRB-QUERY-CONSTRUCT"],
    ["select null::geometry", "TRB-QUERY-CONSTRUCT"],
    ["select try_cast(path as my_type) from files", "TRB-QUERY-CONSTRUCT"],
    ["select null::struct(a int, b geometry[])", "TRB-QUERY-CONSTRUCT"],
    ["select path collate de from files", "TRB-QUERY-CONSTRUCT"],
    ["select path collate nocase from files", "scm.files"],
    ["select sum(change_count) export_state from files", "TRB-QUERY-CONSTRUCT"],
    ["select main.upper(path), x.upper(path) from files", "TRB-QUERY-FUNCTION"],
    ["select system.main.upper(path) from files", "TRB-QUERY-FUNCTION"],
    ["with duckdb_settings as (select 1) select * from duckdb_settings", "TRB-QUERY-CONSTRUCT"],
    ["with sqlite_master as (select 1) select * from sqlite_master", "TRB-QUERY-CONSTRUCT"],
    [`with "a.parquet" as (select 1) select * from "a.parquet"`, "TRB-QUERY-CONSTRUCT"],
    [`with "/etc/passwd" as (select 1) select 1`, "TRB-QUERY-CONSTRUCT"],
    ["select * from files at (version => 1)", "TRB-QUERY-CONSTRUCT"],
    ["select * from files using sample 5", "scm.files"],
  ])("%s → %s", async (sql, expected) => {
    expect(await outcome(sql)).toBe(expected);
  });
});

describe("what grows faster than the text", () => {
  const lambdas = (depth: number) =>
    `select ${"list_transform([1], lambda x: ".repeat(depth)}1${")".repeat(depth)}`;
  const queries = (depth: number) => `select ${"(select ".repeat(depth)}1${")".repeat(depth)}`;

  test("lambdas inside one another are counted", async () => {
    expect(await outcome(lambdas(12))).toBe("");
    expect(await outcome(lambdas(13))).toBe("TRB-QUERY-TOO-LONG");
    // Side by side they cost nothing more.
    expect(await outcome(`select ${"list_transform([1], lambda x: x), ".repeat(20)}1`)).toBe("");
  });

  test("expressions without brackets are counted too", async () => {
    expect(await outcome(`select ${"not ".repeat(90)}true`)).toBe("");
    expect(await outcome(`select ${"not ".repeat(110)}true`)).toBe("TRB-QUERY-TOO-LONG");
    expect(await outcome(queries(40))).toBe("");
    expect(await outcome(queries(60))).toBe("TRB-QUERY-TOO-LONG");
  });

  test("too many grouping sets are told of as such", async () => {
    const columns = Array.from({ length: 17 }, (_, at) => at).join(",");
    expect(await outcome(`select 1 from files group by cube(${columns})`)).toBe("TRB-QUERY-TOO-LONG");
  });
});

test("a sample is looked at too", async () => {
  const parsed = await parser.parse("select * from files using sample 5");
  expect(() => checkQuery("", parsed, gateTables)).not.toThrow();
  const changed = parsed.replace('"sample":{', '"sample":{"something_new":1,');
  expect(changed).not.toBe(parsed);
  expect(() => checkQuery("", changed, gateTables)).toThrow(TributaryError);
});

test("the keys of a recursive query are looked at", async () => {
  const recursive = (key: string) =>
    `with recursive r(k) using key (${key}) as (select 1 union select k from r where k < 0) select * from r`;
  const parsed = JSON.parse(await parser.parse(recursive("k"))) as Record<string, unknown>;
  // The parser itself takes names only; should one of a later version take more, the walk is there.
  const evil = { class: "FUNCTION", type: "FUNCTION", function_name: "getenv", children: [] };
  const places = { cte: 0, node: 0 };
  const plant = (value: unknown, into: "cte" | "node"): void => {
    if (typeof value !== "object" || value === null) return;
    const node = value as Record<string, unknown>;
    if (Array.isArray(node.key_targets) && (node.type === "RECURSIVE_CTE_NODE") === (into === "node")) {
      node.key_targets = [evil];
      places[into]++;
    }
    for (const child of Object.values(node)) plant(child, into);
  };
  for (const into of ["cte", "node"] as const) {
    const changed = structuredClone(parsed);
    plant(changed.statements, into);
    expect(places[into], into).toBeGreaterThan(0);
    expect(() => checkQuery("", JSON.stringify(changed), gateTables), into).toThrow("getenv");
  }
  expect(() => checkQuery("", JSON.stringify(parsed), gateTables)).not.toThrow();
});

test("parameters are named as the engine binds them", async () => {
  expect((await gate("select ?, ?")).parameters.toSorted()).toEqual(["1", "2"]);
  expect((await gate("select $b, $a, $b")).parameters.toSorted()).toEqual(["a", "b"]);
});

test("a node, a key or a type that is not known is refused, wherever it stands", async () => {
  const ast = await parser.parse("select path, count(*) from files where path = 'x' group by all order by 1");
  const whole = JSON.parse(ast) as Record<string, unknown>;
  let refused = 0;
  const objects: Record<string, unknown>[] = [];
  const collect = (value: unknown, key: string): void => {
    // What a constant holds is data.
    if (typeof value !== "object" || value === null || key === "value") return;
    if (!Array.isArray(value)) objects.push(value as Record<string, unknown>);
    for (const [name, child] of Object.entries(value)) collect(child, name);
  };
  collect(whole.statements, "");
  expect(objects.length).toBeGreaterThan(10);
  for (const node of objects) {
    const original = { ...node };
    for (const change of [{ something_new: 1 }, { something_new: { class: "FUNCTION" } }]) {
      Object.assign(node, change);
      expect(() => checkQuery("", JSON.stringify(whole), gateTables)).toThrow(TributaryError);
      delete node.something_new;
      refused++;
    }
    for (const key of ["class", "type"]) {
      if (typeof node[key] !== "string" || node.null_order !== undefined) continue;
      // The type of classes with one type only is not looked at: the class says it all.
      if (key === "type" && node.class !== undefined && node.class !== "COMPARISON") continue;
      node[key] = "SOMETHING_NEW";
      expect(() => checkQuery("", JSON.stringify(whole), gateTables), `${key} ${original[key]}`).toThrow(
        TributaryError,
      );
      node[key] = original[key];
      refused++;
    }
  }
  expect(refused).toBeGreaterThan(20);
  expect(() => checkQuery("", JSON.stringify(whole), gateTables)).not.toThrow();
});

test("the parser's answer in any other shape is refused", () => {
  for (const answer of [
    "{}",
    "[]",
    '{"error":false}',
    '{"error":false,"statements":[1]}',
    '{"error":false,"statements":{}}',
  ]) {
    expect(() => checkQuery("", answer, gateTables)).toThrow(TributaryError);
  }
});

describe("refusals name what the user wrote and where", () => {
  const cases: [string, string, { line: number; column: number } | undefined][] = [
    ["select 'ä𐍈',\n  getenv('x')", "getenv: not a function that queries may use", { line: 2, column: 3 }],
    ["select 'ä𐍈', getenv('x')", "getenv: not a function that queries may use", { line: 1, column: 14 }],
    [
      "select getenv('x'),\n stats(1), GetEnv('y') from sniff_csv('z')",
      "getenv, stats, sniff_csv: not functions that queries may use",
      { line: 1, column: 8 },
    ],
    [
      `select ${["a", "b", "c", "d", "e", "f", "g"].map((name) => `${name}${name}()`).join(", ")}`,
      "aa, bb, cc, dd, ee, and 2 more: not functions that queries may use",
      { line: 1, column: 8 },
    ],
    ["select * from nowhere", "nowhere: not one of the tenant's tables", { line: 1, column: 15 }],
    [
      "select * from projects",
      "projects: ambiguous, write one of crm.projects, tracker.projects",
      { line: 1, column: 15 },
    ],
    ["select * frm files", "sql: cannot be parsed at line 1, column 14", { line: 1, column: 14 }],
  ];
  test.each(cases)("%s", async (sql, message, position) => {
    const refusal = await gate(sql).catch((error: unknown) => error as TributaryError);
    expect(refusal).toBeInstanceOf(TributaryError);
    expect((refusal as TributaryError).message).toBe(message);
    expect((refusal as TributaryError).details?.position).toEqual(position);
  });
});

test("column references are known by where they stand", async () => {
  const { columnsAt } = await gate("select 'ä', f.path from files f");
  expect([...columnsAt]).toEqual([[13, "f.path"]]);
});
