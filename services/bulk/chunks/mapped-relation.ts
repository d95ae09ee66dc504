import type { DescMessage } from "@bufbuild/protobuf";
import { literal } from "../../base/duckdb.js";
import { TributaryError } from "../../base/errors.js";
import type { Format, SourceColumn } from "../../sources/formats.js";
import { CheckedMapping, type Mapping, type Part } from "../../sources/mapping.js";
import { RECORD } from "../../sources/text-reader.js";

/** How the rows that a reader gives are mapped: its relation, in the shape that the mapping's SQL is about. */
export interface MappedRelation {
  readonly mapping: CheckedMapping;
  /** Whether the engine fails on it where it meets a record that is none. */
  readonly isSure: boolean;
  /** Of a batch's SQL. */
  of(sql: string): string;
}

/**
 * Rows of columns are mapped as they are. A record of JSON is read once, for the fields that the mapping names: each is
 * a column of text, whatever it is in JSON. Errors: TRB-BULK-MAPPING.
 */
export function mappedRelation(
  format: Format,
  columns: readonly SourceColumn[],
  mapping: Mapping,
  type: DescMessage,
): MappedRelation {
  if (format !== "ndjson" && format !== "debezium") {
    return { mapping: new CheckedMapping(mapping, columns, type), isSure: false, of: (sql) => `(${sql})` };
  }
  const others = columns.filter(({ name }) => name !== RECORD);
  const known = new Set(others.map(({ name }) => name));
  const named = namesOf(mapping, type).filter((name) => !known.has(name.split(".")[0]!));
  const fields = fieldsOf(named);
  const structure = literal(JSON.stringify(fields));
  const found = Object.entries(fields).map(([name, inner]) => ({ name, type: typeOf(inner) }));
  // Of JSON that nothing is wanted of, nothing is looked at.
  const isSure = named.length > 0;
  const read = isSure ? `, unnest(json_transform(${RECORD}, ${structure}))` : "";
  return {
    mapping: new CheckedMapping(mapping, [...found, ...others], type),
    isSure,
    of: (sql) => `(SELECT * EXCLUDE (${RECORD})${read} FROM (${sql}))`,
  };
}

interface Fields {
  [name: string]: string | Fields;
}

const typeOf = (field: string | Fields): string => (typeof field === "string" ? field : "STRUCT()");

/** What the mapping names of a record. */
function namesOf({ payload, ...envelope }: Mapping, type: DescMessage): string[] {
  const parts: (Part | undefined)[] = [...Object.values(envelope), ...Object.values(payload ?? {})];
  const names = parts.filter((value) => typeof value === "string");
  // Not both of a field's names: a record has one of them, and which one is not known yet.
  if (payload === undefined) names.push(...type.fields.map(({ name }) => name));
  return [...new Set(names)];
}

function fieldsOf(names: readonly string[]): Fields {
  const fields: Fields = {};
  for (const name of names) {
    const path = name.split(".");
    const last = path.pop()!;
    let at = fields;
    for (const part of path) {
      const inner = at[part] ?? {};
      if (typeof inner === "string") throw twice(name);
      at[part] = inner;
      at = inner;
    }
    if (typeof at[last] === "object") throw twice(name);
    at[last] = "VARCHAR";
  }
  return fields;
}

const twice = (name: string) =>
  new TributaryError(
    "TRB-BULK-MAPPING",
    `expected fields of "${name
      .split(".")[0]!
      .replace(/[^\w@-]/g, "?")
      .slice(0, 64)}" or all of it, not both`,
  );
