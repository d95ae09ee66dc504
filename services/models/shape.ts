import type { DuckDBConnection } from "@duckdb/node-api";
import { rowsOf } from "../base/duckdb.js";
import type { TributaryError } from "../base/errors.js";
import { unstableFunctions, VALUE_WORDS } from "./functions.js";
import { invalid, lineAt } from "./place.js";
import type { Model } from "./project.js";

const KEYS = ["tenant_id", "entity_id"];

/**
 * A model maps each event by itself to rows that keep their event's key: state is then a function of the set of
 * events (I3), however they are batched, and no row can pass for another tenant's (I5). So a model is a chain of
 * SELECTs over its one source(), without aggregates, windows, joins, subqueries in expressions, limits, and without
 * anything that tells one run from another; and every SELECT of the chain hands tenant_id and entity_id on by name.
 * Returns the payload's fields that the model names, in lower case; undefined when it may read any.
 * Errors: TRB-MODEL-INVALID, naming the construct.
 */
export async function checkShape(
  connection: DuckDBConnection,
  model: Model,
): Promise<ReadonlySet<string> | undefined> {
  const [[serialized]] = (await rowsOf(
    connection,
    "SELECT json_serialize_sql($1::VARCHAR, skip_null := true, skip_empty := true, skip_default := true)",
    [model.sql],
  )) as [[string]];
  const parsed = JSON.parse(serialized) as Parsed;
  const [statement, ...others] = parsed.statements ?? [];
  if (parsed.error || statement === undefined || others.length > 0) {
    const { error_message: message, position } = parsed;
    const line = position === undefined ? undefined : lineAt(model.sql, Number(position));
    throw invalid(model, message ?? "expected exactly one SELECT", line);
  }
  const check = new ShapeCheck(model, await unstableFunctions(connection));
  check.select(statement.node, new Map());
  return check.wholePayload ? undefined : check.fields;
}

const FROM_CONSTRUCTS: Readonly<Record<string, string>> = {
  JOIN: "a join",
  TABLE_FUNCTION: "a table function",
  EXPRESSION_LIST: "VALUES",
  PIVOT: "PIVOT",
  SHOW_REF: "SHOW",
  EMPTY: "a SELECT without FROM",
};

const NODE_CONSTRUCTS: Readonly<Record<string, string>> = {
  SET_OPERATION_NODE: "UNION, INTERSECT or EXCEPT",
  RECURSIVE_CTE_NODE: "a recursive CTE",
};

class ShapeCheck {
  private at: number | undefined;
  /** Fields of the payload that are named, and whether it is handed on as a whole. */
  readonly fields = new Set<string>();
  wholePayload = false;

  constructor(
    private readonly model: Model,
    private readonly unstable: ReadonlyMap<string, string>,
  ) {}

  /** Checks a SELECT and what it reads; `ctes` are those in scope. */
  select(node: Node, outer: ReadonlyMap<string, Node>): void {
    if (node.type !== "SELECT_NODE") this.refuse(NODE_CONSTRUCTS[node.type ?? ""] ?? `${node.type}`);
    const ctes = new Map(outer);
    for (const { key, value } of node.cte_map?.map ?? []) {
      if (key.toLowerCase() === this.model.entityType.toLowerCase()) {
        throw this.refused(`a CTE bears the name of the source, "${key}"`);
      }
      this.renames(value.aliases, `the CTE "${key}"`);
      if (value.query === undefined) this.refuse(`the CTE "${key}", which is no SELECT`);
      ctes.set(key.toLowerCase(), value.query.node);
    }
    if (node.sample !== undefined) this.refuse("a sample");
    if (node.aggregate_handling !== undefined && node.aggregate_handling !== "STANDARD_HANDLING") {
      this.refuse("GROUP BY");
    }
    if (node.group_expressions !== undefined || node.group_sets !== undefined || node.having !== undefined) {
      this.refuse("GROUP BY");
    }
    if (node.qualify !== undefined) this.refuse("QUALIFY");
    for (const modifier of node.modifiers ?? []) {
      if (modifier.type !== "ORDER_MODIFIER") {
        this.look(modifier.limit);
        this.refuse(modifier.type === "DISTINCT_MODIFIER" ? "DISTINCT" : "LIMIT");
      }
    }
    const relation = this.from(node.from_table, ctes);
    this.keys(node.select_list ?? [], relation);
    for (const item of node.select_list ?? []) {
      this.expression(item.class === "STAR" ? item.replace_list : item);
    }
    this.expression(node.where_clause);
    this.expression(node.modifiers);
  }

