import { TributaryError } from "../base/errors.js";
import { NAMED_TYPES, TYPES } from "./allowed-functions.js";
import { positionAt, tooDeep } from "./sql-text.js";

/** The parser's syntax tree, as JSON: which nodes and keys the gate knows, and how it is read. */
export type Json = null | boolean | number | string | readonly Json[] | JsonObject;
export interface JsonObject {
  readonly [key: string]: Json;
}

// --- what is known of the parser's nodes ----------------------------------------------------------------

export const QUERY_KEYS: ReadonlyMap<string, readonly string[]> = new Map([
  [
    "SELECT_NODE",
    [
      "select_list",
      "from_table",
      "where_clause",
      "group_expressions",
      "group_sets",
      "aggregate_handling",
      "having",
      "sample",
      "qualify",
    ],
  ],
  ["SET_OPERATION_NODE", ["setop_type", "left", "right", "setop_all"]],
  ["RECURSIVE_CTE_NODE", ["cte_name", "union_all", "left", "right", "aliases", "key_targets"]],
]);

/** Time travel (at_clause) and catalog_name are not among a base table's keys: they are refused. */
export const TABLE_KEYS: ReadonlyMap<string, readonly string[]> = new Map([
  ["BASE_TABLE", ["schema_name", "table_name", "column_name_alias"]],
  ["SUBQUERY", ["subquery", "column_name_alias"]],
  ["JOIN", ["left", "right", "condition", "join_type", "ref_type", "using_columns", "delim_flipped"]],
  ["EXPRESSION_LIST", ["expected_names", "values"]],
  ["TABLE_FUNCTION", ["function", "column_name_alias", "with_ordinality"]],
  // Not among them: a pivot's values from an enum or a subquery.
  [
    "PIVOT",
    ["source", "aggregates", "unpivot_names", "pivots", "groups", "column_name_alias", "include_nulls"],
  ],
  ["SHOW_REF", ["query", "table_name", "show_type"]],
  ["EMPTY", []],
]);

/** A positional join pairs rows by where they happen to be stored. */
export const JOINS: ReadonlySet<string> = new Set(["REGULAR", "NATURAL", "CROSS", "ASOF"]);

export const FUNCTION_KEYS = [
  "function_name",
  "schema",
  "catalog",
  "children",
  "filter",
  "order_bys",
  "distinct",
  "is_operator",
  "export_state",
];

interface ExpressionRule {
  /** All types of the class when absent. */
  readonly types?: ReadonlySet<string>;
  /** Keys that hold an expression, a list of them, or nothing. */
  readonly children: readonly string[];
  /** Keys that hold names and flags, or are looked into above. */
  readonly other: readonly string[];
}

export const EXPRESSIONS: ReadonlyMap<string, ExpressionRule> = new Map<string, ExpressionRule>([
  ["BETWEEN", { children: ["input", "lower", "upper"], other: [] }],
  ["CASE", { children: ["else_expr"], other: ["case_checks"] }],
  ["CAST", { children: ["child"], other: ["cast_type", "try_cast"] }],
  ["COLLATE", { children: ["child"], other: ["collation"] }],
  ["COLUMN_REF", { children: [], other: ["column_names"] }],
  [
    "COMPARISON",
    {
      types: new Set([
        "COMPARE_EQUAL",
        "COMPARE_NOTEQUAL",
        "COMPARE_LESSTHAN",
        "COMPARE_GREATERTHAN",
        "COMPARE_LESSTHANOREQUALTO",
        "COMPARE_GREATERTHANOREQUALTO",
        "COMPARE_DISTINCT_FROM",
        "COMPARE_NOT_DISTINCT_FROM",
      ]),
      children: ["left", "right"],
      other: [],
    },
  ],
  ["CONJUNCTION", { children: ["children"], other: [] }],
  ["CONSTANT", { children: [], other: ["value"] }],
  ["FUNCTION", { children: ["children", "filter"], other: FUNCTION_KEYS }],
  ["LAMBDA", { children: ["lhs", "expr"], other: [] }],
  [
    "OPERATOR",
    {
      types: new Set([
        "OPERATOR_COALESCE",
        "OPERATOR_UNPACK",
        "OPERATOR_NOT",
        "OPERATOR_IS_NULL",
        "OPERATOR_IS_NOT_NULL",
        "OPERATOR_TRY",
        "ARRAY_EXTRACT",
        "ARRAY_SLICE",
        "ARRAY_CONSTRUCTOR",
        "STRUCT_EXTRACT",
        "COMPARE_IN",
        "COMPARE_NOT_IN",
        "GROUPING_FUNCTION",
      ]),
      children: ["children"],
      other: [],
    },
  ],
  ["PARAMETER", { children: [], other: ["identifier"] }],
  ["POSITIONAL_REFERENCE", { children: [], other: ["index"] }],
  [
    "STAR",
    {
      children: ["expr"],
      other: [
        "relation_name",
        "exclude_list",
        "replace_list",
        "columns",
        "qualified_exclude_list",
        "rename_list",
      ],
    },
  ],
  ["SUBQUERY", { children: ["child"], other: ["subquery_type", "subquery", "comparison_type"] }],
  [
    "WINDOW",
    {
      children: [
        "children",
        "partitions",
        "start_expr",
        "end_expr",
        "offset_expr",
        "default_expr",
        "filter_expr",
      ],
      other: [
        "function_name",
        "schema",
        "catalog",
        "orders",
        "arg_orders",
        "start",
        "end",
        "ignore_nulls",
        "exclude_clause",
        "distinct",
      ],
    },
  ],
]);

