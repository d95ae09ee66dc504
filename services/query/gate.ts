import type { Code } from "../base/codes.js";
import { TributaryError } from "../base/errors.js";
import { COLLATIONS, FUNCTIONS, NAMED_TYPES, TABLE_FUNCTIONS, TYPES } from "./allowed-functions.js";
import type { CatalogTable } from "./catalog.js";
import { positionAt, tooDeep } from "./sql-text.js";

/** What may run, and what it needs. */
export interface GatedQuery {
  /** The tenant's tables the query reads, each once. */
  readonly tables: readonly CatalogTable[];
  /** Parameters, by the names the engine knows them by: "1", "2", … or names without the dollar sign. */
  readonly parameters: readonly string[];
  /** The user's own column references, by the byte offset at which they stand: names errors may repeat. */
  readonly columnsAt: ReadonlyMap<number, string>;
}

/** Expressions, queries and table references inside one another. Bind time grows faster than depth. */
const MAX_DEPTH = 100;
/** Each lambda inside another doubles the time to bind. JSON arrows are parsed as lambdas too. */
const MAX_LAMBDAS = 12;

type Json = null | boolean | number | string | readonly Json[] | JsonObject;
interface JsonObject {
  readonly [key: string]: Json;
}

/** Names of CTEs that a query sees; the innermost first. */
interface Scope {
  readonly name: string;
  readonly outer: Scope | undefined;
}

interface Task {
  readonly kind: "query" | "expression" | "table";
  readonly node: JsonObject;
  readonly scope: Scope | undefined;
  readonly depth: number;
  readonly lambdas: number;
}

/**
 * Checks a parsed query against the tables a tenant has. It is an allow-list through and through: a node type, a
 * key of a node, a function, a type or a collation that is not known here is refused. The walk keeps its own stack.
 *
 * `parsed` is the engine's answer to json_serialize_sql(sql, skip_empty := true, skip_null := true).
 * Errors: TRB-QUERY-SYNTAX, -STATEMENT, -TABLE, -FUNCTION, -CONSTRUCT, -TOO-LONG; they name what the user wrote.
 */
export function checkQuery(sql: string, parsed: string, tables: readonly CatalogTable[]): GatedQuery {
  return new Gate(sql, tables).check(JSON.parse(parsed) as JsonObject);
}

class Gate {
  readonly #sql: string;
  readonly #available: readonly CatalogTable[];
  readonly #tables = new Set<CatalogTable>();
  readonly #columnsAt = new Map<number, string>();
  readonly #pending: Task[] = [];
  #current: Task | undefined;

  constructor(sql: string, available: readonly CatalogTable[]) {
    this.#sql = sql;
    this.#available = available;
  }

  check(parsed: JsonObject): GatedQuery {
    if (parsed.error !== false) throw this.#parseError(parsed);
    const statements = list(parsed.statements);
    const [statement] = statements;
    if (statements.length !== 1 || !isObject(statement)) {
      throw new TributaryError(
        "TRB-QUERY-STATEMENT",
        `sql: expected exactly one SELECT statement, found ${statements.length}`,
      );
    }
    const parameters = this.#statement(statement, undefined, 0, 0);
    for (let task = this.#pending.pop(); task !== undefined; task = this.#pending.pop()) {
      this.#current = task;
      if (task.depth > MAX_DEPTH) throw tooDeep();
      if (task.kind === "query") this.#query(task.node, task.scope);
      else if (task.kind === "table") this.#table(task.node, task.scope);
      else this.#expression(task.node, task.scope);
    }
    return { tables: [...this.#tables], parameters, columnsAt: this.#columnsAt };
  }

  // --- queries ------------------------------------------------------------------------------------------

  /** { node, named_param_map }: the parser wraps every query, inner ones too, in such an object. */
  #statement(statement: JsonObject, scope: Scope | undefined, depth: number, lambdas: number): string[] {
    this.#keys(statement, ["node", "named_param_map"]);
    this.#push("query", statement.node, scope, depth, lambdas);
    return list(statement.named_param_map).map((entry) => text(object(entry).key));
  }

  #query(node: JsonObject, outer: Scope | undefined): void {
    const keys = QUERY_KEYS.get(text(node.type));
    if (keys === undefined) throw this.#construct(`query of kind ${spoken(node.type)}`, node);
    this.#keys(node, ["type", "modifiers", "cte_map", ...keys]);
    const scope = this.#commonTables(node.cte_map, outer);
    for (const modifier of list(node.modifiers)) this.#modifier(object(modifier), scope);
    if (node.type === "SELECT_NODE") {
      this.#expressions(node.select_list, scope);
      this.#optional("table", node.from_table, scope);
      this.#optional("expression", node.where_clause, scope);
      this.#expressions(node.group_expressions, scope);
      this.#optional("expression", node.having, scope);
      this.#optional("expression", node.qualify, scope);
      this.#sample(node.sample);
      return;
    }
    if (node.type === "RECURSIVE_CTE_NODE") {
      const inner = this.#name(text(node.cte_name), scope);
      this.#child("query", node.left, scope);
      this.#child("query", node.right, inner);
      this.#expressions(node.key_targets, scope);
      return;
    }
    this.#child("query", node.left, scope);
    this.#child("query", node.right, scope);
  }

