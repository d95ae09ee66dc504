import fc from "fast-check";
import protobuf from "protobufjs";
import { describe, expect, test } from "vitest";
import { inlineProtos } from "../../test/support/inline-protos.js";
import { EVERY_FIELD, PROTO } from "../../test/support/payload-protos.js";
import { byKey, payloadRows } from "../../test/support/payload-rows.js";

const WELL_KNOWN = `syntax = "proto3"; package google.protobuf;
  message Timestamp { int64 seconds = 1; int32 nanos = 2; }
  message Duration { int64 seconds = 1; int32 nanos = 2; }
  message Struct { map<string, Value> fields = 1; }
  message Value { oneof kind { NullValue null_value = 1; double number_value = 2; string string_value = 3;
    bool bool_value = 4; Struct struct_value = 5; ListValue list_value = 6; } }
  enum NullValue { NULL_VALUE = 0; }
  message ListValue { repeated Value values = 1; }
  message StringValue { string value = 1; }
  message Int64Value { int64 value = 1; }
  message BoolValue { bool value = 1; }
  message BytesValue { bytes value = 1; }
  message UInt64Value { uint64 value = 1; }
  message DoubleValue { double value = 1; }`;
const root = new protobuf.Root();
protobuf.parse(WELL_KNOWN, root, { keepCase: true });
protobuf.parse(PROTO, root, { keepCase: true });
root.resolveAll();
const All = root.lookupType("t.All");
const registry = inlineProtos(EVERY_FIELD);

const decodeAll = (type: protobuf.Type, payloads: readonly Uint8Array[]) =>
  payloadRows(registry.entityType(type.fullName.slice(1))!, payloads);

type Message = Record<string, unknown>;

function expected(type: protobuf.Type, message: Message, outer: readonly protobuf.Type[] = []): Message {
  const row: Message = {};
  for (const field of type.fieldsArray) {
    const has = Object.hasOwn(message, field.name) && message[field.name] !== null;
    const value = message[field.name];
    const one = (of: unknown) => single(field, of, [...outer, type]);
    if (field instanceof protobuf.MapField) {
      row[field.name] = Object.entries((has ? value : {}) as object)
        .map(([key, of]) => [field.keyType === "bool" ? key === "true" : key, one(of)])
        .sort(byKey);
    } else if (field.repeated) row[field.name] = ((has ? value : []) as unknown[]).map(one);
    else if (has) row[field.name] = one(value);
    else
      row[field.name] =
        field.partOf || field.resolvedType instanceof protobuf.Type ? null : one(field.typeDefault);
  }
  return row;
}

function single(field: protobuf.Field, value: unknown, outer: readonly protobuf.Type[]): unknown {
  const { resolvedType } = field;
  if (resolvedType instanceof protobuf.Enum) return resolvedType.valuesById[value as number] ?? String(value);
  if (resolvedType instanceof protobuf.Type) {
    const message = value as Message;
    const name = resolvedType.fullName.slice(1);
    if (name.startsWith("google.protobuf.")) return wellKnown(name, message);
    if (outer.includes(resolvedType) || resolvedType.fieldsArray.length === 0) {
      return Buffer.from(resolvedType.encode(message).finish()).toString("hex");
    }
    return expected(resolvedType, message, outer);
  }
  return scalar(value);
}

function scalar(value: unknown): unknown {
  if (value instanceof Uint8Array) return Buffer.from(value).toString("hex");
  if (Array.isArray(value)) return "";
  return typeof value === "string" || typeof value === "boolean" ? value : String(value);
}

function wellKnown(name: string, message: Message): unknown {
  if (name.endsWith("Value") && !name.endsWith("ListValue")) {
    const type = root.lookupType(name);
    return scalar(Object.hasOwn(message, "value") ? message.value : type.fields.value!.resolve().typeDefault);
  }
  if (name.endsWith("Timestamp") || name.endsWith("Duration")) {
    return String(
      BigInt(String(message.seconds ?? 0)) * 1_000_000n +
        BigInt(Math.floor(Number(message.nanos ?? 0) / 1000)),
    );
  }
  return JSON.stringify(jsonOf(message));
}

