import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { CODES } from "../base/codes.js";
import { rowsOf } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import { packageRoot } from "../base/paths.js";
import { FUNCTION_GROUPS, FUNCTIONS, TABLE_FUNCTIONS } from "./allowed-functions.js";
import { checkQuery } from "./gate.js";
import { Session } from "./session.js";

/** Names the parser or the binder knows that are in no catalog of functions. */
const PARSER_LEVEL = new Set(["->", "unnest"]);

let session: Session;
/** Name → kinds, as the installed engine has them. */
const installed = new Map<string, Set<string>>();

beforeAll(async () => {
  session = await Session.parser(128 * 1024 * 1024);
  const rows = await rowsOf(
    session.connection,
    "SELECT lower(function_name), function_type FROM duckdb_functions()",
  );
  for (const [name, kind] of rows as [string, string][]) {
    installed.set(name, (installed.get(name) ?? new Set()).add(kind));
  }
});
afterAll(() => session.close());

async function codeOf(sql: string): Promise<string> {
  try {
    checkQuery(sql, await session.parse(sql), []);
    return "passes";
  } catch (error) {
    if (error instanceof TributaryError) return error.code;
    throw error;
  }
}

const quoted = (name: string) => `"${name.replaceAll('"', '""')}"`;

test("every function on the list exists in the installed engine, once", () => {
  const listed = Object.values(FUNCTION_GROUPS).flat();
  expect(listed.filter((name) => !installed.has(name) && !PARSER_LEVEL.has(name))).toEqual([]);
  expect(new Set(listed).size).toBe(listed.length);
  expect([...TABLE_FUNCTIONS].filter((name) => !installed.has(name))).toEqual([]);
});

test("every function of the engine that is not on the list is refused, as a value and in FROM", async () => {
  let refused = 0;
  for (const name of installed.keys()) {
    if (!FUNCTIONS.has(name)) {
      expect(await codeOf(`select ${quoted(name)}(1)`), name).toBe("TRB-QUERY-FUNCTION");
      expect(await codeOf(`select ${quoted(name.toUpperCase())}(1)`), name).toBe("TRB-QUERY-FUNCTION");
      refused++;
    }
    if (!TABLE_FUNCTIONS.has(name)) {
      expect(await codeOf(`select * from ${quoted(name)}(1)`), name).toBe("TRB-QUERY-FUNCTION");
      refused++;
    }
  }
  expect(refused).toBeGreaterThan(500);
});

test("nothing on the list reads what is not its argument", () => {
  const dangerous =
    /^(read_|duckdb_|pragma_|pg_|current_(setting|query|schema|database|connection|transaction)|has_.*privilege|query|glob|getenv|getvariable|stats|error|nextval|currval|txid|in_search|which_|write_|sleep|checkpoint|force_|enable_|disable_|parse_duckdb|json_(de)?serialize|json_execute|list_aggr|aggregate|alias|vector_type|random|uuid$|setseed|version|add_parquet|test_|sniff|sql_|icu_|__internal)/;
  const reviewed = ["current_database", "current_schema", "list_aggregate", "random", "uuid", "version"];
  expect([...FUNCTIONS, ...TABLE_FUNCTIONS].filter((name) => dangerous.test(name)).toSorted()).toEqual(
    reviewed,
  );
});

test("texts that name types or functions are looked at, and must be there to be read", async () => {
  for (const [call, code] of [
    [`json_transform('{}', '{"a":"INTEGER","b":["VARCHAR"],"c":{"d":"DECIMAL(10, 2)[]"}}')`, "passes"],
    [`from_json('{}', '"json"')`, "passes"],
    [`json_transform('{"a":1}', '{"a":"GEOMETRY"}')`, "TRB-QUERY-FUNCTION"],
    [`json_transform_strict('{}', '["VARIANT"]')`, "TRB-QUERY-FUNCTION"],
    [`from_json('{}', '{"a":{"b":["my_enum"]}}')`, "TRB-QUERY-FUNCTION"],
    [`from_json_strict('{}', '{"a":"STRUCT(x GEOMETRY)"}')`, "TRB-QUERY-FUNCTION"],
    [`from_json('{}', '{"a":')`, "TRB-QUERY-FUNCTION"],
    [`from_json('{}', '{"a":' || '"GEOMETRY"}')`, "TRB-QUERY-FUNCTION"],
    ["from_json('{}', $1)", "TRB-QUERY-FUNCTION"],
    [`FROM_JSON('{}', '"GEOMETRY"')`, "TRB-QUERY-FUNCTION"],
    [`('{}').from_json('"GEOMETRY"')`, "TRB-QUERY-FUNCTION"],
    ["list_aggregate([1], 'sum')", "passes"],
    ["array_aggregate([1], 'MEDIAN')", "passes"],
    ["list_aggregate([1], 'error')", "TRB-QUERY-FUNCTION"],
    ["list_aggregate([1], 'su' || 'm')", "TRB-QUERY-FUNCTION"],
    ["list_aggregate([1], $1)", "TRB-QUERY-FUNCTION"],
    ["list_aggregate([1])", "TRB-QUERY-FUNCTION"],
  ] as const) {
    expect(await codeOf(`select ${call}`), call).toBe(code);
  }
});

describe("volatile functions", () => {
  test("none is on the list but those of chance", async () => {
    const rows = await rowsOf(
      session.connection,
      "SELECT DISTINCT lower(function_name) FROM duckdb_functions() WHERE stability = 'VOLATILE'",
    );
    const listed = rows.map(([name]) => String(name)).filter((name) => FUNCTIONS.has(name));
    expect(listed.toSorted()).toEqual(["gen_random_uuid", "random", "uuid", "uuidv4", "uuidv7"]);
    expect(rows.length).toBeGreaterThan(5);
  });
});

describe("docs/sql.md", () => {
  const page = readFileSync(join(packageRoot, "docs", "sql.md"), "utf8");

  test("lists the functions under their headings, all of them and no other", () => {
    for (const [heading, names] of Object.entries(FUNCTION_GROUPS)) {
      const section = page.split(`\n### ${heading}\n`)[1]?.split("\n#")[0];
      expect(section, heading).toBeDefined();
      const listed = [...section!.matchAll(/`([^`]+)`/g)].map(([, name]) => name);
      expect(listed.toSorted(), heading).toEqual([...names].toSorted());
    }
    const inFrom = page.split("\n### In FROM\n")[1]?.split("\n#")[0] ?? "";
    expect([...inFrom.matchAll(/`([^`]+)`/g)].map(([, name]) => name).toSorted()).toEqual(
      [...TABLE_FUNCTIONS].toSorted(),
    );
  });

  test("lists every code a query can be refused with", () => {
    const listed = new Set([...page.matchAll(/^\| `(TRB-QUERY-[A-Z-]+)` \|/gm)].map(([, code]) => code));
    expect([...listed].toSorted()).toEqual(
      Object.keys(CODES)
        .filter((code) => code.startsWith("TRB-QUERY-"))
        .toSorted(),
    );
  });
});