  /** Each common table sees those before it, and the query sees all; a recursive one names itself in its own node. */
  #commonTables(map: Json | undefined, outer: Scope | undefined): Scope | undefined {
    if (map === undefined) return outer;
    const holder = object(map);
    this.#keys(holder, ["map"]);
    let scope = outer;
    for (const entry of list(holder.map)) {
      const { key, value } = object(entry);
      const table = object(value);
      this.#keys(table, ["aliases", "query", "materialized", "key_targets"]);
      const { depth, lambdas } = this.#here;
      this.#statement(object(table.query), scope, depth + 1, lambdas);
      this.#expressions(table.key_targets, scope);
      scope = this.#name(text(key), scope);
    }
    return scope;
  }

  /**
   * Should this walk and the engine ever disagree on where a common table can be seen, the engine would look the
   * name up among tables, views and files: so it must be one that none of the engine's own can have.
   */
  #name(name: string, outer: Scope | undefined): Scope {
    const folded = fold(name);
    if (
      !/^[\p{L}_][\p{L}\p{M}\p{N}_$ -]*$/u.test(name) ||
      /^(duckdb_|pg_|sqlite_|pragma_|which_)/.test(folded)
    ) {
      throw new TributaryError(
        "TRB-QUERY-CONSTRUCT",
        "sql: the name of a common table expression must be letters, digits and underscores, and not one of the engine's own",
      );
    }
    return { name: folded, outer };
  }

  #modifier(modifier: JsonObject, scope: Scope | undefined): void {
    switch (modifier.type) {
      case "ORDER_MODIFIER":
        this.#keys(modifier, ["type", "orders"]);
        this.#orders(modifier.orders, scope);
        return;
      case "LIMIT_MODIFIER":
      case "LIMIT_PERCENT_MODIFIER":
        this.#keys(modifier, ["type", "limit", "offset"]);
        this.#optional("expression", modifier.limit, scope);
        this.#optional("expression", modifier.offset, scope);
        return;
      case "DISTINCT_MODIFIER":
        this.#keys(modifier, ["type", "distinct_on_targets"]);
        this.#expressions(modifier.distinct_on_targets, scope);
        return;
      default:
        throw this.#construct(`modifier ${spoken(modifier.type)}`, modifier);
    }
  }

  #orders(orders: Json | undefined, scope: Scope | undefined): void {
    for (const order of list(orders)) {
      this.#keys(object(order), ["type", "null_order", "expression"]);
      this.#child("expression", object(order).expression, scope);
    }
  }

  #sample(sample: Json | undefined): void {
    if (sample === undefined) return;
    this.#keys(object(sample), ["sample_size", "is_percentage", "method", "seed"]);
  }

  // --- tables -------------------------------------------------------------------------------------------

  #table(node: JsonObject, scope: Scope | undefined): void {
    const keys = TABLE_KEYS.get(text(node.type));
    if (keys === undefined) throw this.#construct(`${spoken(node.type)} in FROM`, node);
    this.#keys(node, ["type", "alias", "sample", "query_location", ...keys]);
    this.#sample(node.sample);
    switch (node.type) {
      case "BASE_TABLE":
        this.#baseTable(node, scope);
        return;
      case "SUBQUERY": {
        const { depth, lambdas } = this.#here;
        this.#statement(object(node.subquery), scope, depth + 1, lambdas);
        return;
      }
      case "JOIN":
        if (!JOINS.has(text(node.ref_type))) throw this.#construct(`${spoken(node.ref_type)} join`, node);
        this.#child("table", node.left, scope);
        this.#child("table", node.right, scope);
        this.#optional("expression", node.condition, scope);
        return;
      case "EXPRESSION_LIST":
        for (const row of list(node.values)) this.#expressions(row, scope);
        return;
      case "TABLE_FUNCTION": {
        const call = object(node.function);
        this.#function(call, TABLE_FUNCTIONS, "a table function", scope);
        return;
      }
      default:
        return;
    }
  }

  #baseTable(node: JsonObject, scope: Scope | undefined): void {
    const name = text(node.table_name);
    const schema = optionalText(node.schema_name);
    if (schema === undefined) {
      for (let at = scope; at !== undefined; at = at.outer) if (at.name === fold(name)) return;
    }
    const found = this.#available.filter(
      ({ domain, model }) =>
        fold(model) === fold(name) && (schema === undefined || fold(domain) === fold(schema)),
    );
    const [table] = found;
    if (table === undefined) {
      const written = schema === undefined ? name : `${schema}.${name}`;
      throw this.#refuse("TRB-QUERY-TABLE", `${written}: not one of the tenant's tables`, node);
    }
    if (found.length > 1) {
      const choices = found.map(({ domain, model }) => `${domain}.${model}`).sort();
      throw this.#refuse("TRB-QUERY-TABLE", `${name}: ambiguous, write one of ${choices.join(", ")}`, node);
    }
    this.#tables.add(table);
  }

  // --- expressions --------------------------------------------------------------------------------------

  #expression(node: JsonObject, scope: Scope | undefined): void {
    const rule = EXPRESSIONS.get(text(node.class));
    if (rule === undefined || (rule.types !== undefined && !rule.types.has(text(node.type)))) {
      throw this.#construct(`expression ${spoken(node.type ?? null)}`, node);
    }
    this.#keys(node, ["class", "type", "alias", "query_location", ...rule.children, ...rule.other]);
    for (const key of rule.children) {
      const child = node[key];
      if (Array.isArray(child)) this.#expressions(child, scope);
      else this.#optional("expression", child, scope);
    }
    switch (node.class) {
      case "COLUMN_REF":
        this.#column(node);
        return;
      case "FUNCTION":
        this.#function(node, FUNCTIONS, "a function", scope);
        return;
      case "WINDOW":
        this.#functionName(node, FUNCTIONS, "a window function");
        this.#orders(node.orders, scope);
        this.#orders(node.arg_orders, scope);
        return;
      case "CASE":
        for (const branch of list(node.case_checks)) {
          this.#keys(object(branch), ["when_expr", "then_expr"]);
          this.#child("expression", object(branch).when_expr, scope);
          this.#child("expression", object(branch).then_expr, scope);
        }
        return;
      case "CAST":
        this.#type(object(node.cast_type), node);
        return;
      case "COLLATE":
        if (COLLATIONS.has(fold(text(node.collation)))) return;
        throw this.#construct("this collation", node);
      case "SUBQUERY": {
        const { depth, lambdas } = this.#here;
        this.#statement(object(node.subquery), scope, depth + 1, lambdas);
        return;
      }
      case "STAR":
        for (const entry of list(node.replace_list)) {
          this.#keys(object(entry), ["key", "value"]);
          this.#child("expression", object(entry).value, scope);
        }
        return;
      default:
        return;
    }
  }

  #function(node: JsonObject, allowed: ReadonlySet<string>, what: string, scope: Scope | undefined): void {
    this.#keys(node, [...["class", "type", "alias", "query_location"], ...FUNCTION_KEYS]);
    this.#functionName(node, allowed, what);
    if (node.export_state === true) throw this.#construct("EXPORT_STATE", node);
    if (allowed === TABLE_FUNCTIONS) {
      this.#expressions(node.children, scope);
      this.#optional("expression", node.filter, scope);
    }
    if (node.order_bys !== undefined) this.#modifier(object(node.order_bys), scope);
  }

  #functionName(node: JsonObject, allowed: ReadonlySet<string>, what: string): void {
    const name = text(node.function_name);
    const schema = optionalText(node.schema);
    if ((schema !== undefined && schema !== "main") || optionalText(node.catalog) !== undefined) {
      throw this.#refuse("TRB-QUERY-FUNCTION", `${name}: write the function without a prefix`, node);
    }
    if (!allowed.has(name.toLowerCase())) {
      throw this.#refuse("TRB-QUERY-FUNCTION", `${name}: not ${what} that queries may use`, node);
    }
  }

  #column(node: JsonObject): void {
    const names = list(node.column_names).map(text);
    const at = node.query_location;
    if (typeof at === "number" && Number.isSafeInteger(at)) this.#columnsAt.set(at, names.join("."));
  }

  /** Types nest no deeper than the brackets that wrote them, which were counted before parsing. */
  #type(type: JsonObject, node: JsonObject): void {
    this.#keys(type, ["id", "type_info"]);
    const info = type.type_info === undefined ? undefined : object(type.type_info);
    if (type.id === "UNBOUND") {
      this.#keys(info ?? {}, ["type", "name"]);
      if (NAMED_TYPES.has(fold(text(info?.name)))) return;
      throw this.#construct("this type", node);
    }
    if (!TYPES.has(text(type.id))) throw this.#construct("this type", node);
    if (info === undefined) return;
    this.#keys(info, ["type", "width", "scale", "child_type", "child_types", "size"]);
    if (info.child_type !== undefined) this.#type(object(info.child_type), node);
    for (const child of list(info.child_types)) {
      this.#keys(object(child), ["first", "second"]);
      this.#type(object(object(child).second), node);
    }
  }

  // --- the walk -----------------------------------------------------------------------------------------

  get #here(): { readonly depth: number; readonly lambdas: number } {
    return this.#current ?? { depth: 0, lambdas: 0 };
  }

  #push(
    kind: Task["kind"],
    node: Json | undefined,
    scope: Scope | undefined,
    depth: number,
    lambdas: number,
  ) {
    const child = object(node);
    const inside = child.class === "LAMBDA" ? lambdas + 1 : lambdas;
    if (inside > MAX_LAMBDAS) throw tooDeep();
    this.#pending.push({ kind, node: child, scope, depth, lambdas: inside });
  }

  #child(kind: Task["kind"], node: Json | undefined, scope: Scope | undefined): void {
    this.#push(kind, node, scope, this.#here.depth + 1, this.#here.lambdas);
  }

  #optional(kind: Task["kind"], node: Json | undefined, scope: Scope | undefined): void {
    if (node !== undefined && node !== null) this.#child(kind, node, scope);
  }

  #expressions(nodes: Json | undefined, scope: Scope | undefined): void {
    for (const node of list(nodes)) this.#child("expression", node, scope);
  }

  #keys(node: JsonObject, known: readonly string[]): void {
    for (const key of Object.keys(node)) {
      if (!known.includes(key)) throw this.#construct(spoken(key), node);
    }
  }

  // --- refusals -----------------------------------------------------------------------------------------

  #construct(what: string, node: JsonObject): TributaryError {
    return this.#refuse("TRB-QUERY-CONSTRUCT", `sql: ${what} is not allowed`, node);
  }

  #refuse(code: Code, message: string, node: JsonObject): TributaryError {
    const position = positionAt(
      this.#sql,
      typeof node.query_location === "number" ? node.query_location : undefined,
    );
    return new TributaryError(code, message, position === undefined ? undefined : { details: { position } });
  }

  #parseError(parsed: JsonObject): TributaryError {
    const message = optionalText(parsed.error_message) ?? "";
    if (message.startsWith("Only SELECT statements")) {
      return new TributaryError("TRB-QUERY-STATEMENT", "sql: expected a SELECT statement");
    }
    if (message.startsWith("Max expression depth") || message.startsWith("memory exhausted"))
      return tooDeep();
    const position = positionAt(this.#sql, Number(optionalText(parsed.position) ?? Number.NaN));
    if (position === undefined) return new TributaryError("TRB-QUERY-SYNTAX", "sql: cannot be parsed");
    return new TributaryError(
      "TRB-QUERY-SYNTAX",
      `sql: cannot be parsed at line ${position.line}, column ${position.column}`,
      { details: { position } },
    );
  }
}

