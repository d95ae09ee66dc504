import { join } from "node:path";
import { type DescMessage, fromBinary, ScalarType, toBinary } from "@bufbuild/protobuf";
import { reflect } from "@bufbuild/protobuf/reflect";
import type { DuckDBConnection } from "@duckdb/node-api";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { encodedRows, thereAndBack } from "../../test/support/encoded-rows.js";
import { inlineProtos } from "../../test/support/inline-protos.js";
import { EDITIONS, EVERY_FIELD } from "../../test/support/payload-protos.js";
import { payloadRows } from "../../test/support/payload-rows.js";
import { type Choose, messageRow, writeMessage } from "../../test/support/random-payloads.js";
import { Duck } from "../base/duckdb.js";
import type { TributaryError } from "../base/errors.js";
import { packageRoot } from "../base/paths.js";
import { PayloadChecker } from "./payload.js";
import { PayloadDecoder } from "./payload-columns.js";
import { PayloadEncoder } from "./payload-encoder.js";
import { ProtoRegistry } from "./registry.js";

const editions = inlineProtos(EDITIONS);
const everyField = inlineProtos(EVERY_FIELD);
const shipped = ProtoRegistry.load([join(packageRoot, "proto")]);
let duck: Duck;
let connection: DuckDBConnection;
beforeAll(async () => {
  duck = await Duck.create({ memoryBytes: 512 * 1024 * 1024 });
  connection = await duck.connect();
});
afterAll(() => {
  connection.closeSync();
  duck.close();
});

const messageOf = (type: DescMessage, bytes: Uint8Array) =>
  messageRow(reflect(type, fromBinary(type, bytes)));
const choices = fc.infiniteStream(fc.nat());
const chooser =
  (stream: Iterator<number>): Choose =>
  (below) =>
    stream.next().value! % below;

/** As the library writes it, which merges what occurs twice, and drops what it does not know. */
function canonical(type: DescMessage, bytes: Uint8Array): Uint8Array {
  return toBinary(type, fromBinary(type, bytes, { readUnknownFields: false }));
}

describe.each([
  ...["two.All", "three.All", "next.All"].map((name) => ({ name, registry: editions })),
  ...["t.All", "t.Inner", "t.Deep"].map((name) => ({ name, registry: everyField })),
  ...["scm.v1.Commit", "scm.v1.File", "tracker.v1.Issue", "tracker.v1.Project"].map((name) => ({
    name,
    registry: shipped,
  })),
  ...["ChangeEvent", "PublishRequest", "PublishResponse"].map((name) => ({
    name: `tributary.v1.${name}`,
    registry: shipped,
  })),
])("payloads of $name", ({ name, registry }) => {
  const type = registry.types.getMessage(name)!;
  const checker = new PayloadChecker(type);
  test("are the same rows, and the same messages, when they come out of columns again", async () => {
    const back = await thereAndBack(connection, `feed_${name.replaceAll(".", "_")}`, type, registry.types);
    await fc.assert(
      fc.asyncProperty(choices, fc.integer({ min: 1, max: 16 }), async (stream, rows) => {
        const choose = chooser(stream);
        const written = Array.from({ length: rows }, () => writeMessage(type, choose));
        const tidy = written.map((bytes) => canonical(type, bytes));
        // Of Timestamps and the like that occur twice columns have the last, where the library merges them.
        const payloads = registry === editions ? [...written, ...tidy] : tidy;
        const encoded = (await back(payloads)) as Buffer[];
        expect(payloadRows(type, encoded)).toEqual(payloadRows(type, payloads));
        for (const [row, bytes] of encoded.entries()) {
          expect(messageOf(type, bytes)).toEqual(messageOf(type, payloads[row]!));
          expect(checker.check(bytes, 0, bytes.length)).toBe(true);
        }
        if (type.file.edition === PROTO3) {
          expect(encoded.slice(-rows).map((bytes) => bytes.toString("hex"))).toEqual(
            tidy.map((bytes) => Buffer.from(bytes).toString("hex")),
          );
        }
        // Some of the time: each asks the engine twice.
        if (choose(2) > 0) return;
        const mirrored = await back.mirrored();
        for (const [row, decoded] of payloadRows(type, encoded).entries()) {
          const some = Object.keys(mirrored[row]!).map((field) => [field, decoded![field]]);
          expect(mirrored[row]).toEqual(Object.fromEntries(some));
        }
      }),
      { numRuns: 10 },
    );
  });
});
const PROTO3 = 999;

