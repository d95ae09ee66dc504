import { FUNCTION_GROUPS, NAMED_TYPES, TYPES } from "./allowed-functions.js";
import { type Json, list, object } from "./syntax.js";

/** What some functions take as a text and act upon: the names of types or of other functions. */
const WITH_STRUCTURE: ReadonlySet<string> = new Set([
  "json_transform",
  "json_transform_strict",
  "from_json",
  "from_json_strict",
]);
const WITH_AGGREGATE: ReadonlySet<string> = new Set(["list_aggregate", "array_aggregate"]);
const AGGREGATES: ReadonlySet<string> = new Set(FUNCTION_GROUPS.Aggregates);

/** Other spellings of allowed types. */
const SPELLINGS: ReadonlySet<string> = new Set([
  "INT",
  "INT1",
  "INT2",
  "INT4",
  "INT8",
  "SHORT",
  "LONG",
  "SIGNED",
  "FLOAT4",
  "FLOAT8",
  "REAL",
  "DEC",
  "NUMERIC",
  "BOOL",
  "LOGICAL",
  "TEXT",
  "STRING",
  "CHAR",
  "BPCHAR",
  "DATETIME",
  "TIMESTAMPTZ",
  "TIMETZ",
  "BYTEA",
  "BINARY",
  "VARBINARY",
  "GUID",
  "BITSTRING",
]);

/**
 * Why a reviewed function may not be called with these arguments; undefined when it may. A text that names types or a
 * function must be there to be read: as a constant.
 */
export function refusedArguments(name: string, children: Json | undefined): string | undefined {
  if (WITH_STRUCTURE.has(name)) {
    const structure = constantText(list(children)[1]);
    if (structure !== undefined && isStructure(structure)) return undefined;
    return `${name}: expected as second argument a text with JSON that names allowed types`;
  }
  if (WITH_AGGREGATE.has(name)) {
    const aggregate = constantText(list(children)[1]);
    if (aggregate !== undefined && AGGREGATES.has(aggregate.toLowerCase())) return undefined;
    return `${name}: expected as second argument a text with the name of an aggregate that queries may use`;
  }
  return undefined;
}

function constantText(argument: Json | undefined): string | undefined {
  if (argument === undefined) return undefined;
  const { class: kind, value } = object(argument);
  if (kind !== "CONSTANT") return undefined;
  const { value: text } = object(value);
  return typeof text === "string" ? text : undefined;
}

function isStructure(text: string): boolean {
  let structure: unknown;
  try {
    structure = JSON.parse(text);
  } catch {
    return false;
  }
  // Kept as a list: what a text of 64 KB nests, a stack may not hold.
  const pending = [structure];
  for (let item = pending.pop(); item !== undefined; item = pending.pop()) {
    if (typeof item === "string") {
      if (!isTypeName(item)) return false;
    } else if (typeof item === "object" && item !== null) pending.push(...Object.values(item));
    else return false;
  }
  return true;
}

/** One type with its width, if any, and lists of it: `DECIMAL(10, 2)[]`. */
function isTypeName(text: string): boolean {
  const name = /^\s*([A-Za-z][A-Za-z0-9_ ]*?)\s*(\(\s*\d+\s*(,\s*\d+\s*)?\))?\s*(\[\d*\])*\s*$/.exec(
    text,
  )?.[1];
  if (name === undefined) return false;
  return (
    TYPES.has(name.toUpperCase()) || SPELLINGS.has(name.toUpperCase()) || NAMED_TYPES.has(name.toLowerCase())
  );
}
