import {
  type DescField,
  type DescMessage,
  type FileRegistry,
  type JsonObject,
  type JsonValue,
  ScalarType,
} from "@bufbuild/protobuf";
import { fractionOf, integerOf, isNumber } from "./json-text.js";

/** Stands where a value is none that the field takes: no reader takes it for one. */
const NO_VALUE = Symbol("no value");

/** How numbers of a field are read. */
const INTEGER = 1;
const REAL = 2;

/** What of a message needs a look: its numbers, and messages that may hold some. By JSON name and by proto name. */
type Plan = ReadonlyMap<string, FieldPlan>;

interface FieldPlan {
  readonly field: DescField;
  /** INTEGER, REAL or 0 for the values; for a map's values. */
  readonly kind: number;
  readonly child: DescMessage | undefined;
  readonly integerKeys: boolean;
}

const plans = new WeakMap<DescMessage, Plan>();

/**
 * Numbers as their fields take them, exactly: the library reads "0x10", " 1" and integers that a double rounds, which
 * would decide wrongly which of two versions is the greater. A value that is no such number becomes one that no field
 * takes. Copies only what it changes.
 */
export function exactNumbers(desc: DescMessage, value: JsonValue, types: FileRegistry): JsonValue {
  if (!isObject(value)) {
    const wrapped = WRAPPERS[desc.typeName];
    return wrapped === undefined ? doublesOf(desc, value) : exactNumber(wrapped, value);
  }
  if (desc.typeName === "google.protobuf.Any") {
    const type = value["@type"];
    const inner =
      typeof type === "string" ? types.getMessage(type.slice(type.lastIndexOf("/") + 1)) : undefined;
    if (inner === undefined) return value;
    // A type with JSON of its own stands under "value".
    if (!inner.typeName.startsWith("google.protobuf.")) return exactNumbers(inner, value, types);
    const own = value.value;
    return own === undefined ? value : { ...value, value: exactNumbers(inner, own, types) };
  }
  if (JSON_TYPES.has(desc.typeName)) return doublesOf(desc, value);
  const plan = planOf(desc);
  let result = value;
  for (const key in value) {
    const found = plan.get(key);
    if (found === undefined) continue;
    const item = value[key]!;
    const changed = exactField(found, item, types);
    if (changed !== item) result = { ...result, [key]: changed };
  }
  return result;
}

function exactField(
  { field, kind, child, integerKeys }: FieldPlan,
  item: JsonValue,
  types: FileRegistry,
): JsonValue {
  const one = (each: JsonValue): JsonValue =>
    child === undefined ? (kind === 0 ? each : exactNumber(kind, each)) : exactNumbers(child, each, types);
  if (field.fieldKind === "list") {
    if (!Array.isArray(item)) return item;
    let result = item;
    for (const [index, each] of item.entries()) {
      const changed = one(each);
      if (changed === each) continue;
      if (result === item) result = [...item];
      result[index] = changed;
    }
    return result;
  }
  if (field.fieldKind !== "map") return one(item);
  if (!isObject(item)) return item;
  if (integerKeys && Object.keys(item).some((key) => !/^-?\d+$/.test(key))) return NO_VALUE as never;
  let result = item;
  for (const key of Object.keys(item)) {
    const each = item[key]!;
    const changed = one(each);
    if (changed === each) continue;
    if (result === item) result = Object.fromEntries(Object.entries(item));
    result[key] = changed;
  }
  return result;
}

function exactNumber(kind: number, value: JsonValue): JsonValue {
  const given: unknown = value;
  if (kind === REAL) {
    if (typeof given === "bigint") return Number(given);
    const fraction = fractionOf(given);
    if (fraction !== undefined) return Number(fraction);
    if (typeof given !== "string" || isNumber(given) || NOT_FINITE.has(given)) return value;
    return NO_VALUE as never;
  }
  if (typeof given !== "string" || /^-?(?:0|[1-9]\d{0,17})$/.test(given)) return value;
  const whole = integerOf(given);
  if (whole === undefined) return NO_VALUE as never;
  return String(whole);
}

const NOT_FINITE: ReadonlySet<string> = new Set(["NaN", "Infinity", "-Infinity"]);

/** JSON as a type: its numbers are doubles, its text is Unicode. */
const JSON_TYPES: ReadonlySet<string> = new Set([
  "google.protobuf.Struct",
  "google.protobuf.Value",
  "google.protobuf.ListValue",
]);
const WRAPPERS: Readonly<Record<string, number>> = {
  "google.protobuf.DoubleValue": REAL,
  "google.protobuf.FloatValue": REAL,
  "google.protobuf.Int64Value": INTEGER,
  "google.protobuf.UInt64Value": INTEGER,
  "google.protobuf.Int32Value": INTEGER,
  "google.protobuf.UInt32Value": INTEGER,
};

const doublesOf = (desc: DescMessage, value: JsonValue): JsonValue =>
  JSON_TYPES.has(desc.typeName) ? plainJson(value) : value;

function plainJson(value: JsonValue): JsonValue {
  const given: unknown = value;
  if (typeof given === "bigint") return Number(given);
  const fraction = fractionOf(given);
  if (fraction !== undefined) return Number(fraction);
  // The library would make one replacement character of every half of a character, and so one key of two.
  if (typeof value === "string") return value.isWellFormed() ? value : (NO_VALUE as never);
  if (Array.isArray(value)) return value.map(plainJson);
  if (!isObject(value)) return value;
  if (Object.keys(value).some((key) => !key.isWellFormed())) return NO_VALUE as never;
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, plainJson(each)]));
}

function planOf(desc: DescMessage): Plan {
  const known = plans.get(desc);
  if (known !== undefined) return known;
  const plan = new Map<string, FieldPlan>();
  for (const field of desc.fields) {
    const kind = field.scalar === undefined ? 0 : kindOf(field.scalar);
    const integerKeys = field.fieldKind === "map" && kindOf(field.mapKey) === INTEGER;
    if (kind === 0 && field.message === undefined && !integerKeys) continue;
    const found = { field, kind, child: field.message, integerKeys };
    plan.set(field.name, found).set(field.jsonName, found);
  }
  plans.set(desc, plan);
  return plan;
}

function kindOf(scalar: ScalarType): number {
  if (scalar === ScalarType.DOUBLE || scalar === ScalarType.FLOAT) return REAL;
  const other = scalar === ScalarType.BOOL || scalar === ScalarType.STRING || scalar === ScalarType.BYTES;
  return other ? 0 : INTEGER;
}

const isObject = (value: unknown): value is JsonObject =>
  typeof value === "object" && value !== null && !Array.isArray(value);
