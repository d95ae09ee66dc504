import { TributaryError } from "../base/errors.js";
import { COLLATIONS, FUNCTIONS, TABLE_FUNCTIONS } from "./allowed-functions.js";
import { refusedArguments } from "./function-rules.js";
import { isCommonTable, type Scope, type TableName, tableNamed, withCommonTable } from "./names.js";
import { Refusals } from "./refusals.js";
import { tooDeep } from "./sql-text.js";
import {
  EXPRESSIONS,
  FUNCTION_KEYS,
  fold,
  isAllowedType,
  JOINS,
  type Json,
  type JsonObject,
  list,
  object,
  optionalText,
  parseRefusal,
  QUERY_KEYS,
  spoken,
  TABLE_KEYS,
  text,
} from "./syntax.js";

/** What may run, and what it needs. */
export interface GatedQuery<Table extends TableName> {
  /** The tenant's tables the query reads, each once. */
  readonly tables: readonly Table[];
  /** Parameters, by the names the engine knows them by: "1", "2", … or names without the dollar sign. */
  readonly parameters: readonly string[];
  /** The user's own column references, by the byte offset at which they stand: names errors may repeat. */
  readonly columnsAt: ReadonlyMap<number, string>;
  /** Whether it asks which tables and columns there are. */
  readonly readsCatalog: boolean;
}

/** What SHOW may name, as the parser writes it, and the engine's views of what a session holds. */
const SHOWN: ReadonlySet<string> = new Set(['"tables"', "__show_tables_expanded"]);
const CATALOG_VIEWS: ReadonlySet<string> = new Set(["tables", "columns", "schemata"]);
/** Expressions, queries and table references inside one another. Bind time grows faster than depth. */
const MAX_DEPTH = 100;
/** Each lambda inside another doubles the time to bind. JSON arrows are parsed as lambdas too. */
const MAX_LAMBDAS = 12;

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
export function checkQuery<Table extends TableName>(
  sql: string,
  parsed: string,
  tables: readonly Table[],
): GatedQuery<Table> {
  return new Gate(sql, tables).check(sql, JSON.parse(parsed) as JsonObject);
}

class Gate<Table extends TableName> {
  private readonly refusals: Refusals;
  private readonly available: readonly Table[];
  private readonly tables = new Set<Table>();
  private readonly columnsAt = new Map<number, string>();
  private readsCatalog = false;
  private readonly pending: Task[] = [];
  private current: Task | undefined;

  constructor(sql: string, available: readonly Table[]) {
    this.refusals = new Refusals(sql);
    this.available = available;
  }

  check(sql: string, parsed: JsonObject): GatedQuery<Table> {
    if (parsed.error !== false) throw parseRefusal(sql, parsed);
    const statements = list(parsed.statements);
    const [statement] = statements;
    if (statements.length !== 1 || statement === undefined) {
      throw new TributaryError(
        "TRB-QUERY-STATEMENT",
        `sql: expected exactly one SELECT statement, found ${statements.length}`,
      );
    }
    const parameters = this.statement(object(statement), undefined, 0, 0);
    for (let task = this.pending.pop(); task !== undefined; task = this.pending.pop()) {
      this.current = task;
      if (task.depth > MAX_DEPTH) throw tooDeep();
      if (task.kind === "query") this.query(task.node, task.scope);
      else if (task.kind === "table") this.table(task.node, task.scope);
      else this.expression(task.node, task.scope);
    }
    const refused = this.refusals.ofFunctions();
    if (refused !== undefined) throw refused;
    const { columnsAt, readsCatalog } = this;
    return { tables: [...this.tables], parameters, columnsAt, readsCatalog };
  }

  // --- queries ------------------------------------------------------------------------------------------

  /** { node, named_param_map }: the parser wraps every query, inner ones too, in such an object. */
  private statement(
    statement: JsonObject,
    scope: Scope | undefined,
    depth: number,
    lambdas: number,
  ): string[] {
    this.keys(statement, ["node", "named_param_map"]);
    this.push("query", statement.node, scope, depth, lambdas);
    return list(statement.named_param_map).map((entry) => text(object(entry).key));
  }

  private query(node: JsonObject, outer: Scope | undefined): void {
    const keys = QUERY_KEYS.get(text(node.type));
    if (keys === undefined) throw this.refusals.construct(`query of kind ${spoken(node.type)}`, node);
    this.keys(node, ["type", "modifiers", "cte_map", ...keys]);
    const scope = this.commonTables(node.cte_map, outer);
    for (const modifier of list(node.modifiers)) this.modifier(object(modifier), scope);
    if (node.type === "SELECT_NODE") {
      this.expressions(node.select_list, scope);
      this.optional("table", node.from_table, scope);
      this.optional("expression", node.where_clause, scope);
      this.expressions(node.group_expressions, scope);
      this.optional("expression", node.having, scope);
      this.optional("expression", node.qualify, scope);
      this.sample(node.sample);
      return;
    }
    if (node.type === "RECURSIVE_CTE_NODE") {
      const inner = withCommonTable(text(node.cte_name), scope);
      this.child("query", node.left, scope);
      this.child("query", node.right, inner);
      this.expressions(node.key_targets, scope);
      return;
    }
    this.child("query", node.left, scope);
    this.child("query", node.right, scope);
  }