test("what a decoder makes of every field of our own entities is known of their columns", async () => {
  for (const name of ["scm.v1.Commit", "scm.v1.File", "tracker.v1.Issue", "tracker.v1.Project"]) {
    const type = shipped.types.getMessage(name)!;
    const columns = new PayloadDecoder(type).columns.map((column) => [column.name, `NULL::${column.type}`]);
    const given = Object.fromEntries(columns) as Record<string, string>;
    const encoder = await PayloadEncoder.bind(connection, "range(1)", type, shipped.types, given);
    const unknown = [...encoder.decoded(encoder.columns)].filter(([, { sql }]) => sql === undefined);
    expect(unknown.map(([field]) => `${name}.${field}`)).toEqual([]);
  }
});

test("rows of many chunks, texts of every length and many elements a list", async () => {
  const type = everyField.types.getMessage("t.Deep")!;
  const back = await thereAndBack(connection, "feed_many", type, everyField.types);
  const word = (n: number): string => "wörd".repeat(n).slice(0, n);
  const payloads = Array.from({ length: 10_000 }, (_, row) => {
    const words = Array.from({ length: row % 7 }, (_, n) => word((row * 7 + n) % 200));
    const raw = row % 5 === 0 ? Buffer.alloc(row % 700, row) : Buffer.alloc(0);
    return Buffer.concat([
      raw.length === 0 ? raw : lengthDelimited(1, raw),
      ...words.map((text) => lengthDelimited(2, Buffer.from(text))),
    ]);
  });
  const encoded = (await back(payloads)) as Buffer[];
  expect(encoded.length).toBe(payloads.length);
  expect(encoded.every((bytes, row) => bytes.equals(payloads[row]!))).toBe(true);
});

function lengthDelimited(field: number, bytes: Buffer): Buffer {
  const { length } = bytes;
  const size = length < 128 ? [length] : [(length & 127) | 128, length >> 7];
  return Buffer.concat([Buffer.from([field * 8 + 2, ...size]), bytes]);
}

const types = inlineProtos({
  "c.proto": `syntax = "proto3"; package c; import "google/protobuf/timestamp.proto"; import "google/protobuf/duration.proto";
    import "google/protobuf/struct.proto"; import "google/protobuf/wrappers.proto"; import "google/protobuf/any.proto";
    enum Kind { NONE = 0; ONE = 1; FAR = 70; LESS = -1; }
    message Inner { string text = 1; int64 camel_case = 2; repeated Kind kinds = 3; Inner again = 4; }
    message M { int32 i32 = 1; uint32 u32 = 2; int64 i64 = 3; uint64 u64 = 4; sint32 s32 = 5; sint64 s64 = 6; fixed32 x32 = 7;
      sfixed64 x64 = 8; float f = 9; double d = 10; bool b = 11; string s = 12; bytes raw = 13; Kind k = 14;
      google.protobuf.Timestamp at = 15; google.protobuf.Duration took = 16; google.protobuf.Value v = 17;
      google.protobuf.Struct j = 18; google.protobuf.Int64Value w = 19; optional int32 o = 20; Inner inner = 21;
      repeated int32 ints = 22; repeated string texts = 23; repeated Inner inners = 24; map<int32, string> names = 25;
      map<string, Inner> by = 26; google.protobuf.Any any = 27; repeated google.protobuf.Timestamp ats = 28;
      repeated google.protobuf.Value vs = 29; repeated bytes raws = 30;
      oneof pick { int32 p_int = 31; string p_text = 32; Inner p_inner = 33; } }`,
  "r.proto": `package r; enum Shut { A = 3; B = 4; } message Sub { required int32 n = 1; }
    message M { required string id = 1; optional Shut shut = 2; repeated Sub subs = 3; optional string loose = 4; }`,
});

