import type { DescMessage } from "@bufbuild/protobuf";
import { z } from "zod";
import { identifier, literal } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";

/** Where one value of an event comes from: a column, a constant, or the path of the file. */
const part = z.union([
  /** A column, or a field of one: `after.key`. A column that bears the whole name comes first. */
  z.string().min(1),
  z.strictObject({ constant: z.union([z.string(), z.number(), z.boolean()]) }),
  /** A regular expression with one group, which is searched for in the file's path below the source. */
  z.strictObject({ path: z.string().min(1) }),
]);
export type Part = z.infer<typeof part>;

/**
 * How rows of foreign columns become events. A payload that is not mentioned takes its fields from the columns of their
 * names (as in the .proto file or in JSON).
 */
export const mappingShape = z.strictObject({
  tenant: part,
  entityId: part,
  /** On the scale of the versions that producers send; or the constant 0, which loses to all of these. */
  version: part,
  occurredAt: part.optional(),
  payload: z.record(z.string(), part).optional(),
});
export type Mapping = z.infer<typeof mappingShape>;

export interface SourceColumn {
  readonly name: string;
  /** DuckDB's spelling. */
  readonly type: string;
}

/** SQL over a source's columns, for rows of one file. */
export interface BoundMapping {
  readonly tenant: string;
  readonly entityId: string;
  readonly version: string;
  /** NULL where events have none. */
  readonly occurredAt: string;
  /** By names of the payload's fields. */
  readonly payload: Readonly<Record<string, string>>;
}

/** What a mapping passes over: to be looked at by whoever starts a job. */
export interface Leftover {
  readonly fields: readonly string[];
  readonly columns: readonly string[];
}

/**
 * A mapping that fits columns and descriptor. Errors: TRB-BULK-MAPPING, naming what does not, and what was expected.
 */
export class CheckedMapping {
  private readonly payload: ReadonlyMap<string, Part>;
  private readonly used = new Set<string>();

  constructor(
    private readonly mapping: Mapping,
    private readonly columns: readonly SourceColumn[],
    private readonly type: DescMessage,
  ) {
    this.payload = mapping.payload === undefined ? this.byName() : this.given(mapping.payload);
    // Whatever is wrong is told of before the first file is read.
    for (const [name, value] of this.parts()) this.sqlOf(name, value, undefined);
    for (const [, { path }] of this.paths()) groupOf(path);
  }

  get leftover(): Leftover {
    return {
      fields: this.type.fields.map(({ name }) => name).filter((name) => !this.payload.has(name)),
      columns: this.columns.map(({ name }) => name).filter((name) => !this.used.has(name)),
    };
  }

  /** For the rows of a file. Errors: TRB-BULK-MAPPING where its path has not what is looked for. */
  of(path: string): BoundMapping {
    const sql = (name: string, value: Part) => this.sqlOf(name, value, path);
    const { tenant, entityId, version, occurredAt } = this.mapping;
    return {
      tenant: sql("tenant", tenant),
      entityId: sql("entityId", entityId),
      version: sql("version", version),
      occurredAt: occurredAt === undefined ? "NULL" : sql("occurredAt", occurredAt),
      payload: Object.fromEntries(
        [...this.payload].map(([name, value]) => [name, sql(`payload.${name}`, value)]),
      ),
    };
  }

  private *parts(): Generator<[string, Part]> {
    const { tenant, entityId, version, occurredAt } = this.mapping;
    yield ["tenant", tenant];
    yield ["entityId", entityId];
    yield ["version", version];
    if (occurredAt !== undefined) yield ["occurredAt", occurredAt];
    for (const [name, value] of this.payload) yield [`payload.${name}`, value];
  }

  private *paths(): Generator<[string, { readonly path: string }]> {
    for (const [name, value] of this.parts())
      if (typeof value === "object" && "path" in value) yield [name, value];
  }

  private byName(): Map<string, Part> {
    const names = new Set(this.columns.map(({ name }) => name));
    const found = this.type.fields.flatMap(({ name, jsonName }): [string, Part][] => {
      const column = [name, jsonName].find((one) => names.has(one));
      return column === undefined ? [] : [[name, column]];
    });
    if (found.length === 0) {
      const expected = `payload: expected columns named as fields of ${this.type.typeName}, or a mapping of these`;
      throw new TributaryError("TRB-BULK-MAPPING", expected);
    }
    return new Map(found);
  }

  private given(payload: Readonly<Record<string, Part>>): Map<string, Part> {
    const fields = new Map<string, Part>();
    for (const [given, value] of Object.entries(payload)) {
      const field = this.type.fields.find(({ name, jsonName }) => name === given || jsonName === given);
      if (field === undefined) throw wrong(`payload.${shown(given)}`, `a field of ${this.type.typeName}`);
      if (fields.has(field.name)) throw wrong(`payload.${field.name}`, "it once, by one of its names");
      fields.set(field.name, value);
    }
    return fields;
  }

  /** Without a path what stands in its place, to be bound. */
  private sqlOf(name: string, value: Part, path: string | undefined): string {
    if (typeof value === "string") return this.columnOf(name, value);
    if ("constant" in value) {
      const { constant } = value;
      return typeof constant === "string" ? literal(constant) : String(constant);
    }
    if (path === undefined) return "''";
    const found = groupOf(value.path).exec(path)?.[1];
    if (found === undefined) throw wrong(name, "something in the file's path that its expression finds");
    return literal(found);
  }

  private columnOf(name: string, wanted: string): string {
    const whole = this.columns.find((column) => column.name === wanted);
    const [first, ...inner] = whole === undefined ? wanted.split(".") : [wanted];
    const column = whole ?? this.columns.find((one) => one.name === first);
    if (column === undefined) throw wrong(name, `a column of the source, not "${shown(wanted)}"`);
    if (inner.length > 0 && !column.type.startsWith("STRUCT(")) {
      throw wrong(name, `a column with fields, not "${shown(column.name)}" of type ${column.type}`);
    }
    this.used.add(column.name);
    return [identifier(column.name), ...inner.map(identifier)].join(".");
  }
}

function groupOf(expression: string): RegExp {
  const groups = (pattern: RegExp) => new RegExp(`${pattern.source}|`).exec("")!.length - 1;
  try {
    const pattern = new RegExp(expression);
    if (groups(pattern) === 1) return pattern;
  } catch {
    // Told of like an expression without a group.
  }
  throw wrong("path", "a regular expression with one group");
}

const wrong = (name: string, expected: string) =>
  new TributaryError("TRB-BULK-MAPPING", `${name}: expected ${expected}`);

/** Names are the caller's own, but not ours to repeat at any length. */
const shown = (name: string): string => name.replace(/[^\w.@ -]/g, "?").slice(0, 64);