function jsonOf(node: Message): unknown {
  if (Object.hasOwn(node, "fields")) {
    return Object.fromEntries(
      Object.entries(node.fields as object).map(([k, v]) => [k, jsonOf(v as Message)]),
    );
  }
  if (Object.hasOwn(node, "values")) return (node.values as Message[]).map(jsonOf);
  for (const member of ["number_value", "string_value", "bool_value"])
    if (Object.hasOwn(node, member)) return node[member];
  for (const member of ["struct_value", "list_value"]) {
    if (!Object.hasOwn(node, member)) continue;
    const inner = node[member] as Message;
    if (member === "struct_value" && !Object.hasOwn(inner, "fields")) return {};
    if (member === "list_value" && !Object.hasOwn(inner, "values")) return [];
    return jsonOf(inner);
  }
  return null;
}

const text = fc.oneof(
  fc.string({ unit: "binary", maxLength: 40 }).map((value) => value.toWellFormed()),
  fc.string({ minLength: 11, maxLength: 14 }),
);
const i32 = fc.oneof(fc.integer(), fc.constantFrom(0, -1, 2 ** 31 - 1, -(2 ** 31)));
const u32 = fc.oneof(fc.nat(), fc.constantFrom(0, 2 ** 32 - 1, 2 ** 31));
const i64 = fc
  .oneof(fc.bigInt(-(1n << 63n), (1n << 63n) - 1n), fc.constantFrom(0n, -1n, 1n << 53n, -(1n << 53n) - 1n))
  .map(String);
const u64 = fc
  .oneof(fc.bigInt(0n, (1n << 64n) - 1n), fc.constantFrom((1n << 64n) - 1n, 1n << 63n))
  .map(String);
const raw = fc.uint8Array({ maxLength: 30 });
const real = fc.double({ noDefaultInfinity: false });
const kind = fc.constantFrom(0, 1, 2, -1, 7, -9);
const some = <T>(of: fc.Arbitrary<T>) => fc.array(of, { maxLength: 4 });
const at = fc.record({
  seconds: fc.constantFrom(0, -1, 1_700_000_000, -62_135_596_800, 253_402_300_799).map(String),
  nanos: fc.constantFrom(0, 1, 999, 1000, 999_999_999),
});
const optional = <T extends object>(shape: { [K in keyof T]: fc.Arbitrary<T[K]> }) =>
  fc.record(shape, { requiredKeys: [] });
const deep = optional({ raw, words: some(text), at });
const jsonText = fc.string({ maxLength: 8 }).map((value) => value.toWellFormed());

const { message } = fc.letrec<{ message: Message; inner: Message; value: Message }>((tie) => {
  const many = (of: "value", max: number) =>
    fc.oneof({ maxDepth: 2 }, fc.constant([]), fc.array(tie(of), { maxLength: max }));
  return {
    value: fc.oneof(
      { maxDepth: 3 },
      fc.constant({ null_value: 0 }),
      fc.double({ noNaN: true, noDefaultInfinity: true }).map((number_value) => ({ number_value })),
      jsonText.map((string_value) => ({ string_value })),
      fc.boolean().map((bool_value) => ({ bool_value })),
      fc.dictionary(jsonText, tie("value"), { maxKeys: 2 }).map((fields) => ({ struct_value: { fields } })),
      many("value", 3).map((values) => ({ list_value: { values } })),
    ) as fc.Arbitrary<Message>,
    inner: optional({
      text,
      depth: i32,
      numbers: some(i64),
      kind,
      deep,
      deeps: fc.dictionary(text, deep, { maxKeys: 3 }),
      up: fc.oneof({ maxDepth: 2 }, fc.constant({}), tie("message")),
      a: text,
    }) as fc.Arbitrary<Message>,
    message: fc
      .tuple(
        optional({
          ...{
            f_double: real,
            f_float: fc.float(),
            f_int32: i32,
            f_sint32: i32,
            f_uint32: u32,
            f_int64: i64,
          },
          ...{
            f_sint64: i64,
            f_uint64: u64,
            f_fixed32: u32,
            f_sfixed32: i32,
            f_fixed64: u64,
            f_sfixed64: i64,
          },
          ...{ f_bool: fc.boolean(), f_string: text, f_bytes: raw, f_kind: kind, far: text },
          ...{ o_int32: i32, o_string: text, o_kind: kind, o_bool: fc.boolean() },
          ...{
            packed: some(i32),
            loose: some(i32),
            doubles: some(real),
            flags: some(fc.boolean()),
            kinds: some(kind),
          },
          ...{ strings: some(text), blobs: some(raw), inners: some(tie("inner")), big: some(u64) },
          ...{
            by_string: fc.dictionary(text, text, { maxKeys: 3 }),
            to_kind: fc.dictionary(text, kind, { maxKeys: 2 }),
          },
          by_int: fc.dictionary(i32.map(String), real, { maxKeys: 3 }),
          by_bool: fc.dictionary(fc.constantFrom("true", "false"), tie("inner"), { maxKeys: 2 }),
          ...{ inner: tie("inner"), again: fc.constant({ f_int32: 5 }), empty: fc.constant({}) },
          ...{
            at,
            took: at,
            ats: some(at),
            json: fc.dictionary(jsonText, tie("value")).map((fields) => ({ fields })),
          },
          ...{ list: fc.array(tie("value"), { maxLength: 3 }).map((values) => ({ values })) },
          ...{
            w_string: optional({ value: text }),
            w_int64: optional({ value: i64 }),
            w_uint64: optional({ value: u64 }),
          },
          ...{
            w_bool: optional({ value: fc.boolean() }),
            w_bytes: optional({ value: raw }),
            w_double: optional({ value: real }),
          },
          w_strings: some(optional({ value: text })),
        }) as fc.Arbitrary<Message>,
        fc.oneof(
          fc.constant({}),
          i64.map((c_int64) => ({ c_int64 })),
          text.map((c_string) => ({ c_string })),
          tie("inner").map((c_inner) => ({ c_inner })),
        ),
      )
      .map(([fields, choice]): Message => ({ ...fields, ...choice })),
  };
});