/** What the payload of one row of `SELECT … AS x` holds, or what it was refused with. */
async function taken(field: string, sql: string, name = "c.M"): Promise<unknown> {
  const type = types.types.getMessage(name)!;
  const relation = `(SELECT ${sql} AS x)`;
  const encoder = await PayloadEncoder.bind(connection, relation, type, types.types, { [field]: "x" });
  const [row] = await encodedRows(connection, relation, encoder);
  if (typeof row === "string") return row;
  expect(new PayloadChecker(type).check(row!, 0, row!.length)).toBe(true);
  return payloadRows(type, [row!])[0]![field];
}

const list = (...items: string[]) => `[${items.join(", ")}]`;
const times = "google.protobuf.Timestamp of the years 1 to 9999";
const span = "google.protobuf.Duration of at most 10,000 years";

describe("a field takes from other types what is exactly its own", () => {
  test.each([
    ["i32", "'12'", "12"],
    ["i32", "' -12.0 '", "-12"],
    ["i32", "12.00::DECIMAL(9,2)", "12"],
    ["i32", "(-2147483648)::HUGEINT", "-2147483648"],
    ["i32", "7::UTINYINT", "7"],
    ["i32", "NULL", "0"],
    ["o", "NULL", null],
    ["o", "0", "0"],
    ["u32", "4294967295", "4294967295"],
    ["i64", "'9223372036854775807'", "9223372036854775807"],
    ["i64", "9007199254740992::DOUBLE", "9007199254740992"],
    ["u64", "18446744073709551615::DECIMAL(20,0)", "18446744073709551615"],
    ["s32", "-2147483648", "-2147483648"],
    ["s64", "(-9223372036854775808)::BIGINT", "-9223372036854775808"],
    ["x32", "4294967295", "4294967295"],
    ["x64", "-1", "-1"],
    ["f", "0.5", "0.5"],
    ["f", "'-inf'", "-Infinity"],
    ["d", "'1e3'", "1000"],
    ["d", "'NaN'", "NaN"],
    ["d", "'-0'::DOUBLE", "0"],
    ["b", "1", true],
    ["b", "'true'", true],
    ["s", "12", "12"],
    ["s", "DATE '2024-02-29'", "2024-02-29"],
    ["s", "encode('ümläut, and more than twelve bytes')", "ümläut, and more than twelve bytes"],
    ["raw", "'-_8='", "fbff"],
    ["raw", "'+/8'", "fbff"],
    ["raw", "''", ""],
    ["k", "'FAR'", "FAR"],
    ["k", "70", "FAR"],
    ["k", "'-1'", "LESS"],
    ["k", "99", "99"],
    ["k", "'ONE'::ENUM('ONE', 'TWO')", "ONE"],
    ["at", "TIMESTAMP '1969-12-31 23:59:59.999999'", "-1"],
    ["at", "TIMESTAMP_NS '1969-12-31 23:59:59.999999999'", "-1"],
    ["at", "TIMESTAMP_MS '2024-01-01 00:00:00.5'", "1704067200500000"],
    ["at", "DATE '0001-01-01'", "-62135596800000000"],
    ["at", "'9999-12-31T23:59:59.999999Z'", "253402300799999999"],
    ["at", "'2024-01-01T01:00:00+01:00'", "1704067200000000"],
    ["took", "INTERVAL '1 day'", "86400000000"],
    ["took", "'-1.5s'", "-1500000"],
    ["took", "-1", "-1"],
    ["v", "'\"text\"'", '"text"'],
    ["v", "{'a': [1, 2.5], 'b': NULL}", '{"a":[1,2.5],"b":null}'],
    ["v", "'null'", "null"],
    ["v", "NULL", null],
    ["j", "MAP {'a': 1}", '{"a":1}'],
    ["w", "'5'", "5"],
    ["w", "0", "0"],
    ["ints", "[1, 2]::INTEGER[2]", ["1", "2"]],
    ["ints", "['1', '2.0']", ["1", "2"]],
    ["ints", "'[1, \"2\"]'", ["1", "2"]],
    ["ints", "NULL::INTEGER[]", []],
    ["texts", '\'["a", "b \\u00fc"]\'', ["a", "b ü"]],
    ["ats", "'[\"2024-01-01T00:00:00Z\"]'", ["1704067200000000"]],
    ["vs", '\'["a", 1, {"b":[]}]\'', ['"a"', "1", '{"b":[]}']],
    ["raws", "['YQ==', NULL][1:1]", ["61"]],
    ["names", "MAP {'5': 7}", [["5", "7"]]],
    ["names", "[{'key': 5, 'value': 'x'}]", [["5", "x"]]],
    [
      "names",
      '\'{"5":"x","6":7}\'',
      [
        ["5", "x"],
        ["6", "7"],
      ],
    ],
    [
      "inner",
      "{'text': 'a', 'camelCase': '5', 'kinds': ['ONE', '70']}",
      { text: "a", camel_case: "5", kinds: ["ONE", "FAR"], again: null },
    ],
    [
      "inner",
      '\'{"camelCase":"9007199254740993"}\'',
      { text: "", camel_case: "9007199254740993", kinds: [], again: null },
    ],
    ["inner", "'\\x0A\\x01a'::BLOB", { text: "a", camel_case: "0", kinds: [], again: null }],
    [
      "inner",
      "{'again': {'again': {'text': 'deep'}}}",
      { text: "", camel_case: "0", kinds: [], again: "22060a0464656570" },
    ],
    [
      "inners",
      "[{'text': 'a'}, {'text': NULL}]",
      ["a", ""].map((text) => ({ text, camel_case: "0", kinds: [], again: null })),
    ],
    ["inners", '\'[{"text":"a"}]\'', [{ text: "a", camel_case: "0", kinds: [], again: null }]],
    ["by", "MAP {'x': {'text': 'a'}}", [["x", { text: "a", camel_case: "0", kinds: [], again: null }]]],
    [
      "any",
      '\'{"@type":"type.googleapis.com/c.Inner","text":"a"}\'',
      { type_url: "type.googleapis.com/c.Inner", value: "0a0161" },
    ],
  ])("%s from %s", async (field, sql, expected) => {
    expect(await taken(field, sql)).toEqual(expected);
  });
});

