import { type DescField, type DescMessage, ScalarType } from "@bufbuild/protobuf";
import type { ProtoRegistry } from "./registry.js";

/** Scalars of one group read each other's bytes; enums are with the varints. */
const GROUPS: Readonly<Partial<Record<ScalarType, string>>> = {
  [ScalarType.INT32]: "varint",
  [ScalarType.INT64]: "varint",
  [ScalarType.UINT32]: "varint",
  [ScalarType.UINT64]: "varint",
  [ScalarType.BOOL]: "varint",
  [ScalarType.SINT32]: "zigzag",
  [ScalarType.SINT64]: "zigzag",
  [ScalarType.FIXED32]: "fixed32",
  [ScalarType.SFIXED32]: "fixed32",
  [ScalarType.FIXED64]: "fixed64",
  [ScalarType.SFIXED64]: "fixed64",
  [ScalarType.STRING]: "text",
  [ScalarType.BYTES]: "text",
};

/**
 * What of `after` cannot read the payloads that were accepted by `before`: entity types that are gone, and field
 * numbers that mean other bytes now. Names and new fields are free.
 */
export function incompatibilities(before: ProtoRegistry, after: ProtoRegistry): string[] {
  const found: string[] = [];
  const seen = new Set<DescMessage>();
  for (const name of before.entityTypes()) {
    const now = after.entityType(name);
    if (now === undefined) found.push(`${name}: the message is gone`);
    else compare(before.entityType(name)!, now, found, seen);
  }
  return found;
}

function compare(before: DescMessage, after: DescMessage, found: string[], seen: Set<DescMessage>): void {
  if (seen.has(before)) return;
  seen.add(before);
  for (const field of before.fields) {
    const now = after.fields.find(({ number }) => number === field.number);
    if (now === undefined) continue;
    if (formOf(field) !== formOf(now)) {
      found.push(
        `${before.typeName}.${now.name}: number ${field.number} was ${typeOf(field)} and is ${typeOf(now)}; expected a new number`,
      );
    } else if (field.message !== undefined && now.message !== undefined) {
      compare(field.message, now.message, found, seen);
    }
  }
}

/** Equal for fields that read each other's bytes. */
function formOf(field: DescField): string {
  const value =
    field.message !== undefined ? "message" : field.enum !== undefined ? "varint" : scalarForm(field.scalar);
  if (field.fieldKind === "map") return `map of ${scalarForm(field.mapKey)} to ${value}`;
  const group = field.message !== undefined && field.delimitedEncoding ? "delimited " : "";
  return `${field.fieldKind === "list" ? "list of " : ""}${group}${value}`;
}

const scalarForm = (scalar: ScalarType): string => GROUPS[scalar] ?? ScalarType[scalar];

function typeOf(field: DescField): string {
  const type = field.message?.typeName ?? field.enum?.typeName ?? ScalarType[field.scalar!].toLowerCase();
  if (field.fieldKind === "map") return `map<${ScalarType[field.mapKey].toLowerCase()}, ${type}>`;
  return field.fieldKind === "list" ? `repeated ${type}` : type;
}