const encode = (type: protobuf.Type, value: Message): Uint8Array =>
  type.encode(type.fromObject(value)).finish();
const decoded = (type: protobuf.Type, bytes: Uint8Array): Message =>
  expected(type, type.decode(bytes) as unknown as Message);

describe("payloads as columns", () => {
  test("say what protobufjs says, chunk after chunk", () => {
    fc.assert(
      fc.property(fc.array(message, { minLength: 1, maxLength: 6 }), (messages) => {
        const payloads = messages.map((one) => encode(All, one));
        expect(decodeAll(All, payloads)).toEqual(payloads.map((bytes) => decoded(All, bytes)));
      }),
      { numRuns: 80 },
    );
  });

  test("ignore fields they do not know", () => {
    const Narrow = root.lookupType("t.Narrow");
    fc.assert(
      fc.property(message, (one) => {
        const bytes = encode(All, one);
        expect(decodeAll(Narrow, [bytes])).toEqual([decoded(Narrow, bytes)]);
      }),
      { numRuns: 50 },
    );
  });

  test("cut or damaged bytes give false or a row, never an error, and harm no other row", () => {
    fc.assert(
      fc.property(message, fc.nat(), fc.nat(255), (one, where, byte) => {
        const bytes = encode(All, one);
        fc.pre(bytes.length > 0);
        const at = where % bytes.length;
        const damaged = Buffer.from(bytes);
        damaged[at] = byte;
        const whole = decoded(All, bytes);
        const rows = decodeAll(All, [bytes, bytes.subarray(0, at), bytes, damaged, bytes]);
        expect([rows[0], rows[2], rows[4]]).toEqual([whole, whole, whole]);
      }),
      { numRuns: 200 },
    );
  });

  test("bytes cut inside a field give false", () => {
    const whole = encode(All, {
      f_string: "abc",
      inner: { text: "abc" },
      by_string: { k: "v" },
      f_double: 1,
    });
    const boundaries = new Set([0]);
    for (let pos = 0; pos < whole.length; ) {
      const reader = protobuf.Reader.create(whole);
      reader.pos = pos;
      const tag = reader.uint32();
      reader.skipType(tag & 7);
      pos = reader.pos;
      boundaries.add(pos);
    }
    for (let cut = 0; cut <= whole.length; cut++) {
      const [row] = decodeAll(All, [whole.subarray(0, cut)]);
      expect(row !== undefined, `cut at ${cut}`).toBe(boundaries.has(cut));
    }
  });

  const bytesOf = (...parts: (string | Uint8Array)[]) =>
    Buffer.concat(
      parts.map((part) => (typeof part === "string" ? Buffer.from(part.replaceAll(" ", ""), "hex") : part)),
    );
  const field = (name: string, payload: Uint8Array) => decodeAll(All, [payload])[0]?.[name];

  test("wrong wire types, malformed UTF-8, groups and varints over 64 bits are no payload", () => {
    for (const hex of [
      "19 0000000000000000",
      "72 01 ff",
      "72 02 c0 80",
      "0b 0c",
      "18 ffffffffffffffffffff01",
      "00 00",
      "d2 04 03 0a 01 ff",
    ]) {
      expect(decodeAll(All, [bytesOf(hex)]), hex).toEqual([undefined]);
    }
  });

  test("of a field given twice the last stands, messages merge, a oneof has one member", () => {
    const twice = bytesOf(
      encode(All, { f_int32: 1, c_int64: "5" }),
      encode(All, { f_int32: 2, c_string: "x" }),
    );
    expect([field("f_int32", twice), field("c_int64", twice), field("c_string", twice)]).toEqual([
      "2",
      null,
      "x",
    ]);
    const merged = bytesOf(
      encode(All, { inner: { text: "a", depth: 1, numbers: ["1"] } }),
      encode(All, { inner: { text: "b", numbers: ["2"] } }),
    );
    expect(field("inner", merged)).toMatchObject({ text: "b", depth: "1", numbers: ["1", "2"] });
  });

  test("of equal map keys the last stands, however the key is written; an absent key is the zero", () => {
    const entry = (hex: string) => bytesOf(Uint8Array.of(0x9a, 0x03, bytesOf(hex).length), hex);
    const one = "11 000000000000f03f";
    const two = "11 0000000000000040";
    expect(field("by_int", bytesOf(entry(`08 05 ${one}`), entry(`08 05 ${two}`)))).toEqual([["5", "2"]]);
    expect(field("by_int", bytesOf(entry(`08 05 ${one}`), entry(`08 8500 ${two}`)))).toEqual([["5", "2"]]);
    expect(field("by_int", bytesOf(entry(one), entry(`08 00 ${two}`)))).toEqual([["0", "2"]]);
    expect(field("by_int", bytesOf(entry("08 05")))).toEqual([["5", "0"]]);
  });

  test("a map of very many keys is read in one go", () => {
    // Comparing every key with every other would take minutes.
    const keys = Object.fromEntries(Array.from({ length: 60_000 }, (_, i) => [i.toString(36), ""]));
    expect(field("by_string", encode(All, { by_string: keys }))).toHaveLength(60_000);
  });

  test("times outside years 1 to 9999 are no times", () => {
    const at = (seconds: string, nanos = 0) => decodeAll(All, [encode(All, { at: { seconds, nanos } })])[0];
    expect(at("-62135596800")!.at).toBe("-62135596800000000");
    expect(at("253402300799", 999_999_999)!.at).toBe("253402300799999999");
    expect(at("-62135596801")).toBeUndefined();
    expect(at("253402300800")).toBeUndefined();
    expect(at("0", 1_000_000_000)).toBeUndefined();
    expect(at("9223372036854775807")).toBeUndefined();
    const took = (seconds: string) => decodeAll(All, [encode(All, { took: { seconds } })])[0];
    expect(took("-315576000000")!.took).toBe("-315576000000000000");
    expect(took("315576000001")).toBeUndefined();
  });

  test("times finer than a microsecond are rounded down, also before 1970 and below nothing", () => {
    const micros = (name: "at" | "took", seconds: string, nanos: number) =>
      decodeAll(All, [encode(All, { [name]: { seconds, nanos } })])[0]?.[name];
    expect(micros("took", "0", -1)).toBe("-1");
    expect(micros("took", "-1", -1_999)).toBe("-1000002");
    expect(micros("took", "-1", -999_999_999)).toBe("-2000000");
    expect(micros("took", "1", 1_999)).toBe("1000001");
    expect(micros("at", "-1", 1_999)).toBe("-999999");
  });

  test("a Struct nested beyond reason is false or text, not an error", () => {
    let value: Message = { bool_value: true };
    for (let i = 0; i < 15; i++) value = { list_value: { values: [value] } };
    expect(field("json", encode(All, { json: { fields: { a: value } } }))).toMatch(/^\{"a":\[*true\]*\}$/);
    let bytes = Buffer.from([0x20, 0x01]);
    for (let i = 0; i < 20_000; i++) {
      const list = Buffer.concat([varint(0x0a, bytes.length), bytes]);
      bytes = Buffer.concat([varint(0x32, list.length), list]);
    }
    const entry = Buffer.concat([Buffer.from("0a0161", "hex"), varint(0x12, bytes.length), bytes]);
    const struct = Buffer.concat([varint(0x0a, entry.length), entry]);
    expect(
      decodeAll(All, [Buffer.concat([Buffer.from([0xc2]), varint(0x04, struct.length), struct])]),
    ).toEqual([undefined]);
  });
});

function varint(tag: number, length: number): Buffer {
  const out = [tag];
  for (let rest = length; ; rest = Math.floor(rest / 128)) {
    if (rest < 128) return Buffer.from([...out, rest]);
    out.push((rest % 128) | 0x80);
  }
}