describe("a value that a field cannot hold refuses its row, and says which", () => {
  test.each([
    ["i32", "2147483648", "int32"],
    ["i32", "12.5", "int32"],
    ["i32", "'12.5'", "int32"],
    ["i32", "'twelve'", "int32"],
    ["i32", "''", "int32"],
    ["i32", "'NaN'::DOUBLE", "int32"],
    ["u32", "-1", "uint32"],
    ["u32", "4294967296", "uint32"],
    ["i64", "9223372036854775808::DOUBLE", "int64"],
    ["i64", "'9223372036854775808'", "int64"],
    ["u64", "-1", "uint64"],
    ["u64", "18446744073709551616::HUGEINT", "uint64"],
    ["f", "1e300::DOUBLE", "float"],
    ["f", "'1e300'", "float"],
    ["d", "'1e400'", "double"],
    ["b", "2", "bool"],
    ["b", "'maybe'", "bool"],
    ["s", "'\\xFF'::BLOB", "string"],
    ["s", "('\\xFF'::BLOB || repeat('a', 100)::BLOB)", "string"],
    ["raw", "'a!'", "bytes"],
    ["k", "'TWO'", "c.Kind"],
    ["k", "'one'", "c.Kind"],
    ["k", "'1.5'", "c.Kind"],
    ["k", "2147483648", "c.Kind"],
    ["at", "TIMESTAMP '10000-01-01 00:00:00'", times],
    ["at", "TIMESTAMPTZ '0001-01-01 00:00:00+00' - INTERVAL '1 microsecond'", times],
    ["at", "'infinity'::TIMESTAMP", times],
    ["at", "'infinity'::TIMESTAMP_NS", times],
    ["at", "'-infinity'::DATE", times],
    ["at", "DATE '5000000-01-01'", times],
    ["at", "'2024-13-01'", times],
    ["took", "INTERVAL '1 month'", span],
    ["took", "315576000001000000", span],
    ["took", "'1.5'", span],
    ["v", "'{'", "google.protobuf.Value"],
    ["v", '\'{"a":1,"a":2}\'', "google.protobuf.Value"],
    ["v", "'NaN'::DOUBLE", "google.protobuf.Value"],
    ["j", "'[1]'", "google.protobuf.Struct"],
    ["w", "'5.5'", "google.protobuf.Int64Value", "int64"],
    ["ints", list("1", "NULL"), "an array of int32"],
    ["ints", list("1", "2147483648"), "an array of int32"],
    ["ints", "'[1'", "an array of int32"],
    ["ints", "'{}'", "an array of int32"],
    ["names", "MAP {5: NULL}", "an object of string"],
    ["names", "MAP {'x': 'y'}", "an object of string"],
    ["names", "MAP {'5': 'x', '05': 'y'}", "an object of string"],
    ["names", '\'{"5":"x","5":"y"}\'', "an object of string"],
    ["inner", "'{\"unknown\":1}'", "c.Inner"],
    ["inner", "'\\x0A\\x05a'::BLOB", "c.Inner"],
    ["any", '\'{"@type":"type.googleapis.com/c.None"}\'', "google.protobuf.Any"],
  ])("%s from %s", async (field, sql, expected, inner = expected) => {
    expect(await taken(field, sql)).toBe(`payload.${field}: expected ${inner}`);
  });
});