  /** Each common table sees those before it, and the query sees all; a recursive one names itself in its own node. */
  private commonTables(map: Json | undefined, outer: Scope | undefined): Scope | undefined {
    if (map === undefined) return outer;
    const holder = object(map);
    this.keys(holder, ["map"]);
    let scope = outer;
    for (const entry of list(holder.map)) {
      const { key, value } = object(entry);
      const table = object(value);
      this.keys(table, ["aliases", "query", "materialized", "key_targets"]);
      const { depth, lambdas } = this.here;
      this.statement(object(table.query), scope, depth + 1, lambdas);
      this.expressions(table.key_targets, scope);
      scope = withCommonTable(text(key), scope);
    }
    return scope;
  }

  private modifier(modifier: JsonObject, scope: Scope | undefined): void {
    switch (modifier.type) {
      case "ORDER_MODIFIER":
        this.keys(modifier, ["type", "orders"]);
        this.orders(modifier.orders, scope);
        return;
      case "LIMIT_MODIFIER":
      case "LIMIT_PERCENT_MODIFIER":
        this.keys(modifier, ["type", "limit", "offset"]);
        this.optional("expression", modifier.limit, scope);
        this.optional("expression", modifier.offset, scope);
        return;
      case "DISTINCT_MODIFIER":
        this.keys(modifier, ["type", "distinct_on_targets"]);
        this.expressions(modifier.distinct_on_targets, scope);
        return;
      default:
        throw this.refusals.construct(`modifier ${spoken(modifier.type)}`, modifier);
    }
  }

  private orders(orders: Json | undefined, scope: Scope | undefined): void {
    for (const order of list(orders)) {
      this.keys(object(order), ["type", "null_order", "expression"]);
      this.child("expression", object(order).expression, scope);
    }
  }

  private sample(sample: Json | undefined): void {
    if (sample === undefined) return;
    this.keys(object(sample), ["sample_size", "is_percentage", "method", "seed"]);
  }

  // --- tables -------------------------------------------------------------------------------------------

  private table(node: JsonObject, scope: Scope | undefined): void {
    const keys = TABLE_KEYS.get(text(node.type));
    if (keys === undefined) throw this.refusals.construct(`${spoken(node.type)} in FROM`, node);
    this.keys(node, ["type", "alias", "sample", "query_location", ...keys]);
    this.sample(node.sample);
    switch (node.type) {
      case "BASE_TABLE":
        this.baseTable(node, scope);
        return;
      case "SUBQUERY": {
        const { depth, lambdas } = this.here;
        this.statement(object(node.subquery), scope, depth + 1, lambdas);
        return;
      }
      case "JOIN":
        if (!JOINS.has(text(node.ref_type)))
          throw this.refusals.construct(`${spoken(node.ref_type)} join`, node);
        this.child("table", node.left, scope);
        this.child("table", node.right, scope);
        this.optional("expression", node.condition, scope);
        return;
      case "EXPRESSION_LIST":
        for (const row of list(node.values)) this.expressions(row, scope);
        return;
      case "TABLE_FUNCTION": {
        const call = object(node.function);
        this.function(call, TABLE_FUNCTIONS, scope);
        return;
      }
      case "PIVOT":
        this.pivot(node, scope);
        return;
      case "SHOW_REF":
        this.show(node, scope);
        return;
      default:
        return;
    }
  }

  /** PIVOT with its values, and UNPIVOT. Values taken from a query or a type would have to be read beforehand. */
  private pivot(node: JsonObject, scope: Scope | undefined): void {
    this.child("table", node.source, scope);
    this.expressions(node.aggregates, scope);
    for (const pivot of list(node.pivots)) {
      this.keys(object(pivot), ["pivot_expressions", "unpivot_names", "entries"]);
      this.expressions(object(pivot).pivot_expressions, scope);
      for (const entry of list(object(pivot).entries)) {
        this.keys(object(entry), ["values", "star_expr", "alias"]);
        this.optional("expression", object(entry).star_expr, scope);
      }
    }
  }

  /** SHOW TABLES and SHOW ALL TABLES; DESCRIBE and SUMMARIZE of a query, which is looked at like any other. */
  private show(node: JsonObject, scope: Scope | undefined): void {
    const { show_type: type, table_name: name, query } = node;
    if ((type === "DESCRIBE" || type === "SUMMARY") && query !== undefined && name === undefined) {
      this.child("query", query, scope);
      return;
    }
    if (type !== "SHOW_UNQUALIFIED" || query !== undefined || !SHOWN.has(text(name))) {
      throw this.refusals.construct("SHOW of anything but TABLES", node);
    }
    this.readsCatalog = true;
  }

