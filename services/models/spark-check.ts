import type { DescMessage } from "@bufbuild/protobuf";
import type { DuckDBConnection } from "@duckdb/node-api";
import { rowsOf } from "../base/duckdb.js";
import { type BoundModel, withRelation } from "./bind.js";
import { lineAt, placeOf } from "./place.js";
import { sparkPayload } from "./spark-payload.js";
import { type Argument, alike, CASTS, INSTEAD, type Kind, kindOf, RULES } from "./spark-rules.js";
import { textFindings } from "./spark-text.js";

/** What of a model does not mean the same on Spark. */
export interface SparkFinding {
  readonly model: string;
  /** "models/scm/files.sql, line 7". */
  readonly place: string;
  readonly found: string;
  readonly instead: string;
}

/**
 * Holds a bound model against the reviewed list of what DuckDB and Spark compute alike, by the kinds its expressions
 * have: operators, functions, casts, the payload's fields, the columns it yields. What is not on the list is told.
 */
export async function checkSpark(
  connection: DuckDBConnection,
  type: DescMessage,
  model: BoundModel,
): Promise<SparkFinding[]> {
  const findings: SparkFinding[] = [];
  const tell: Tell = (offset, found, instead) => {
    // What has no place of its own is given one beyond all.
    const line =
      offset === undefined || offset > model.sql.length * 4 ? undefined : lineAt(model.sql, offset);
    findings.push({ model: model.name, place: placeOf(model, line), found, instead });
  };
  const source = `"${model.entityType.replaceAll('"', '""')}"`;
  for (const { at, found, instead } of textFindings(model.sql, source)) {
    tell(Buffer.byteLength(model.sql.slice(0, at)), found, instead);
  }
  for (const { name, type: columnType } of model.columns) {
    if (!storable(columnType)) tell(undefined, `column "${name}" of type ${columnType}`, "another type");
  }
  const [[serialized]] = (await rowsOf(connection, "SELECT json_serialize_sql($1::VARCHAR)", [
    model.sql,
  ])) as [[string]];
  const { statements } = JSON.parse(serialized) as { statements: readonly { readonly node: Node }[] };
  const { unreadable } = sparkPayload(type);
  await withRelation(connection, type, () =>
    new SparkCheck(connection, unreadable, tell).select(statements[0]!.node, []),
  );
  return findings;
}

type Tell = (offset: number | undefined, found: string, instead: string) => void;

/** Whether Spark has the type, and all within it. */
const storable = (type: string): boolean =>
  !/\b(?:HUGEINT|U\w*INT\w*|TINYINT|INTERVAL|TIME|TIMESTAMP(?! WITH)|TIMESTAMP_\w+|UUID|BIT|UNION|ENUM|VARIANT|JSON)\b/.test(
    type.replaceAll(/"[^"]*"/g, "").replaceAll("TIMESTAMP WITH TIME ZONE", ""),
  );

/** A node of DuckDB's syntax tree, as it serializes it. */
interface Node {
  readonly [key: string]: unknown;
  readonly class?: string;
  readonly type?: string;
  readonly query_location?: number;
}
interface Cte {
  readonly key: string;
  readonly value: { readonly query?: { readonly node: Node } };
}

const nodes = (value: unknown): Node[] => (Array.isArray(value) ? value : value ? [value] : []) as Node[];
const COMPARED: readonly Kind[] = ["integer", "double", "text", "boolean", "date", "time", "null"];
const LITERAL_BOOLEAN = /^[tf]$/;

class SparkCheck {
  /** Kinds of the expressions of the SELECT at hand. */
  private kinds = new Map<Node, Kind>();

  constructor(
    private readonly connection: DuckDBConnection,
    private readonly unreadable: ReadonlyMap<string, string>,
    private readonly tell: Tell,
  ) {}

  /** Checks a SELECT and those it reads; `scope` are the CTEs before it. */
  async select(node: Node, scope: readonly Cte[]): Promise<void> {
    const own = (node.cte_map as { map?: Cte[] } | undefined)?.map ?? [];
    const ctes = [...scope];
    for (const cte of own) {
      if (cte.value.query !== undefined) await this.select(cte.value.query.node, ctes);
      ctes.push(cte);
    }
    const table = node.from_table as Node | undefined;
    if (table?.type === "SUBQUERY") await this.select((table.subquery as { node: Node }).node, ctes);
    const modifiers = nodes(node.modifiers).flatMap(({ orders }) => nodes(orders));
    const tops = [
      ...nodes(node.select_list).filter((item) => item.class !== "STAR"),
      ...nodes(node.where_clause),
      ...modifiers.map(({ expression }) => expression as Node),
    ];
    for (const star of nodes(node.select_list).filter((item) => item.class === "STAR")) this.star(star);
    this.kinds = await this.kindsOf(node, ctes, tops.flatMap(descendants));
    for (const top of tops) this.expression(top, undefined);
  }