describe("rows beside each other", () => {
  const good = (row: Record<string, unknown>) => expect.objectContaining(row);
  async function rowsOf(name: string, relation: string, expressions: Record<string, string>) {
    const type = types.types.getMessage(name)!;
    const encoder = await PayloadEncoder.bind(connection, relation, type, types.types, expressions);
    const rows = await encodedRows(connection, relation, encoder);
    return rows.map((row) => (typeof row === "string" ? row : payloadRows(type, [row])[0]));
  }

  test("a row that is refused harms no other, and names the field that is at fault within a message", async () => {
    const relation = `(VALUES (1, '5', {'text': 'a', 'kinds': ['ONE']}), (2, 'x', NULL), (3, NULL, {'text': 'b', 'kinds': ['ONE', 'TWO']}),
      (4, '9', {'text': 'c', 'kinds': NULL})) r(n, i, m)`;
    expect(await rowsOf("c.M", relation, { s: "n", i32: "i", inner: "m" })).toEqual([
      good({ s: "1", i32: "5", inner: good({ text: "a", kinds: ["ONE"] }) }),
      "payload.i32: expected int32",
      "payload.inner.kinds: expected an array of c.Kind",
      good({ s: "4", i32: "9", inner: good({ text: "c", kinds: [] }) }),
    ]);
  });

  test("what the engine itself fails on refuses its row alone", async () => {
    const relation = `(VALUES ('2024-01-01', 'YQ==', INTERVAL '1 second', ['YQ==']), ('294247-01-10 04:00:54.775806', 'YQ==', NULL, NULL),
      ('2024-01-02', '!', NULL, NULL), ('2024-01-03', 'Yg', INTERVAL '2147483647 days', NULL), ('2024-01-04', 'Yw', NULL, ['YQ', '!']),
      ('2024-01-05', '', INTERVAL '2 seconds', ['', 'Yg'])) r(t, b, i, l)`;
    expect(await rowsOf("c.M", relation, { at: "t", raw: "b", took: "i", raws: "l" })).toEqual([
      good({ at: "1704067200000000", raw: "61", took: "1000000", raws: ["61"] }),
      `payload.at: expected ${times}`,
      "payload.raw: expected bytes",
      `payload.took: expected ${span}`,
      "payload.raws: expected an array of bytes",
      good({ at: "1704412800000000", raw: "", took: "2000000", raws: ["", "62"] }),
    ]);
  });

  test("a row with two members of a oneof is refused", async () => {
    const relation = "(VALUES (1, NULL), (NULL, 'a'), (0, ''), (NULL, NULL)) r(a, b)";
    expect(await rowsOf("c.M", relation, { p_text: "b", p_int: "a" })).toEqual([
      good({ p_int: "1", p_text: null }),
      good({ p_int: null, p_text: "a" }),
      "payload.pick: expected one of its members",
      good({ p_int: null, p_text: null }),
    ]);
  });

  test("a required field is not NULL, a closed enum has its own values, loose text may be any bytes", async () => {
    const relation = `(VALUES ('a', 3, [{'n': 1}], 'ok'::BLOB), (NULL, 3, NULL, NULL), ('b', 5, NULL, NULL),
      ('c', NULL, [{'n': NULL}], NULL), ('d', 4, NULL, '\\xFF'::BLOB)) r(id, shut, subs, loose)`;
    expect(await rowsOf("r.M", relation, { id: "id", shut: "shut", subs: "subs", loose: "loose" })).toEqual([
      { id: "a", shut: "A", subs: [{ n: "1" }], loose: "ok" },
      "payload.id: expected string, which is required",
      "payload.shut: expected r.Shut",
      "payload.subs.n: expected int32, which is required",
      { id: "d", shut: "B", subs: [], loose: "\ufffd" },
    ]);
  });

  test("a mapping that can never fit is refused before anything is read", async () => {
    const bind = (name: string, expressions: Record<string, string>) =>
      PayloadEncoder.bind(
        connection,
        "(SELECT 1 AS n, {'n': 1} AS s, {'text': 'a', 'far': 1} AS m, now() AS t)",
        types.types.getMessage(name)!,
        types.types,
        expressions,
      ).then(
        () => undefined,
        (error: Error) => error.message,
      );
    expect(await bind("c.M", { nope: "n" })).toBe("payload.nope: expected a field of c.M");
    expect(await bind("c.M", { at: "n" })).toBe(`payload.at: expected ${times}`);
    expect(await bind("c.M", { i32: "t" })).toBe("payload.i32: expected int32");
    expect(await bind("c.M", { i32: "s" })).toBe("payload.i32: expected int32");
    expect(await bind("c.M", { s: "s" })).toBe("payload.s: expected string");
    expect(await bind("c.M", { raw: "n" })).toBe("payload.raw: expected bytes");
    expect(await bind("c.M", { inner: "n" })).toBe("payload.inner: expected c.Inner");
    expect(await bind("c.M", { inner: "m" })).toBe("payload.inner.far: expected a field of c.Inner");
    expect(await bind("c.M", { ints: "n" })).toBe("payload.ints: expected an array of int32");
    expect(await bind("c.M", { by: "n" })).toBe("payload.by: expected an object of c.Inner");
    expect(await bind("r.M", { loose: "'a'" })).toBe("payload.id: expected a column, for it is required");
    expect(await bind("c.M", { s: "none" })).toMatch(/none/);
  });

  test("a type that no column is given for has empty payloads", async () => {
    expect(await rowsOf("c.M", "range(3)", {})).toEqual([good({ s: "" }), good({ s: "" }), good({ s: "" })]);
  });
});

