import type { DuckDBConnection } from "@duckdb/node-api";
import { rowsOf } from "../base/duckdb.js";

/** Functions that DuckDB calls stable and that yet tell one run, batch or session from another. */
const MISLABELLED = [
  "age",
  "current_localtime",
  "current_localtimestamp",
  "current_setting",
  "getvariable",
  "query",
  "query_table",
  "stats",
  "vector_type",
  "version",
];

const CHANGING = "which depends on more than its arguments; equal events must give equal rows";

/** What SQL keywords without parentheses stand for when no column of that name is there. */
export const VALUE_WORDS = new Set([
  "current_catalog",
  "current_date",
  "current_role",
  "current_schema",
  "current_time",
  "current_timestamp",
  "current_user",
  "localtime",
  "localtimestamp",
  "session_user",
  "user",
]);

/** Functions whose answer depends on more than their arguments, macros that call one included: name → why. */
export async function unstableFunctions(connection: DuckDBConnection): Promise<Map<string, string>> {
  const rows = await rowsOf(
    connection,
    `SELECT DISTINCT function_name, function_type, stability, macro_definition FROM duckdb_functions()
     WHERE function_type IN ('aggregate', 'macro') OR stability IN ('VOLATILE', 'CONSISTENT_WITHIN_QUERY')`,
  );
  const unstable = new Map<string, string>(MISLABELLED.map((name) => [name, CHANGING]));
  const macros: [string, string][] = [];
  for (const [name, type, stability, macro] of rows) {
    const key = String(name).toLowerCase();
    if (type === "macro") macros.push([key, String(macro).toLowerCase()]);
    else if (type === "aggregate") unstable.set(key, "an aggregate; a model maps each event by itself");
    // error() is only called volatile so that it is not computed too early.
    else if (key !== "error") {
      const kind = String(stability).toLowerCase().replaceAll("_", " ");
      unstable.set(key, `which is ${kind}; equal events must give equal rows`);
    }
  }
  for (let before = -1; before !== unstable.size; ) {
    before = unstable.size;
    for (const [name, definition] of macros) {
      const cause = callsOf(definition).find((word) => unstable.has(word) || VALUE_WORDS.has(word));
      if (cause !== undefined && !unstable.has(name)) unstable.set(name, unstable.get(cause) ?? CHANGING);
    }
  }
  return unstable;
}

/** Words of a macro's definition that are calls, and those that SQL calls without parentheses. */
const callsOf = (definition: string): string[] =>
  [...definition.matchAll(/"?([a-z_][a-z0-9_]*)"?\s*\(|\b((?:current|local)_?[a-z]+)\b|\b(select)\b/g)].map(
    ([, call, word, select]) => call ?? (select === undefined ? word! : "query"),
  );