// --- reading the parser's JSON: anything of another shape is refused -------------------------------------

const isObject = (value: Json | undefined): value is JsonObject =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const unknownShape = () => new TributaryError("TRB-QUERY-CONSTRUCT", "sql: this construct is not known");

export function object(value: Json | undefined): JsonObject {
  if (!isObject(value)) throw unknownShape();
  return value;
}

export function list(value: Json | undefined): readonly Json[] {
  if (value === undefined) return [];
  if (!Array.isArray(value)) throw unknownShape();
  return value as readonly Json[];
}

export function text(value: Json | undefined): string {
  if (typeof value !== "string") throw unknownShape();
  return value;
}

export const optionalText = (value: Json | undefined): string | undefined =>
  value === undefined || value === "" ? undefined : text(value);

/** The engine compares names without regard to the case of ASCII letters, quoted or not. */
export const fold = (name: string): string => name.replace(/[A-Z]/g, (letter) => letter.toLowerCase());

/** OPERATOR_CAST → "operator cast": the parser's words, which hold nothing of the data. */
export const spoken = (word: Json | undefined): string =>
  typeof word === "string" ? word.toLowerCase().replaceAll("_", " ") : "of an unknown kind";

/** Types nest no deeper than the brackets that wrote them, which were counted before parsing. */
export function isAllowedType(type: JsonObject): boolean {
  const { id, type_info: details, ...more } = type;
  if (Object.keys(more).length > 0) return false;
  const info = details === undefined ? {} : object(details);
  if (id === "UNBOUND") return hasOnly(info, ["type", "name"]) && NAMED_TYPES.has(fold(text(info.name)));
  return (
    TYPES.has(text(id)) &&
    hasOnly(info, ["type", "width", "scale", "child_type", "child_types", "size"]) &&
    (info.child_type === undefined || isAllowedType(object(info.child_type))) &&
    list(info.child_types).every(
      (child) => hasOnly(object(child), ["first", "second"]) && isAllowedType(object(object(child).second)),
    )
  );
}

const hasOnly = (node: JsonObject, keys: readonly string[]): boolean =>
  Object.keys(node).every((key) => keys.includes(key));

/** Why the parser refused, without its words. */
export function parseRefusal(sql: string, parsed: JsonObject): TributaryError {
  const message = optionalText(parsed.error_message) ?? "";
  if (message.startsWith("Only SELECT statements")) {
    return new TributaryError(
      "TRB-QUERY-STATEMENT",
      "sql: expected a SELECT statement; a PIVOT must list its values: PIVOT … ON column IN (…)",
    );
  }
  if (message.startsWith("Maximum grouping set count")) {
    return new TributaryError("TRB-QUERY-TOO-LONG", "sql: expected at most 65535 grouping sets");
  }
  if (message.startsWith("Max expression depth") || message.startsWith("memory exhausted")) return tooDeep();
  const position = positionAt(sql, Number(optionalText(parsed.position) ?? Number.NaN));
  if (position === undefined) return new TributaryError("TRB-QUERY-SYNTAX", "sql: cannot be parsed");
  return new TributaryError(
    "TRB-QUERY-SYNTAX",
    `sql: cannot be parsed at line ${position.line}, column ${position.column}`,
    { details: { position } },
  );
}
