import { join } from "node:path";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import protobuf from "protobufjs";
import { describe, expect, test } from "vitest";
import { inlineProtos } from "../../test/support/inline-protos.js";
import { packageRoot } from "../base/paths.js";
import { PayloadChecker } from "./payload.js";
import { ProtoRegistry } from "./registry.js";
import { unpackAside, unpackAtOnce, unpackPayload } from "./unpack.js";

const registry = ProtoRegistry.load([join(packageRoot, "proto")]);
const inline = inlineProtos({
  "t.proto": `syntax = "proto3"; package t; import "google/protobuf/timestamp.proto";
   message All {
     message Inner { int32 depth = 1; All up = 3; }
     string text = 1; bytes raw = 2; bool yes = 3; double real = 4; float single = 5; int64 big = 6;
     sfixed32 f32 = 7; fixed64 f64 = 8; repeated sint64 packed = 9; repeated int32 loose = 10 [packed = false];
     repeated Inner inners = 11; map<string, Inner> by_name = 12; map<int64, string> by_number = 13;
     Kind kind = 14; repeated double reals = 15; repeated string texts = 2000; google.protobuf.Timestamp at = 17;
   }
   enum Kind { KIND_NONE = 0; KIND_ONE = 1; }`,
  "old.proto": `package old; import "google/protobuf/timestamp.proto";
   message Old {
     required int32 id = 1; optional string loose = 2;
     optional group Part = 3 { required int32 id = 1; optional Old up = 2; repeated group Deep = 3 { optional int32 n = 1; } }
     extensions 100 to 200;
   }
   message Sub { optional Old old = 1; }`,
  "new.proto": `edition = "2023"; package new; import "google/protobuf/timestamp.proto";
   option features.message_encoding = DELIMITED;
   message New { google.protobuf.Timestamp at = 1; string loose = 2 [features.utf8_validation = NONE]; }`,
});
const All = inline.codec("t.All");
const checker = new PayloadChecker(inline.entityType("t.All")!);
const accepts = (bytes: Uint8Array) => checker.check(bytes, 0, bytes.length);
const hex = (text: string) => Uint8Array.from(Buffer.from(text.replaceAll(" ", ""), "hex"));

const text = fc.string({ unit: "binary", maxLength: 12 }).map((value) => Buffer.from(value).toString());
const { message } = fc.letrec<{ message: Record<string, unknown>; inner: Record<string, unknown> }>(
  (tie) => ({
    inner: fc.record(
      { depth: fc.integer(), up: fc.oneof({ maxDepth: 3 }, fc.constant({}), tie("message")) },
      { requiredKeys: [] },
    ),
    message: fc.record(
      {
        text,
        raw: fc.uint8Array({ maxLength: 10 }),
        yes: fc.boolean(),
        real: fc.double(),
        single: fc.float(),
        big: fc.integer(),
        f32: fc.integer(),
        f64: fc.nat(),
        packed: fc.array(fc.integer(), { maxLength: 5 }),
        loose: fc.array(fc.integer(), { maxLength: 3 }),
        inners: fc.array(tie("inner"), { maxLength: 2 }),
        by_name: fc.dictionary(text, tie("inner"), { maxKeys: 2 }),
        by_number: fc.dictionary(fc.nat().map(String), text, { maxKeys: 2 }),
        kind: fc.integer({ min: 0, max: 3 }),
        reals: fc.array(fc.double(), { maxLength: 3 }),
        texts: fc.array(text, { maxLength: 3 }),
        at: fc.record({ seconds: fc.integer(), nanos: fc.integer({ min: 0, max: 999_999_999 }) }),
      },
      { requiredKeys: [] },
    ),
  }),
);
const encode = (value: Record<string, unknown>) => All.encode(All.create(value)).finish();

test("whatever protobufjs encodes is accepted", () => {
  fc.assert(
    fc.property(message, (value) => {
      expect(accepts(encode(value))).toBe(true);
    }),
    { numRuns: 300 },
  );
});

test("what is accepted after damage, protobufjs decodes; nothing throws", () => {
  let accepted = 0;
  fc.assert(
    fc.property(message, fc.nat(), fc.nat(255), fc.boolean(), (value, at, byte, cut) => {
      const bytes = Buffer.from(encode(value));
      if (bytes.length === 0) return;
      const damaged = cut ? bytes.subarray(0, at % bytes.length) : bytes;
      if (!cut) damaged[at % bytes.length] = byte;
      if (!accepts(damaged)) return;
      All.decode(damaged);
      accepted++;
    }),
    { numRuns: 3000 },
  );
  expect(accepted).toBeGreaterThan(20);
});