  private star(star: Node): void {
    const plain = ["exclude_list", "replace_list", "rename_list", "qualified_exclude_list"].every(
      (name) => nodes(star[name]).length === 0,
    );
    if (!plain || star.columns === true || star.expr) {
      this.tell(star.query_location, "EXCLUDE, REPLACE, RENAME or COLUMNS", "the columns by name");
    }
    if (this.unreadable.size > 0) this.whole(star);
  }

  /** The types of expressions as DuckDB binds them where they stand; without those it can't bind alone. */
  private async kindsOf(node: Node, ctes: readonly Cte[], wanted: readonly Node[]): Promise<Map<Node, Kind>> {
    const describe = async (some: readonly Node[]): Promise<Kind[]> => {
      const alone = {
        ...node,
        cte_map: { map: ctes },
        select_list: some.map((each) => ({ ...each, alias: "" })),
        where_clause: undefined,
        modifiers: [],
      };
      const text = JSON.stringify({ error: false, statements: [{ node: alone, named_param_map: [] }] })
        // "No place": a number that JavaScript rounds.
        .replaceAll("18446744073709552000", "18446744073709551615");
      const [[sql]] = (await rowsOf(this.connection, "SELECT json_deserialize_sql($1::JSON)", [text])) as [
        [string],
      ];
      const types = await rowsOf(this.connection, `DESCRIBE ${sql}`);
      // NULL by itself is described as an integer.
      return types.map(([, type], at) => (isNull(some[at]!) ? "null" : kindOf(String(type))));
    };
    if (wanted.length === 0) return new Map();
    try {
      const kinds = await describe(wanted);
      return new Map(wanted.map((each, at) => [each, kinds[at]!]));
    } catch {
      // One of them stands on an alias: each alone, to find which.
    }
    const found = new Map<Node, Kind>();
    for (const each of wanted) {
      const [kind] = await describe([each]).catch(() => []);
      if (kind !== undefined) found.set(each, kind);
    }
    return found;
  }

  private expression(node: Node, parent: Node | undefined): void {
    const kind = this.kinds.get(node);
    const at = node.query_location;
    switch (node.class) {
      case "COLUMN_REF":
        if (kind === undefined)
          this.tell(at, `${names(node)}, an alias of the same SELECT`, "the expression itself");
        this.field(node);
        return;
      case "CONSTANT":
        if (kind === "other")
          this.tell(at, "a constant of a type that Spark has not", "a cast of a smaller one");
        return;
      case "CAST":
        this.cast(node);
        break;
      case "FUNCTION":
        this.call(node, parent);
        break;
      case "COMPARISON":
        this.compared(at, [node.left as Node, node.right as Node]);
        break;
      case "BETWEEN":
        this.compared(at, [node.input as Node, node.lower as Node, node.upper as Node]);
        break;
      case "CONJUNCTION":
        break;
      case "CASE": {
        const branches = nodes(node.case_checks).map(({ then_expr: then }) => then as Node);
        this.branches(at, [...branches, node.else_expr as Node]);
        break;
      }
      case "OPERATOR":
        this.operator(node);
        break;
      default:
        this.tell(at, node.class?.toLowerCase() ?? "an expression", "columns by expressions of the list");
        return;
    }
    for (const child of childrenOf(node)) this.expression(child, node);
  }

  private operator(node: Node): void {
    const children = nodes(node.children);
    switch (node.type) {
      case "OPERATOR_IS_NULL":
      case "OPERATOR_IS_NOT_NULL":
      case "OPERATOR_NOT":
      case "STRUCT_EXTRACT":
        return;
      case "COMPARE_IN":
      case "COMPARE_NOT_IN":
        this.compared(node.query_location, children);
        return;
      case "OPERATOR_COALESCE":
        this.branches(placeIn(node), children);
        return;
      case "ARRAY_EXTRACT":
        if (this.kinds.get(children[0]!) === "map" && typeof constantOf(children[1]) === "string") return;
        this.refuse(placeIn(node), "an element by its number", "array_extract");
        return;
      default:
        this.refuse(placeIn(node), (node.type ?? "operator").toLowerCase(), (node.type ?? "").toLowerCase());
    }
  }