/** Values at the borders of what columns hold, by the type of the column. */
const EXTREMES: readonly (readonly [string, readonly string[]])[] = [
  ["BOOLEAN", ["true", "false"]],
  ["TINYINT", ["-128", "127", "0"]],
  ["BIGINT", ["-9223372036854775808", "9223372036854775807"]],
  ["HUGEINT", ["-170141183460469231731687303715884105728", "170141183460469231731687303715884105727"]],
  ["UBIGINT", ["0", "18446744073709551615"]],
  ["UHUGEINT", ["0", "340282366920938463463374607431768211455"]],
  ["FLOAT", ["'nan'", "'inf'", "'-inf'", "3.4e38", "-0.0", "0.5"]],
  ["DOUBLE", ["'nan'", "'inf'", "'-inf'", "1.7e308", "5e-324", "9.3e18", "-9.3e18", "0.5"]],
  [
    "DECIMAL(38,0)",
    ["99999999999999999999999999999999999999", "-99999999999999999999999999999999999999", "1"],
  ],
  ["DECIMAL(38,38)", ["'0.99999999999999999999999999999999999999'", "0"]],
  ["DATE", ["'infinity'", "'-infinity'", "'5881580-07-10'", "'5877642-06-25 (BC)'", "'2024-02-29'"]],
  ["TIME", ["'24:00:00'", "'00:00:00'"]],
  [
    "TIMESTAMP",
    ["'infinity'", "'-infinity'", "'294247-01-10 04:00:54.775806'", "'290309-12-22 (BC) 00:00:00'"],
  ],
  ["TIMESTAMP_S", ["'infinity'", "'290309-12-22 (BC) 00:00:00'", "'294247-01-10 04:00:54'"]],
  ["TIMESTAMP_MS", ["'infinity'", "'290309-12-22 (BC) 00:00:00'", "'294247-01-10 04:00:54'"]],
  ["TIMESTAMP_NS", ["'infinity'", "'-infinity'", "'1677-09-22 00:00:00'", "'2262-04-11 23:47:16.854775806'"]],
  [
    "TIMESTAMPTZ",
    ["'infinity'", "'-infinity'", "'294247-01-10 04:00:54.775806+00'", "'290309-12-22 (BC) 00:00:00+00'"],
  ],
  ["INTERVAL", ["'178956970 years'", "'2147483647 days'", "'-2147483648 days'", "'1 month'", "'1 second'"]],
  ["UUID", ["'ffffffff-ffff-ffff-ffff-ffffffffffff'"]],
  ["ENUM('ONE', 'other')", ["'ONE'", "'other'"]],
  ["BLOB", ["''", "'\\x00'", "'\\xFF\\xFE'", "'\\x0A\\x01a'", "'ONE'"]],
  [
    "VARCHAR",
    [
      "''",
      "' '",
      "'1'",
      "'-1'",
      "'99999999999999999999999'",
      "'1e999'",
      "'-inf'",
      "'0x10'",
      "'1_0'",
      "'ONE'",
      "'YQ'",
      "'='",
    ],
  ],
  [
    "VARCHAR",
    [
      "chr(0)",
      "'{}'",
      "'[]'",
      "'[{}]'",
      "'{\"a\":{}}'",
      "'null'",
      "'[null]'",
      "'[[[[1'",
      "repeat('[', 5000)",
      "'\"\\ud800\"'",
    ],
  ],
  [
    "VARCHAR",
    [
      "'999999999999.999999999s'",
      "'s'",
      "'10000-01-01'",
      "'2024-01-01 25:00'",
      "'9999-12-31T23:59:59-14:00'",
      "'infinity'",
    ],
  ],
  ["VARCHAR[]", ["[]", "[NULL]", "['']", "['1', 'x']", "['ONE']"]],
  ["DOUBLE[]", ["['nan'::DOUBLE, 1e300]", "[1, NULL]", "[]"]],
  ["INTEGER[2]", ["[1, NULL]", "[1, -1]"]],
  [
    "STRUCT(text VARCHAR, camelCase DOUBLE)",
    ["{'text': 'a', 'camelCase': 'inf'::DOUBLE}", "{'text': NULL, 'camelCase': 1}"],
  ],
  ["STRUCT(text VARCHAR, camelCase DOUBLE)[]", ["[{'text': 'a', 'camelCase': 0.5}]", "[NULL]", "[]"]],
  ["MAP(VARCHAR, VARCHAR)", ["MAP {}", "MAP {'1': '1'}", "MAP {'x': NULL}", "MAP {'01': 'a', '1': 'b'}"]],
  ["MAP(INTEGER, STRUCT(text BLOB))", ["MAP {1: {'text': '\\xFF'::BLOB}}", "MAP {1: NULL}"]],
];