describe("payloads", () => {
  const deep = (levels: number): Uint8Array => {
    let bytes: Uint8Array = new Uint8Array();
    for (let i = 0; i < levels; i++) {
      const wrapper = new protobuf.Writer().uint32((levels - i) % 2 === 0 ? 26 : 90).bytes(bytes);
      bytes = wrapper.finish();
    }
    return bytes;
  };
  test.each<[string, Uint8Array, boolean]>([
    ["nothing", new Uint8Array(), true],
    [
      "an unknown field of each wire type",
      hex("f807 01 f907 0102030405060708 fa07 01ff fd07 01020304"),
      true,
    ],
    ["an unknown group", hex("fb07 fc07"), true],
    ["an unknown group with fields and a group in it", hex("fb07 0801 0b 0a0161 0c fc07 1801"), true],
    ["an unknown group that does not end", hex("fb07 0801"), false],
    ["an unknown group that ends as another", hex("fb07 0c"), false],
    ["an end without a group", hex("fc07"), false],
    ["100 unknown groups", hex(`${"fb07".repeat(99)}${"fc07".repeat(99)}`), true],
    ["101 unknown groups", hex(`${"fb07".repeat(100)}${"fc07".repeat(100)}`), false],
    ["a hundred thousand unknown groups", hex("fb07".repeat(100_000)), false],
    ["a known field as a group", hex("5b 5c"), false],
    ["a string that is not UTF-8", hex("0a 01 ff"), false],
    ["bytes that are not UTF-8", hex("12 01 ff"), true],
    ["a string as a varint", hex("08 01"), false],
    ["a varint as a string", hex("1a 01 01"), false],
    ["a length past the end", hex("0a 05 61"), false],
    ["a length of five bytes past the end", hex("0a ffffffff0f 61"), false],
    ["a lone tag", hex("0a"), false],
    ["a packed list where the file says packed", hex("4a 02 0203"), true],
    ["a packed list where the file says not packed", hex("52 02 0203"), true],
    ["single values where the file says packed", hex("48 02 48 03"), true],
    ["a packed list that ends within a value", hex("4a 02 0283"), false],
    ["a packed list of doubles of 9 bytes", hex("7a 09 000000000000000000"), false],
    ["a list of strings given as varints", hex("8001 01"), true],
    ["a string of a high field number, damaged", hex("827d 01 ff"), false],
    ["a map entry", hex("6a 05 0807 12 01 61"), true],
    ["a map entry with a damaged value", hex("6a 05 0807 12 01 ff"), false],
    ["a map entry with a key of another wire type", hex("6a 03 0a 01 61"), false],
    ["an unknown enum number", hex("70 63"), true],
    ["the last second of year 9999", hex("8a01 07 08ff82d1ffaf07"), true],
    ["the first second of year 10000", hex("8a01 07 088083d1ffaf07"), false],
    ["the first second of year 1", hex("8a01 0b 088092b8c398feffffff01"), true],
    ["the second before year 1", hex("8a01 0b 08ff91b8c398feffffff01"), false],
    ["a timestamp with nanos out of range", hex("8a01 06 10 8094ebdc03"), false],
    ["100 levels", deep(99), true],
    ["101 levels", deep(100), false],
    ["10,000 levels", deep(10_000), false],
  ])("%s", (_name, bytes, expected) => {
    expect(accepts(bytes)).toBe(expected);
  });

  test.each<[string, string, string, boolean]>([
    ["a required field", "old.Old", "0801", true],
    ["no required field", "old.Old", "1201 61", false],
    ["no required field in a nested message", "old.Sub", "0a00", false],
    ["a string of proto2 that is not UTF-8", "old.Old", "0801 1201ff", true],
    ["a group", "old.Old", "0801 1b 0802 1c", true],
    ["a group without its required field", "old.Old", "0801 1b 1c", false],
    ["a group that does not end", "old.Old", "0801 1b 0802", false],
    ["a group that ends as another", "old.Old", "0801 1b 0802 14", false],
    ["a group of another wire type", "old.Old", "0801 1a02 0802", false],
    ["groups in a group", "old.Old", "0801 1b 0802 1b 0803 1c 1b 1c 1c", true],
    ["a message in a group, without its required field", "old.Old", "0801 1b 0802 1200 1c", false],
    ["an extension", "old.Old", "0801 a006 05", true],
    ["a delimited timestamp", "new.New", "0b 0801 0c", true],
    ["a delimited timestamp beyond year 9999", "new.New", "0b 088083d1ffaf07 0c", false],
    ["a string that need not be UTF-8", "new.New", "1201ff", true],
  ])("%s, of proto2 and editions", (_name, type, bytes, expected) => {
    const payload = hex(bytes);
    expect(new PayloadChecker(inline.entityType(type)!).check(payload, 0, payload.length)).toBe(expected);
  });

  test("the shipped types take what their producers send", () => {
    const Issue = registry.codec("tracker.v1.Issue");
    const issue = {
      key: "PAY-1",
      status: "Open",
      labels: ["a", "b"],
      custom_fields: { k: "v" },
      story_points: 0.5,
      priority: 3,
    };
    const bytes = Issue.encode(Issue.create(issue)).finish();
    expect(new PayloadChecker(registry.entityType("tracker.v1.Issue")!).check(bytes, 0, bytes.length)).toBe(
      true,
    );
    const Commit = registry.entityType("scm.v1.Commit")!;
    expect(new PayloadChecker(Commit).check(bytes, 0, bytes.length)).toBe(false);
  });
});