// --- what is known of the parser's nodes ----------------------------------------------------------------

const QUERY_KEYS: ReadonlyMap<string, readonly string[]> = new Map([
  [
    "SELECT_NODE",
    [
      ...["select_list", "from_table", "where_clause", "group_expressions", "group_sets"],
      ...["aggregate_handling", "having", "sample", "qualify"],
    ],
  ],
  ["SET_OPERATION_NODE", ["setop_type", "left", "right", "setop_all"]],
  ["RECURSIVE_CTE_NODE", ["cte_name", "union_all", "left", "right", "aliases", "key_targets"]],
]);

/** Time travel (at_clause) and catalog_name are not among a base table's keys: they are refused. */
const TABLE_KEYS: ReadonlyMap<string, readonly string[]> = new Map([
  ["BASE_TABLE", ["schema_name", "table_name", "column_name_alias"]],
  ["SUBQUERY", ["subquery", "column_name_alias"]],
  ["JOIN", ["left", "right", "condition", "join_type", "ref_type", "using_columns", "delim_flipped"]],
  ["EXPRESSION_LIST", ["expected_names", "values"]],
  ["TABLE_FUNCTION", ["function", "column_name_alias", "with_ordinality"]],
  ["EMPTY", []],
]);

/** A positional join pairs rows by where they happen to be stored. */
const JOINS: ReadonlySet<string> = new Set(["REGULAR", "NATURAL", "CROSS", "ASOF"]);