test("no value of a column fails the chunk that it is in: it is encoded, or its row is refused", async () => {
  const type = types.types.getMessage("c.M")!;
  const checker = new PayloadChecker(type);
  const bound = new Map<string, number>();
  for (const [sql, values] of EXTREMES) {
    const relation = `(SELECT unnest([${[...values, "NULL"].map((value) => `(${value})::${sql}`).join(", ")}]) AS x)`;
    for (const { name } of type.fields) {
      const encoder = await PayloadEncoder.bind(connection, relation, type, types.types, {
        [name]: "x",
      }).catch((error: TributaryError) => {
        expect(error.code, `${name} from ${sql}: ${error.message}`).toBe("TRB-MODEL-INVALID");
        return undefined;
      });
      if (encoder === undefined) continue;
      bound.set(name, (bound.get(name) ?? 0) + 1);
      const rows = await encodedRows(connection, relation, encoder);
      expect(rows.length).toBe(values.length + 1);
      for (const row of rows) {
        if (typeof row === "string") expect(row).toMatch(new RegExp(`^payload\\.${name}[.:]`));
        else expect(checker.check(row, 0, row.length)).toBe(true);
      }
      // NULL is an absent field.
      expect(rows.at(-1)).toEqual(Buffer.alloc(0));
    }
  }
  // Every field takes some of these columns.
  expect([...bound.keys()].sort()).toEqual(type.fields.map(({ name }) => name).sort());
});