  /** Checks what is read; returns the name it goes by. */
  private from(table: Node | undefined, ctes: ReadonlyMap<string, Node>): string {
    this.look(table);
    const type = table?.type ?? "EMPTY";
    if (table === undefined || (type !== "BASE_TABLE" && type !== "SUBQUERY")) {
      this.refuse(FROM_CONSTRUCTS[type] ?? type);
    }
    if (table.sample !== undefined) this.refuse("a sample");
    if (table.at_clause !== undefined) this.refuse("AT");
    this.renames(table.column_name_alias, "a relation");
    if (type === "SUBQUERY") {
      this.select(table.subquery!.node, ctes);
      return table.alias ?? "";
    }
    const name = table.table_name ?? "";
    const plain = table.schema_name === undefined && table.catalog_name === undefined;
    const cte = plain ? ctes.get(name.toLowerCase()) : undefined;
    if (!plain || name !== this.model.entityType) {
      if (cte === undefined) throw this.refused(`reads "${name}"; expected its source() alone`);
      // Without itself: what it reads was defined before it.
      this.select(cte, new Map([...ctes].filter(([key]) => key !== name.toLowerCase())));
    }
    return table.alias ?? name;
  }

  private renames(names: readonly string[] | undefined, what: string): void {
    if (names !== undefined && names.length > 0) this.refuse(`a column list behind ${what}`);
  }

  /** Each key stands in the list once: by name, or in a star. */
  private keys(list: readonly Node[], relation: string): void {
    const found = new Set<string>();
    for (const item of list) {
      this.look(item);
      if (item.class === "STAR") {
        this.wholePayload = true;
        this.star(item, relation);
        for (const key of KEYS) found.add(key);
        continue;
      }
      const names = item.column_names ?? [];
      const name = (item.alias ?? names.at(-1))?.toLowerCase();
      if (name === undefined || !KEYS.includes(name)) continue;
      const own =
        item.class === "COLUMN_REF" &&
        names.at(-1)?.toLowerCase() === name &&
        (names.length === 1 || (names.length === 2 && names[0]!.toLowerCase() === relation.toLowerCase()));
      if (!own) {
        throw this.refused(`column "${name}": expected the source's own ${name}, not an expression`);
      }
      found.add(name);
    }
    for (const key of KEYS) {
      if (!found.has(key)) throw this.refused(`column "${key}": expected in every SELECT of the model`);
    }
  }

  private star(item: Node, relation: string): void {
    if (item.columns === true || item.expr !== undefined) this.refuse("COLUMNS() or a star with a pattern");
    if (item.rename_list !== undefined) this.refuse("a star with RENAME");
    if (item.relation_name !== undefined && item.relation_name.toLowerCase() !== relation.toLowerCase()) {
      this.refuse(`${item.relation_name}.*, which is not what it reads`);
    }
    const touched = [
      ...(item.replace_list ?? []).map(({ key }) => key),
      ...(item.exclude_list ?? []).map((name) => (typeof name === "string" ? name : (name.column ?? ""))),
      ...(item.qualified_exclude_list ?? []).map(({ column }) => column ?? ""),
    ];
    const key = touched.find((name) => KEYS.includes(name.toLowerCase()));
    if (key !== undefined) throw this.refused(`column "${key}": a star must not replace or exclude it`);
  }