  private baseTable(node: JsonObject, scope: Scope | undefined): void {
    const name = text(node.table_name);
    const schema = optionalText(node.schema_name);
    if (schema === undefined && isCommonTable(name, scope)) return;
    if (schema !== undefined && fold(schema) === "information_schema" && CATALOG_VIEWS.has(fold(name))) {
      this.readsCatalog = true;
      return;
    }
    const table = tableNamed(this.available, name, schema);
    if (typeof table === "string") throw this.refusals.at("TRB-QUERY-TABLE", table, node);
    this.tables.add(table);
  }

  private expression(node: JsonObject, scope: Scope | undefined): void {
    const rule = EXPRESSIONS.get(text(node.class));
    if (rule === undefined || (rule.types !== undefined && !rule.types.has(text(node.type)))) {
      throw this.refusals.construct(`expression ${spoken(node.type ?? null)}`, node);
    }
    this.keys(node, ["class", "type", "alias", "query_location", ...rule.children, ...rule.other]);
    for (const key of rule.children) {
      const child = node[key];
      if (Array.isArray(child)) this.expressions(child, scope);
      else this.optional("expression", child, scope);
    }
    switch (node.class) {
      case "COLUMN_REF":
        this.column(node);
        return;
      case "FUNCTION":
        this.function(node, FUNCTIONS, scope);
        return;
      case "WINDOW":
        this.functionName(node, FUNCTIONS);
        this.orders(node.orders, scope);
        this.orders(node.arg_orders, scope);
        return;
      case "CASE":
        for (const branch of list(node.case_checks)) {
          this.keys(object(branch), ["when_expr", "then_expr"]);
          this.child("expression", object(branch).when_expr, scope);
          this.child("expression", object(branch).then_expr, scope);
        }
        return;
      case "CAST":
        if (!isAllowedType(object(node.cast_type))) throw this.refusals.construct("this type", node);
        return;
      case "COLLATE":
        if (COLLATIONS.has(fold(text(node.collation)))) return;
        throw this.refusals.construct("this collation", node);
      case "SUBQUERY": {
        const { depth, lambdas } = this.here;
        this.statement(object(node.subquery), scope, depth + 1, lambdas);
        return;
      }
      case "STAR":
        for (const entry of list(node.replace_list)) {
          this.keys(object(entry), ["key", "value"]);
          this.child("expression", object(entry).value, scope);
        }
        return;
      default:
        return;
    }
  }

  private function(node: JsonObject, allowed: ReadonlySet<string>, scope: Scope | undefined): void {
    this.keys(node, ["class", "type", "alias", "query_location", ...FUNCTION_KEYS]);
    this.functionName(node, allowed);
    if (node.export_state === true) throw this.refusals.construct("EXPORT_STATE", node);
    if (allowed === TABLE_FUNCTIONS) {
      this.expressions(node.children, scope);
      this.optional("expression", node.filter, scope);
    }
    if (node.order_bys !== undefined) this.modifier(object(node.order_bys), scope);
  }

  private functionName(node: JsonObject, allowed: ReadonlySet<string>): void {
    const name = text(node.function_name);
    const schema = optionalText(node.schema);
    if ((schema !== undefined && schema !== "main") || optionalText(node.catalog) !== undefined) {
      throw this.refusals.at("TRB-QUERY-FUNCTION", `${name}: write the function without a prefix`, node);
    }
    const folded = name.toLowerCase();
    if (!allowed.has(folded)) this.refusals.noteFunction(name, node);
    else {
      const refused = refusedArguments(folded, node.children);
      if (refused !== undefined) throw this.refusals.at("TRB-QUERY-FUNCTION", refused, node);
    }
  }

  private column(node: JsonObject): void {
    const names = list(node.column_names).map(text);
    const at = node.query_location;
    if (typeof at === "number" && Number.isSafeInteger(at)) this.columnsAt.set(at, names.join("."));
  }

  private get here(): { readonly depth: number; readonly lambdas: number } {
    return this.current ?? { depth: 0, lambdas: 0 };
  }

  private push(
    kind: Task["kind"],
    node: Json | undefined,
    scope: Scope | undefined,
    depth: number,
    lambdas: number,
  ) {
    const child = object(node);
    const inside = child.class === "LAMBDA" ? lambdas + 1 : lambdas;
    if (inside > MAX_LAMBDAS) throw tooDeep();
    this.pending.push({ kind, node: child, scope, depth, lambdas: inside });
  }

  private child(kind: Task["kind"], node: Json | undefined, scope: Scope | undefined): void {
    this.push(kind, node, scope, this.here.depth + 1, this.here.lambdas);
  }

  private optional(kind: Task["kind"], node: Json | undefined, scope: Scope | undefined): void {
    if (node !== undefined && node !== null) this.child(kind, node, scope);
  }

  private expressions(nodes: Json | undefined, scope: Scope | undefined): void {
    for (const node of list(nodes)) this.child("expression", node, scope);
  }

  private keys(node: JsonObject, known: readonly string[]): void {
    for (const key of Object.keys(node)) {
      if (!known.includes(key)) throw this.refusals.construct(spoken(key), node);
    }
  }
}