const FUNCTION_KEYS = [
  ...["function_name", "schema", "catalog", "children", "filter", "order_bys", "distinct", "is_operator"],
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

const EXPRESSIONS: ReadonlyMap<string, ExpressionRule> = new Map<string, ExpressionRule>([
  ["BETWEEN", { children: ["input", "lower", "upper"], other: [] }],
  ["CASE", { children: ["else_expr"], other: ["case_checks"] }],
  ["CAST", { children: ["child"], other: ["cast_type", "try_cast"] }],
  ["COLLATE", { children: ["child"], other: ["collation"] }],
  ["COLUMN_REF", { children: [], other: ["column_names"] }],
  [
    "COMPARISON",
    {
      types: new Set([
        ...["COMPARE_EQUAL", "COMPARE_NOTEQUAL", "COMPARE_LESSTHAN", "COMPARE_GREATERTHAN"],
        ...["COMPARE_LESSTHANOREQUALTO", "COMPARE_GREATERTHANOREQUALTO"],
        ...["COMPARE_DISTINCT_FROM", "COMPARE_NOT_DISTINCT_FROM"],
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
        ...[
          "OPERATOR_COALESCE",
          "OPERATOR_UNPACK",
          "OPERATOR_NOT",
          "OPERATOR_IS_NULL",
          "OPERATOR_IS_NOT_NULL",
        ],
        ...["OPERATOR_TRY", "ARRAY_EXTRACT", "ARRAY_SLICE", "ARRAY_CONSTRUCTOR", "STRUCT_EXTRACT"],
        ...["COMPARE_IN", "COMPARE_NOT_IN", "GROUPING_FUNCTION"],
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
        ...[
          "relation_name",
          "exclude_list",
          "replace_list",
          "columns",
          "qualified_exclude_list",
          "rename_list",
        ],
      ],
    },
  ],
  ["SUBQUERY", { children: ["child"], other: ["subquery_type", "subquery", "comparison_type"] }],
  [
    "WINDOW",
    {
      children: [
        ...["children", "partitions", "start_expr", "end_expr", "offset_expr", "default_expr", "filter_expr"],
      ],
      other: [
        ...["function_name", "schema", "catalog", "orders", "arg_orders", "start", "end", "ignore_nulls"],
        ...["exclude_clause", "distinct"],
      ],
    },
  ],
]);

// --- reading the parser's JSON: anything of another shape is refused -------------------------------------

const isObject = (value: Json | undefined): value is JsonObject =>
  typeof value === "object" && value !== null && !Array.isArray(value);

const unknownShape = () => new TributaryError("TRB-QUERY-CONSTRUCT", "sql: this construct is not known");

function object(value: Json | undefined): JsonObject {
  if (!isObject(value)) throw unknownShape();
  return value;
}

function list(value: Json | undefined): readonly Json[] {
  if (value === undefined) return [];
  if (!Array.isArray(value)) throw unknownShape();
  return value as readonly Json[];
}

function text(value: Json | undefined): string {
  if (typeof value !== "string") throw unknownShape();
  return value;
}

const optionalText = (value: Json | undefined): string | undefined =>
  value === undefined || value === "" ? undefined : text(value);

/** The engine compares names without regard to the case of ASCII letters, quoted or not. */
const fold = (name: string): string => name.replace(/[A-Z]/g, (letter) => letter.toLowerCase());

/** OPERATOR_CAST → "operator cast": the parser's words, which hold nothing of the data. */
const spoken = (word: Json | undefined): string =>
  typeof word === "string" ? word.toLowerCase().replaceAll("_", " ") : "of an unknown kind";
