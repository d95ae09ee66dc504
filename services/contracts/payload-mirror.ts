import { type DescEnum, type DescField, type DescMessage, ScalarType } from "@bufbuild/protobuf";
import { FeatureSet_FieldPresence as Presence } from "@bufbuild/protobuf/wkt";
import { identifier, literal } from "../base/duckdb.js";

/**
 * What a `PayloadDecoder` makes of the bytes that a `PayloadEncoder` has written, in SQL over the columns that those
 * were written from: so that whoever has the columns need not read the bytes back. Only of values that were taken.
 */

/** SQL of the decoder's value, of SQL of the encoder's; of NULL comes NULL. */
export type Mirror = (sql: string) => string;

/** The two are the same. */
export const same: Mirror = (sql) => sql;

/** Times without a zone are of UTC, which the connection's zone has to be. */
export const TIMESTAMPS: Mirror = (sql) => `${sql}::TIMESTAMPTZ`;

export function mirrorOfScalar(type: ScalarType): Mirror {
  switch (type) {
    case ScalarType.UINT32:
    case ScalarType.FIXED32:
      return (sql) => `${sql}::BIGINT`;
    case ScalarType.UINT64:
    case ScalarType.FIXED64:
      return (sql) => `${sql}::DECIMAL(20,0)`;
    default:
      return same;
  }
}

/** Of two names of one number the first stands; a number without one is its digits. */
export function mirrorOfEnum({ values }: DescEnum): Mirror {
  const names = new Map<number, string>();
  for (const { number, name } of values) if (!names.has(number)) names.set(number, name);
  const whens = [...names].map(([number, name]) => `WHEN ${number} THEN ${literal(name)}`).join(" ");
  return (sql) => `CASE ${sql} ${whens} ELSE ${sql}::VARCHAR END`;
}

/** A message, of its fields: those that are given by their place in the encoder's struct, the others absent. */
export function structOf(
  message: DescMessage,
  given: ReadonlyMap<string, readonly [number, Mirror | undefined]>,
): Mirror | undefined {
  if (message.fields.length === 0) return undefined;
  const members: ((sql: string) => string)[] = [];
  for (const field of message.fields) {
    const name = identifier(field.name);
    const [at, mirror] = given.get(field.name) ?? [];
    if (at === undefined) members.push(() => `${name} := ${absentOf(field)}`);
    else if (mirror === undefined) return undefined;
    else members.push((sql) => `${name} := ${mirror(`struct_extract_at(${sql}, ${at + 1})`)}`);
  }
  return (sql) =>
    `CASE WHEN ${sql} IS NOT NULL THEN struct_pack(${members.map((member) => member(sql)).join(", ")}) END`;
}

/** What a decoder makes of a field that is not there; to be cast to its column's type. */
export function absentOf(field: DescField): string {
  if (field.fieldKind === "map") return "MAP {}";
  if (field.fieldKind === "list") return "[]";
  return field.message !== undefined || field.presence !== Presence.IMPLICIT ? "NULL" : zeroOf(field);
}

/** Of a field without presence. */
export function zeroOf(field: DescField): string {
  if (field.enum !== undefined) return literal(field.enum.values[0]!.name);
  switch (field.scalar) {
    case ScalarType.STRING:
      return "''";
    case ScalarType.BYTES:
      return "''::BLOB";
    case ScalarType.BOOL:
      return "false";
    default:
      return "0";
  }
}