  private call(node: Node, parent: Node | undefined): void {
    const name = String(node.function_name).toLowerCase();
    const at = node.query_location;
    const shown = /^\w/.test(name) ? `${name}()` : name;
    const rule = Object.hasOwn(RULES, name) ? RULES[name] : undefined;
    if (rule === undefined) {
      this.refuse(at, shown, name);
      return;
    }
    const args = nodes(node.children).map((child) => this.argument(child));
    if (!rule.fits(args)) this.tell(at, `${shown} of ${args.map(({ kind }) => kind).join(", ")}`, rule.takes);
    const into = parent?.class === "CAST" ? (parent.cast_type as { id: string }).id : undefined;
    if (rule.narrow && into !== "INTEGER" && into !== "BIGINT")
      this.tell(at, `${shown} by itself, an INT in Spark`, `cast(${shown} as integer) or as bigint`);
  }

  private argument(node: Node): Argument {
    const neverZero =
      String(node.function_name).toLowerCase() === "nullif" && constantOf(nodes(node.children)[1]) === 0;
    return { kind: this.kinds.get(node) ?? "other", constant: constantOf(node), neverZero };
  }

  private cast(node: Node): void {
    const child = node.child as Node;
    const into = (node.cast_type as { id: string }).id;
    const from = this.kinds.get(child) ?? "other";
    const at = placeIn(node);
    if (node.try_cast === true) {
      this.tell(at, "try_cast", "a typed field in the .proto");
      return;
    }
    const constant = constantOf(child);
    // true and false; and a date in its one form.
    if (into === "BOOLEAN" && typeof constant === "string" && LITERAL_BOOLEAN.test(constant)) return;
    if (into === "DATE" && typeof constant === "string" && /^\d{4}-\d\d-\d\d$/.test(constant)) return;
    if (from === "null" && Object.hasOwn(CASTS, into)) return;
    if (CASTS[into]?.includes(from)) return;
    this.tell(
      at,
      `a cast of ${from} to ${into}`,
      "a typed field in the .proto, or a cast that both make alike",
    );
  }

  /** Fields that Spark can't be made to read our way; `whole`: the payload as it is. */
  private field(node: Node): void {
    const path = (node.column_names as string[]).map((name) => name.toLowerCase());
    const at = path.indexOf("payload");
    if (at < 0) return;
    const field = path[at + 1];
    if (field === undefined) this.whole(node);
    for (const [name, reason] of this.unreadable) {
      if (name.toLowerCase() === field) this.tell(node.query_location, `payload.${name}`, reason);
    }
  }

  private whole(node: Node): void {
    if (this.unreadable.size === 0) return;
    this.tell(
      node.query_location,
      `the payload as a whole, in which Spark can't have ${[...this.unreadable.keys()].sort().join(", ")}`,
      "the fields by name",
    );
  }

  private compared(at: number | undefined, operands: readonly Node[]): void {
    const kinds = operands.map((each) => this.kinds.get(each) ?? "other");
    const fine =
      kinds.every((kind) => COMPARED.includes(kind) || kind === "decimal") && this.likeness(operands, kinds);
    if (!fine)
      this.tell(at, `a comparison of ${kinds.join(" and ")}`, "values of one kind, no lists or structs");
  }

  private branches(at: number | undefined, values: readonly Node[]): void {
    const kinds = values.map((each) => this.kinds.get(each) ?? "other");
    if (!alike(kinds)) this.tell(at, `a choice of ${kinds.join(" and ")}`, "values of one kind");
  }

  /** 0.5 is a decimal, and beside a double a double. */
  private likeness(operands: readonly Node[], kinds: readonly Kind[]): boolean {
    const settled = kinds.map((kind, at) =>
      kind === "decimal" && kinds.includes("double") && constantOf(operands[at]) !== undefined
        ? "double"
        : kind,
    );
    return alike(settled);
  }

  private refuse(at: number | undefined, found: string, name: string): void {
    this.tell(at, found, INSTEAD[name] ?? "what the list in transforms/README.md has");
  }
}

/** Expressions within an expression. */
function childrenOf(node: Node): Node[] {
  return [
    ...nodes(node.children),
    ...nodes(node.child),
    ...nodes(node.left),
    ...nodes(node.right),
    ...nodes(node.input),
    ...nodes(node.lower),
    ...nodes(node.upper),
    ...nodes(node.case_checks).flatMap((check) => [check.when_expr as Node, check.then_expr as Node]),
    ...nodes(node.else_expr),
  ];
}

const descendants = (node: Node): Node[] => [node, ...childrenOf(node).flatMap(descendants)];
const isNull = ({ class: kind, value }: Node): boolean =>
  kind === "CONSTANT" && (value as { is_null?: boolean }).is_null === true;
const names = (node: Node): string => (node.column_names as string[]).join(".");
/** Of an operator that has no place of its own. */
const placeIn = (node: Node): number | undefined =>
  descendants(node).find(({ query_location: at }) => at !== undefined && at < 2 ** 53)?.query_location;

function constantOf(node: Node | undefined): unknown {
  if (node?.class !== "CONSTANT") return undefined;
  return (node.value as { value?: unknown }).value;
}