describe("packed payloads", () => {
  const plain = Buffer.from(
    "PAY-12 gamma lorem gamma lorem lorem lorem PAY-12 alpha delta beta lorem alpha beta alpha gamma delta beta " +
      "delta PAY-12 alpha PAY-12 beta alpha lorem beta delta gamma beta delta beta alpha beta PAY-12 PAY-12 delta " +
      "beta beta alpha alpha beta beta beta beta gamma gamma beta PAY-12 lorem lorem beta beta lorem beta " +
      "delta gamma alpha gamma delta beta",
  );
  // Written by the reference encoder, reading from a pipe: no content size, with a checksum.
  const zstd = Buffer.from(
    "KLUv/QRYnQMAFAJQQVktMTIgZ2FtbWEgbG9yZW1hbHBoYSBkZWx0YSBiZXQjICBC5iAf9CgQWoUoGPhyWMiANiB6AFzIbgAqAiPCjAjq4JAD" +
      "LwDGADGgfMB0gLwAPSBvAM4g4YA5YDFgeYAdoF5QB5An5WBehpWG4EcJA0ct4Ds=",
    "base64",
  );
  // Three million zeros, by the same encoder.
  const zstdBomb = Buffer.from(
    "KLUv/QRYVAAAEAAAAQD7/znAAgIAEAACABAAAgAQAAIAEAACABAAAgAQAAIAEAACABAAAgAQAAIAEAACABAAAgAQAAIAEAACABAAAgAQAAIAEAAC" +
      "ABAAAgAQAAM2DgADya/W",
    "base64",
  );
  const zeros = gzipSync(Buffer.alloc(50_000_000));
  /** A frame with a content size of one byte and the given blocks. */
  const frame = (size: number, ...blocks: string[]) =>
    hex(`28b52ffd 20 ${size.toString(16).padStart(2, "0")} ${blocks.join(" ")}`);
  const minutes = hex("28b52ffd 00 38 550000 01 61 ff ffff 54 00 01 34 01");
  const GZIP = 1;
  const ZSTD = 2;

  test.each<[string, number, Uint8Array, Uint8Array | string]>([
    ["not packed", 0, plain, plain],
    ["not packed and too large", 0, Buffer.alloc(1001), "TRB-EVENT-PAYLOAD-SIZE"],
    ["gzip", GZIP, gzipSync(plain), plain],
    ["gzip of nothing", GZIP, gzipSync(""), Buffer.alloc(0)],
    ["gzip, exactly the limit", GZIP, gzipSync(Buffer.alloc(1000)), Buffer.alloc(1000)],
    ["gzip, one over the limit", GZIP, gzipSync(Buffer.alloc(1001)), "TRB-EVENT-PAYLOAD-SIZE"],
    ["a gzip bomb", GZIP, zeros, "TRB-EVENT-PAYLOAD-SIZE"],
    ["gzip, cut", GZIP, gzipSync(plain).subarray(0, 40), "TRB-EVENT-COMPRESSION"],
    ["gzip that is not", GZIP, plain, "TRB-EVENT-COMPRESSION"],
    ["gzip, empty", GZIP, Buffer.alloc(0), "TRB-EVENT-COMPRESSION"],
    ["zstd", ZSTD, zstd, plain],
    ["zstd, cut", ZSTD, zstd.subarray(0, 90), "TRB-EVENT-COMPRESSION"],
    ["zstd with bytes after it", ZSTD, Buffer.concat([zstd, zstd]), "TRB-EVENT-COMPRESSION"],
    ["zstd that is not", ZSTD, plain, "TRB-EVENT-COMPRESSION"],
    ["a zstd bomb", ZSTD, zstdBomb, "TRB-EVENT-PAYLOAD-SIZE"],
    ["a raw zstd block", ZSTD, frame(3, "190000 616263"), Buffer.from("abc")],
    ["a zstd block larger than it says", ZSTD, frame(2, "190000 616263"), "TRB-EVENT-COMPRESSION"],
    ["a zstd frame that ends early", ZSTD, frame(4, "190000 616263"), "TRB-EVENT-COMPRESSION"],
    ["a run of one zstd byte", ZSTD, frame(255, "fb0700 61"), Buffer.alloc(255, "a")],
    [
      "a run that says it is one over the limit",
      ZSTD,
      hex("28b52ffd 60 e902 4b1f00 61"),
      "TRB-EVENT-PAYLOAD-SIZE",
    ],
    ["a zstd window of 16 MiB", ZSTD, hex("28b52ffd 00 70 190000 616263"), "TRB-EVENT-COMPRESSION"],
    ["a zstd window of gigabytes", ZSTD, hex("28b52ffd 00 a8 190000 616263"), "TRB-EVENT-COMPRESSION"],
    [
      "a zstd window of 8 MiB, with less in it",
      ZSTD,
      hex("28b52ffd 00 68 190000 616263"),
      Buffer.from("abc"),
    ],
    [
      "a hundred thousand empty zstd blocks",
      ZSTD,
      hex(`28b52ffd 00 68 ${"000000".repeat(100_000)} 010000`),
      Buffer.alloc(0),
    ],
    // One block of 98,303 sequences, each a match of 65,539 bytes: six gigabytes by its own account.
    ["a zstd block that asks for minutes", ZSTD, minutes, "TRB-EVENT-PAYLOAD-SIZE"],
    ["a zstd dictionary", ZSTD, hex("28b52ffd 21 01 03 190000 616263"), "TRB-EVENT-COMPRESSION"],
    ["compression 7", 7, plain, "TRB-EVENT-COMPRESSION"],
  ])("%s", async (_name, compression, bytes, expected) => {
    const started = performance.now();
    const results = [
      unpackPayload(compression, bytes, 1000),
      unpackAtOnce(compression, bytes, 1000) ?? expected,
      compression === GZIP ? await unpackAside(bytes, 1000) : expected,
    ];
    for (const result of results) {
      if (typeof expected === "string") expect(result).toBe(expected);
      else expect(Buffer.from(result as Uint8Array).equals(expected)).toBe(true);
    }
    // Milliseconds at most; a decoder that believes what it reads takes a thousand times as long.
    expect(performance.now() - started).toBeLessThan(2_000);
  });

  test("gzip of much is not for this thread, whatever its trailer says", async () => {
    const content = Buffer.alloc(100_000, "ab");
    const packed = gzipSync(content);
    const lying = Buffer.from(packed);
    lying.writeUInt32LE(10, lying.length - 4);
    expect(unpackAtOnce(GZIP, packed, 1_000_000)).toBeUndefined();
    expect(unpackAtOnce(GZIP, lying, 1_000_000)).toBeUndefined();
    expect(await unpackAside(packed, 1_000_000)).toEqual(content);
    expect(await unpackAside(lying, 1_000_000)).toBe("TRB-EVENT-COMPRESSION");
    expect(await unpackAside(packed, 50_000)).toBe("TRB-EVENT-PAYLOAD-SIZE");
    expect(unpackAtOnce(GZIP, gzipSync(plain), 1_000_000)).toEqual(plain);
  });

  test("damaged frames never throw nor exceed the limit", () => {
    fc.assert(
      fc.property(
        fc.constantFrom(zstd, zstdBomb, gzipSync(plain)),
        fc.nat(),
        fc.nat(255),
        (source, at, byte) => {
          const bytes = Buffer.from(source);
          bytes[at % bytes.length] = byte;
          for (const compression of [GZIP, ZSTD]) {
            const result = unpackPayload(compression, bytes, 1000);
            if (typeof result !== "string") expect(result.length).toBeLessThanOrEqual(1000);
          }
        },
      ),
      { numRuns: 500 },
    );
  });
});
