import { type DescField, type DescMessage, fromBinary, ScalarType } from "@bufbuild/protobuf";
import { type ReflectMessage, reflect, type ScalarValue } from "@bufbuild/protobuf/reflect";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { inlineProtos } from "../../test/support/inline-protos.js";
import { byKey, payloadRows } from "../../test/support/payload-rows.js";
import { PayloadChecker } from "./payload.js";

/** The columnar decoder against @bufbuild/protobuf, for what each syntax and edition means by the same fields. */

const SCALAR_FIELDS = (label: string): string =>
  ["double", "float", "int32", "sint64", "uint32", "uint64", "fixed32", "sfixed64", "bool", "string", "bytes"]
    .map((type, index) => `${label} ${type} f_${type} = ${index + 1};`)
    .join(" ");
const REPEATED = `repeated int32 ints = 20; repeated sfixed32 fixed = 21; repeated Kind kinds = 22; repeated string texts = 23;
  map<int32, string> by_int = 30; map<string, Sub> by_text = 31;
  oneof pick { int64 p_int = 40; string p_text = 41; Kind p_kind = 42; Sub p_sub = 43; }`;
const registry = inlineProtos({
  "two.proto": `package two; enum Kind { ONE = 1; TWO = 2; NONE = 0; }
    message Sub { optional int32 n = 1 [default = 5]; optional Kind kind = 2; repeated string texts = 3; }
    message All { ${SCALAR_FIELDS("optional")} optional Kind kind = 15 [default = TWO]; optional Sub sub = 16;
      ${REPEATED} optional group Part = 50 { optional int32 n = 1; repeated group Deep = 2 { optional string text = 1; } }
      repeated group Many = 51 { optional Kind kind = 1; optional Sub sub = 2; } repeated int64 packed = 52 [packed = true];
      extensions 1000 to max; }
    extend All { optional string note = 1000; }`,
  "three.proto": `syntax = "proto3"; package three; enum Kind { NONE = 0; ONE = 1; TWO = 2; }
    message Sub { int32 n = 1; Kind kind = 2; repeated string texts = 3; }
    message All { ${SCALAR_FIELDS("")} Kind kind = 15; Sub sub = 16; ${REPEATED} optional int32 o_int = 50;
      optional Kind o_kind = 51; repeated int64 packed = 52 [packed = false]; }`,
  "next.proto": `edition = "2023"; package next; option features.message_encoding = DELIMITED;
    enum Kind { NONE = 0; ONE = 1; TWO = 2; } enum Shut { option features.enum_type = CLOSED; A = 3; B = 4; }
    message Sub { int32 n = 1 [features.field_presence = IMPLICIT]; Kind kind = 2; repeated string texts = 3; }
    message All { ${SCALAR_FIELDS("")} Kind kind = 15 [features.field_presence = IMPLICIT]; Sub sub = 16; ${REPEATED}
      Shut shut = 50; repeated Shut shuts = 51 [features.repeated_field_encoding = EXPANDED]; repeated Sub subs = 52;
      string loose = 53 [features.utf8_validation = NONE]; Sub prefixed = 54 [features.message_encoding = LENGTH_PREFIXED];
      string defaulted = 55 [default = "x"]; }`,
});

/** A stream of choices, from which bytes are written. */
type Choose = (below: number) => number;

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
    default:
      throw new Error(`no values for ${ScalarType[scalar]}`);
  }
}