  /** Walks an expression, or anything made of expressions. */
  private expression(value: unknown): void {
    if (Array.isArray(value)) {
      for (const item of value) this.expression(item);
      return;
    }
    if (typeof value !== "object" || value === null) return;
    const node = value as Node;
    this.look(node);
    switch (node.class) {
      case "SUBQUERY":
        this.refuse("a subquery in an expression");
        break;
      case "WINDOW":
        this.refuse("a window function");
        break;
      case "STAR":
        this.refuse("a star in an expression");
        break;
      case "POSITIONAL_REFERENCE":
        this.refuse("a column by position");
        break;
      case "COLUMN_REF": {
        this.payloadFields(node.column_names ?? []);
        const [name, ...rest] = node.column_names ?? [];
        if (rest.length === 0 && VALUE_WORDS.has(name?.toLowerCase() ?? "")) {
          throw this.refused(`calls ${name}; equal events must give equal rows`);
        }
        return;
      }
      case "FUNCTION": {
        const name = node.function_name?.toLowerCase() ?? "";
        if (name === "unnest" || name === "unlist") this.refuse("unnest(): a model yields one row an event");
        const reason = this.unstable.get(name);
        if (reason !== undefined) throw this.refused(`calls ${name}(), ${reason}`);
      }
    }
    for (const child of Object.values(node)) this.expression(child);
  }

  /** `payload.x`, `relation.payload.x.y`: x. A name that only looks like it costs nothing but a rebuild. */
  private payloadFields(names: readonly string[]): void {
    for (const [at, name] of names.entries()) {
      if (name.toLowerCase() !== "payload") continue;
      const field = names[at + 1];
      if (field === undefined) this.wholePayload = true;
      else this.fields.add(field.toLowerCase());
    }
  }

  private refuse(construct: string): never {
    throw this.refused(`uses ${construct}; a model maps each event by itself`);
  }

  /** What was looked at last is what is at fault. */
  private refused(message: string): TributaryError {
    return invalid(this.model, message, this.at === undefined ? undefined : lineAt(this.model.sql, this.at));
  }

  private look(node: Node | undefined): void {
    if (node?.query_location !== undefined) this.at = node.query_location;
  }
}

interface Parsed {
  readonly error?: boolean;
  readonly error_message?: string;
  /** Of the error, in bytes. */
  readonly position?: string;
  readonly statements?: readonly { readonly node: Node }[];
}

/** The parts of DuckDB's serialized syntax tree that matter here. */
interface Node {
  readonly type?: string;
  readonly class?: string;
  readonly alias?: string;
  /** Where it stands in the SQL, in bytes. */
  readonly query_location?: number;
  readonly select_list?: readonly Node[];
  readonly from_table?: Node;
  readonly where_clause?: Node;
  readonly limit?: Node;
  readonly cte_map?: {
    readonly map?: readonly {
      readonly key: string;
      readonly value: { readonly aliases?: readonly string[]; readonly query?: { readonly node: Node } };
    }[];
  };
  readonly modifiers?: readonly Node[];
  readonly aggregate_handling?: string;
  readonly group_expressions?: unknown;
  readonly group_sets?: unknown;
  readonly having?: unknown;
  readonly qualify?: unknown;
  readonly sample?: unknown;
  readonly at_clause?: unknown;
  readonly table_name?: string;
  readonly schema_name?: string;
  readonly catalog_name?: string;
  readonly subquery?: { readonly node: Node };
  readonly column_name_alias?: readonly string[];
  readonly column_names?: readonly string[];
  readonly function_name?: string;
  readonly columns?: boolean;
  readonly expr?: unknown;
  readonly relation_name?: string;
  readonly rename_list?: unknown;
  readonly replace_list?: readonly { readonly key: string }[];
  readonly exclude_list?: readonly (string | { readonly column?: string })[];
  readonly qualified_exclude_list?: readonly { readonly column?: string }[];
}
