import {
  type DescField,
  type DescMessage,
  fromJson,
  type JsonObject,
  type JsonValue,
  ScalarType,
  toBinary,
} from "@bufbuild/protobuf";
import type { ReflectMessage, ScalarValue } from "@bufbuild/protobuf/reflect";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { byKey } from "./payload-rows.js";

/** Payloads of any type, written from a stream of choices, and what @bufbuild/protobuf reads of them. */

/** A stream of choices, from which bytes are written. */
export type Choose = (below: number) => number;

const i32 = (choose: Choose): number => [0, 1, -1, 2 ** 31 - 1, -(2 ** 31), 300][choose(6)]!;
const u32 = (choose: Choose): number => [0, 1, 2 ** 32 - 1, 300][choose(4)]!;
const i64 = (choose: Choose): bigint => [0n, 1n, -1n, (1n << 63n) - 1n, -(1n << 63n), 1n << 53n][choose(6)]!;
const u64 = (choose: Choose): bigint => [0n, 1n, (1n << 64n) - 1n, 1n << 63n][choose(4)]!;
const texts = ["", "a", "twelve bytes", "more than twelve bytes", "ümläut 🜁"];

function writeScalar(out: BinaryWriter, scalar: ScalarType, choose: Choose, loose: boolean): void {
  switch (scalar) {
    case ScalarType.DOUBLE:
      out.double([0, -0, 1.5, Number.NaN, Number.NEGATIVE_INFINITY][choose(5)]!);
      break;
    case ScalarType.FLOAT:
      out.float([0, 0.25, -1e10][choose(3)]!);
      break;
    case ScalarType.INT32:
      out.int32(i32(choose));
      break;
    case ScalarType.INT64:
      out.int64(i64(choose));
      break;
    case ScalarType.SINT64:
      out.sint64(i64(choose));
      break;
    case ScalarType.UINT32:
      out.uint32(u32(choose));
      break;
    case ScalarType.UINT64:
      out.uint64(u64(choose));
      break;
    case ScalarType.FIXED32:
      out.fixed32(u32(choose));
      break;
    case ScalarType.SFIXED32:
      out.sfixed32(i32(choose));
      break;
    case ScalarType.SINT32:
      out.sint32(i32(choose));
      break;
    case ScalarType.FIXED64:
      out.fixed64(u64(choose));
      break;
    case ScalarType.SFIXED64:
      out.sfixed64(i64(choose));
      break;
    case ScalarType.BOOL:
      out.bool(choose(2) === 1);
      break;
    case ScalarType.STRING:
      if (loose && choose(3) === 0) out.bytes(Uint8Array.of(0x61, 0xff, 0xc3, 0x28, 0xe2, 0x82));
      else out.string(texts[choose(texts.length)]!);
      break;
    case ScalarType.BYTES:
      out.bytes(Uint8Array.of(...Array.from({ length: choose(20) }, () => choose(256))));
      break;
  }
}

const WIRE_TYPES: Readonly<Partial<Record<ScalarType, WireType>>> = {
  [ScalarType.DOUBLE]: WireType.Bit64,
  [ScalarType.FIXED64]: WireType.Bit64,
  [ScalarType.SFIXED64]: WireType.Bit64,
  [ScalarType.FLOAT]: WireType.Bit32,
  [ScalarType.FIXED32]: WireType.Bit32,
  [ScalarType.SFIXED32]: WireType.Bit32,
  [ScalarType.STRING]: WireType.LengthDelimited,
  [ScalarType.BYTES]: WireType.LengthDelimited,
};

function writeValue(out: BinaryWriter, field: DescField, number: number, choose: Choose): void {
  if (field.message !== undefined) {
    const inner = writeMessage(field.message, choose);
    if (field.delimitedEncoding)
      out.tag(number, WireType.StartGroup).raw(inner).tag(number, WireType.EndGroup);
    else out.tag(number, WireType.LengthDelimited).bytes(inner);
    return;
  }
  const scalar = field.enum === undefined ? field.scalar : ScalarType.INT32;
  const one = (to: BinaryWriter): void => {
    if (field.enum === undefined) writeScalar(to, scalar!, choose, !field.utf8Validation);
    else to.int32([0, 1, 2, 3, 4, 7, -9][choose(7)]!);
  };
  const type = WIRE_TYPES[scalar!] ?? WireType.Varint;
  if (field.fieldKind === "list" && type !== WireType.LengthDelimited && choose(2) === 0) {
    const packed = new BinaryWriter();
    for (let count = choose(4); count > 0; count--) one(packed);
    out.tag(number, WireType.LengthDelimited).bytes(packed.finish());
  } else {
    out.tag(number, type);
    one(out);
  }
}

function writeEntry(out: BinaryWriter, field: DescField & { fieldKind: "map" }, choose: Choose): void {
  const entry = new BinaryWriter();
  if (choose(4) > 0) {
    entry.tag(1, WIRE_TYPES[field.mapKey] ?? WireType.Varint);
    writeScalar(entry, field.mapKey, choose, false);
  }
  if (choose(4) > 0) writeValue(entry, field, 2, choose);
  out.tag(field.number, WireType.LengthDelimited).bytes(entry.finish());
}