const WIRE_TYPES: Readonly<Partial<Record<ScalarType, WireType>>> = {
  [ScalarType.DOUBLE]: WireType.Bit64,
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

/** Fields in any order, some several times, some that nobody knows. */
function writeMessage(type: DescMessage, choose: Choose): Uint8Array {
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
function expected(message: ReflectMessage): Record<string, unknown> {
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
  if (field.message !== undefined) return expected(value as ReflectMessage);
  return scalarOf(value as ScalarValue);
}

function scalarOf(value: ScalarValue): unknown {
  if (value instanceof Uint8Array) return Buffer.from(value).toString("hex");
  return typeof value === "string" || typeof value === "boolean" ? value : String(value);
}

describe.each(["two.All", "three.All", "next.All"])("payloads of %s", (name) => {
  const type = registry.entityType(name)!;
  const checker = new PayloadChecker(type);
  test("are rows that say what the library reads, and pass at the gate", () => {
    fc.assert(
      fc.property(fc.infiniteStream(fc.nat()), fc.integer({ min: 1, max: 4 }), (choices, rows) => {
        const choose: Choose = (below) => choices.next().value! % below;
        const payloads = Array.from({ length: rows }, () => writeMessage(type, choose));
        const read = payloads.map((bytes) => expected(reflect(type, fromBinary(type, bytes))));
        expect(payloadRows(type, payloads)).toEqual(read);
        for (const bytes of payloads) expect(checker.check(bytes, 0, bytes.length)).toBe(true);
      }),
      { numRuns: 100 },
    );
  });
  test("that are damaged pass at the gate only when they are rows, and nothing throws", () => {
    fc.assert(
      fc.property(fc.infiniteStream(fc.nat()), fc.nat(), fc.nat(255), (choices, where, byte) => {
        const bytes = Uint8Array.from(writeMessage(type, (below) => choices.next().value! % below));
        if (bytes.length === 0) return;
        bytes[where % bytes.length] = byte;
        const [row] = payloadRows(type, [bytes]);
        if (checker.check(bytes, 0, bytes.length)) expect(row).toBeDefined();
      }),
      { numRuns: 100 },
    );
  });
});

describe("what each syntax means by an absent or unknown value", () => {
  const row = (name: string, hex: string) =>
    payloadRows(registry.entityType(name)!, [Buffer.from(hex.replaceAll(" ", ""), "hex")])[0]!;
  test("absent is zero without presence and NULL with it, whatever default is declared", () => {
    expect(row("three.All", "")).toMatchObject({
      f_int32: "0",
      kind: "NONE",
      o_int: null,
      o_kind: null,
      sub: null,
    });
    expect(row("two.All", "")).toMatchObject({ f_int32: null, kind: null, sub: null, ints: [], part: null });
    expect(row("next.All", "")).toMatchObject({ f_int32: null, kind: "NONE", defaulted: null, shut: null });
    expect(row("two.Sub", "")).toMatchObject({ n: null });
  });
  test("an unknown value of a closed enum is as if absent: also in lists, a oneof and a map", () => {
    const maps = inlineProtos({
      "m.proto": `package m; enum K { NONE = 0; TWO = 2; } message M { map<string, K> by = 1; optional K k = 2; }`,
    });
    const m = (hex: string) =>
      payloadRows(maps.entityType("m.M")!, [Buffer.from(hex.replaceAll(" ", ""), "hex")])[0]!;
    expect(m("0a05 0a0161 1002  0a05 0a0162 1009  0a03 0a0163  1009")).toEqual({
      by: [
        ["a", "TWO"],
        ["c", "NONE"],
      ],
      k: null,
    });
    expect(row("two.All", "c002 05 d002 09")).toMatchObject({ p_int: "5", p_kind: null });
    expect(row("two.All", "c002 05 d002 02")).toMatchObject({ p_int: null, p_kind: "TWO" });
    expect(row("two.All", "b201 03 010902 b001 09 b001 01")).toMatchObject({ kinds: ["ONE", "TWO", "ONE"] });
    expect(row("three.All", "b201 03 010902")).toMatchObject({ kinds: ["ONE", "9", "TWO"] });
  });
  test("text that need not be UTF-8 is shown as readers show it", () => {
    expect(row("two.All", "52 04 61ff c328")).toMatchObject({ f_string: "a\ufffd\ufffd(" });
    expect(payloadRows(registry.entityType("three.All")!, [Buffer.from("520461ffc328", "hex")])).toEqual([
      undefined,
    ]);
  });
});
