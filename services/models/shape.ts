import type { DuckDBConnection } from "@duckdb/node-api";
import { rowsOf } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import type { Model } from "./project.js";

/**
 * A model maps each event by itself to rows: state is then a function of the set of events (I3), however they are
 * batched. So no aggregates, windows, joins, limits, and nothing that tells one run from another.
 */
export async function checkShape(connection: DuckDBConnection, model: Model): Promise<void> {
  const [[serialized]] = (await rowsOf(
    connection,
    "SELECT json_serialize_sql($1::VARCHAR, skip_null := true, skip_empty := true, skip_default := true)",
    [model.sql],
  )) as [[string]];
  const parsed = JSON.parse(serialized) as Parsed;
  if (parsed.error || parsed.statements?.length !== 1) {
    throw refused(model, parsed.error_message ?? "expected exactly one SELECT");
  }
  const unstable = await unstableFunctions(connection);
  const ctes = new Set<string>();
  let sources = 0;
  const visit = (value: unknown): void => {
    if (Array.isArray(value)) return value.forEach(visit);
    if (typeof value !== "object" || value === null) return;
    const node = value as Node;
    for (const { key } of node.cte_map?.map ?? []) ctes.add(key);
    if (node.type === "BASE_TABLE") {
      if (node.table_name === model.entityType) sources++;
      else if (node.table_name === undefined || !ctes.has(node.table_name)) {
        throw refused(model, `reads "${node.table_name}"; expected its source() alone`);
      }
    }
    const construct = node.type === undefined ? undefined : REFUSED.get(node.type);
    if (construct !== undefined) throw refused(model, `uses ${construct}; a model maps each event by itself`);
    if (node.class === "WINDOW")
      throw refused(model, "uses a window function; a model maps each event by itself");
    if (node.class === "FUNCTION" && node.function_name !== undefined) {
      const reason = unstable.get(node.function_name.toLowerCase());
      if (reason !== undefined) throw refused(model, `calls ${node.function_name}(), ${reason}`);
    }
    for (const item of node.type === "SELECT_NODE" ? (node.select_list ?? []) : []) checkKey(model, item);
    if (node.type === "SELECT_NODE" && (node.group_expressions !== undefined || node.having !== undefined)) {
      throw refused(model, "groups rows; a model maps each event by itself");
    }
    Object.values(node).forEach(visit);
  };
  visit(parsed.statements);
  if (sources !== 1) throw refused(model, `reads its source() ${sources} times; expected once`);
}

const REFUSED = new Map([
  ["JOIN", "a join"],
  ["TABLE_FUNCTION", "a table function"],
  ["SET_OPERATION_NODE", "UNION, INTERSECT or EXCEPT"],
  ["RECURSIVE_CTE_NODE", "a recursive CTE"],
  ["LIMIT_MODIFIER", "LIMIT"],
  ["LIMIT_PERCENT_MODIFIER", "LIMIT"],
  ["DISTINCT_MODIFIER", "DISTINCT"],
  ["PIVOT", "PIVOT"],
  ["SHOW_REF", "SHOW"],
]);

/** A row keeps the key of its event: nothing else may be called tenant_id or entity_id on the way. */
function checkKey(model: Model, item: Node): void {
  const source = item.class === "COLUMN_REF" ? item.column_names?.at(-1) : undefined;
  const name = item.alias ?? source;
  for (const key of ["tenant_id", "entity_id"]) {
    if (name?.toLowerCase() === key && source?.toLowerCase() !== key) {
      throw refused(model, `column "${key}": expected the source's own ${key}, not an expression`);
    }
  }
}

interface Parsed {
  readonly error?: boolean;
  readonly error_message?: string;
  readonly statements?: readonly unknown[];
}

interface Node {
  readonly type?: string;
  readonly class?: string;
  readonly table_name?: string;
  readonly function_name?: string;
  readonly alias?: string;
  readonly column_names?: readonly string[];
  readonly select_list?: readonly Node[];
  readonly cte_map?: { readonly map?: readonly { readonly key: string }[] };
  readonly group_expressions?: unknown;
  readonly having?: unknown;
}

/** Functions whose answer depends on more than their arguments, by name, with why. */
async function unstableFunctions(connection: DuckDBConnection): Promise<Map<string, string>> {
  const rows = await rowsOf(
    connection,
    `SELECT DISTINCT function_name, function_type, stability FROM duckdb_functions()
     WHERE function_type = 'aggregate' OR stability IN ('VOLATILE', 'CONSISTENT_WITHIN_QUERY')
        OR function_name IN ('current_setting', 'getvariable', 'query', 'query_table')`,
  );
  return new Map(
    rows.map(([name, type, stability]) => [
      String(name).toLowerCase(),
      type === "aggregate"
        ? "an aggregate; a model maps each event by itself"
        : `which is ${String(stability ?? "volatile")
            .toLowerCase()
            .replaceAll("_", " ")}; equal events must give equal rows`,
    ]),
  );
}

const refused = (model: Model, message: string): TributaryError =>
  new TributaryError("TRB-MODEL-INVALID", `${model.name}: ${message}`);