/** Times to the microsecond, as columns hold them. */
function writeTime(out: BinaryWriter, seconds: bigint, nanos: number): void {
  if (seconds !== 0n) out.tag(1, WireType.Varint).int64(seconds);
  if (nanos !== 0) out.tag(2, WireType.Varint).int32(nanos);
}

function jsonObject(choose: Choose): JsonObject {
  const names = ["", "a", "2", "a name that is longer", "ü"];
  const members = Array.from({ length: choose(3) }, () => [names[choose(names.length)]!, jsonValue(choose)]);
  return Object.fromEntries(members);
}

function jsonValue(choose: Choose): JsonValue {
  switch (choose(7)) {
    case 0:
      return jsonObject(choose);
    case 1:
      return Array.from({ length: choose(3) }, () => jsonValue(choose));
    case 2:
      return [0, -1.5, 1e300, 2 ** 53][choose(4)]!;
    case 3:
      return choose(2) === 1;
    case 4:
      return null;
    default:
      return texts[choose(texts.length)]!;
  }
}

/** What is not written field by field, for not all that is well-formed is a value. */
function writeWellKnown(type: DescMessage, choose: Choose): Uint8Array | undefined {
  const out = new BinaryWriter();
  switch (type.typeName) {
    case "google.protobuf.Timestamp":
      writeTime(
        out,
        [0n, -1n, 1_700_000_000n, -62_135_596_800n, 253_402_300_799n, 9_007_199_255n][choose(6)]!,
        [0, 1000, 999_999_000, 123_456_000][choose(4)]!,
      );
      return out.finish();
    case "google.protobuf.Duration": {
      const sign = choose(2) === 0 ? 1 : -1;
      const seconds = [0, 1, 315_576_000_000, 9_007_199_254][choose(4)]!;
      const nanos = seconds === 315_576_000_000 ? 0 : [0, 1000, 999_999_000][choose(3)]!;
      // Both numbers, zeros too: of one that occurs twice the later one is all of it, not half, whose signs may differ.
      out.tag(1, WireType.Varint).int64(BigInt(sign * seconds));
      out.tag(2, WireType.Varint).int32(sign * nanos);
      return out.finish();
    }
    case "google.protobuf.Struct":
      return toBinary(type, fromJson(type, jsonObject(choose)));
    case "google.protobuf.Value":
      return toBinary(type, fromJson(type, jsonValue(choose)));
    case "google.protobuf.ListValue":
      return toBinary(type, fromJson(type, [jsonValue(choose)]));
    default:
      return undefined;
  }
}

/** Fields in any order, some several times, some that nobody knows. */
export function writeMessage(type: DescMessage, choose: Choose): Uint8Array {
  const known = writeWellKnown(type, choose);
  if (known !== undefined) return known;
  const out = new BinaryWriter();
  for (let count = choose(7); count > 0; count--) {
    const field = type.fields[choose(type.fields.length + 1)];
    if (field === undefined) {
      out.tag(900, WireType.StartGroup).tag(1, WireType.Varint).int32(5);
      out.tag(2, WireType.StartGroup).tag(2, WireType.EndGroup).tag(900, WireType.EndGroup);
      out.tag(1000, WireType.LengthDelimited).string("an extension");
    } else if (field.fieldKind === "map") writeEntry(out, field, choose);
    else writeValue(out, field, field.number, choose);
  }
  return out.finish();
}

/** What the library read, in the words of `payloadRows`. */
export function messageRow(message: ReflectMessage): Record<string, unknown> {
  return Object.fromEntries(message.fields.map((field) => [field.name, column(message, field)]));
}

function column(message: ReflectMessage, field: DescField): unknown {
  if (field.fieldKind === "list") {
    return [...message.get(field)].filter((item) => counts(field, item)).map((item) => single(field, item));
  }
  if (field.fieldKind === "map") {
    return [...message.get(field)]
      .map(([key, item]) => [scalarOf(key as ScalarValue), single(field, item)])
      .sort(byKey);
  }
  // A field without presence is "set" unless it is zero; a closed enum has no zero of its own.
  if (field.presence !== IMPLICIT && !message.isSet(field)) return null;
  return single(field, message.get(field));
}

const IMPLICIT = 2;
/** The library keeps unknown values of closed enums in lists, where the specification sets them apart. */
const counts = (field: DescField, item: unknown): boolean =>
  field.enum === undefined || field.enum.open || field.enum.value[item as number] !== undefined;

function single(field: DescField, value: unknown): unknown {
  if (field.enum !== undefined) return field.enum.value[value as number]?.name ?? String(value as number);
  if (field.message !== undefined) return messageRow(value as ReflectMessage);
  return scalarOf(value as ScalarValue);
}

function scalarOf(value: ScalarValue): unknown {
  if (value instanceof Uint8Array) return Buffer.from(value).toString("hex");
  return typeof value === "string" || typeof value === "boolean" ? value : String(value);
}