test("rows that do not go together go one after the other, and rows that grow move", async () => {
  const type = everyField.types.getMessage("t.All")!;
  const field = type.fields.find((one) => one.fieldKind === "scalar" && one.scalar === ScalarType.STRING)!;
  const list = type.fields.find((one) => one.fieldKind === "list" && one.scalar === ScalarType.STRING)!;
  // Texts of 24 MB in one vector of the engine's, among them one by itself; lists that no row before tells of.
  const relation = `(SELECT repeat('x', CASE i WHEN 700 THEN 9000000 ELSE 7 * i END) AS text,
    CASE WHEN i % 50 = 49 THEN list_transform(range(i), lambda n: 'element ' || n) END AS list FROM range(2048) t(i))`;
  const encoder = await PayloadEncoder.bind(connection, relation, type, everyField.types, {
    [field.name]: "text",
    [list.name]: "list",
  });
  const encoded = await encodedRows(connection, relation, encoder);
  expect(encoded.length).toBe(2048);
  for (const [i, bytes] of encoded.entries()) {
    const message = fromBinary(type, bytes as Buffer) as unknown as Record<string, unknown>;
    const text = message[field.localName] as string;
    expect([text.length, text.replaceAll("x", "")]).toEqual([i === 700 ? 9_000_000 : 7 * i, ""]);
    const elements = i % 50 === 49 ? Array.from({ length: i }, (_, n) => `element ${n}`) : [];
    expect(message[list.localName]).toEqual(elements);
  }
});

test("a byte that is not UTF-8 is found wherever it stands", async () => {
  const type = types.types.getMessage("c.M")!;
  const relation = (bad: string) =>
    `(SELECT repeat('a', n)::BLOB || '${bad}'::BLOB || repeat('a', m)::BLOB AS x
      FROM (SELECT unnest(range(0, 40) || [510, 511, 512, 600]) AS n), (SELECT unnest(range(0, 14)) AS m))`;
  const encoded = async (bad: string) => {
    const encoder = await PayloadEncoder.bind(connection, relation(bad), type, types.types, { s: "x" });
    return encodedRows(connection, relation(bad), encoder);
  };
  for (const bad of ["\\xFF", "\\xC3", "\\xED\\xA0\\x80"]) {
    const rows = await encoded(bad);
    expect(rows.length).toBe(44 * 14);
    expect(new Set(rows)).toEqual(new Set(["payload.s: expected string"]));
  }
  const rows = await encoded("\\xC3\\xBC\\xF0\\x9F\\x9C\\x81");
  expect(rows.every((row) => typeof row !== "string" && row.includes("ü🜁"))).toBe(true);
});

test("fields are written in the order of their numbers, whatever the order of the mapping and of structs", async () => {
  const type = types.types.getMessage("c.M")!;
  const relation = "(SELECT 1 AS a, 2 AS b, 'c' AS c, {'kinds': [1], 'camel_case': 2, 'text': 't'} AS d)";
  for (const expressions of [
    { i32: "a", i64: "b", s: "c", inner: "d" },
    { inner: "d", s: "c", i64: "b", i32: "a" },
  ]) {
    const encoder = await PayloadEncoder.bind(connection, relation, type, types.types, expressions);
    const [row] = await encodedRows(connection, relation, encoder);
    expect((row as Buffer).toString("hex")).toBe("08011802620163aa01080a017410021a0101");
  }
});
