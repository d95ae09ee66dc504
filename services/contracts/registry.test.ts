import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { create, fromBinary, fromJson, type JsonValue, toBinary, toJson } from "@bufbuild/protobuf";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { packageRoot } from "../base/paths.js";
import { ProtoRegistry } from "./registry.js";

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), "registry-"));
});
afterEach(() => rmSync(dir, { recursive: true }));

const put = (name: string, text: string): void => {
  mkdirSync(dirname(join(dir, name)), { recursive: true });
  writeFileSync(join(dir, name), text);
};

/** The TRB-CONFIG message that loading the folder ends with. */
function refusal(): string {
  try {
    ProtoRegistry.load([dir]);
  } catch (error) {
    expect(error).toMatchObject({ code: "TRB-CONFIG" });
    return (error as Error).message;
  }
  throw new Error("the folder was loaded");
}

const everything = `// a comment before the syntax
syntax = "proto3";
package demo.v2;
import "google/protobuf/timestamp.proto";
import "demo/v2/other.proto";
message All {
  message Inner { int32 depth = 1; enum Kind { KIND_NONE = 0; KIND_SOME = 5; } Kind kind = 2; All up = 3; }
  string plain_name = 1; bytes raw = 2; bool yes = 3; double real = 4; float single = 5;
  int32 i32 = 6; int64 i64 = 7; uint32 u32 = 8; uint64 u64 = 9; sint32 s32 = 10; sint64 s64 = 11;
  fixed32 f32 = 12; fixed64 f64 = 13; sfixed32 sf32 = 14; sfixed64 sf64 = 15;
  string renamed = 16 [json_name = "calledThis"];
  optional int32 maybe = 17;
  oneof choice_of { string left_side = 18; Inner right_side = 19; }
  repeated int64 packed_numbers = 20; repeated int32 loose_numbers = 21 [packed = false];
  repeated Inner inners = 22; map<string, Inner> by_name = 23; map<int64, string> by_number = 24;
  google.protobuf.Timestamp at_time = 25; demo.v2.Colour colour = 26; other.v1.Far far = 27;
  optional string second_maybe = 28; map<string, demo.v2.Colour> colour_by_name = 29;
}
`;
const other = `syntax = "proto3"; package other.v1; message Far { string name_1 = 1; }`;
const colours = `syntax = "proto3"; package demo.v2; import "far.proto";
enum Colour { COLOUR_UNSPECIFIED = 0; COLOUR_RED = 1; COLOUR_NEGATIVE = -3; }`;

function loadEverything(): ProtoRegistry {
  put(
    "demo/v2/all.proto",
    everything.replace('import "demo/v2/other.proto";', 'import "demo/v2/other.proto"; import "far.proto";'),
  );
  put("demo/v2/other.proto", colours);
  put("far.proto", other);
  return ProtoRegistry.load([dir]);
}

test("the shipped folders give the shipped entity types and keep the envelope out of them", () => {
  const registry = ProtoRegistry.load([join(packageRoot, "proto")]);
  expect(registry.entityTypes()).toEqual([
    "scm.v1.Commit",
    "scm.v1.File",
    "tracker.v1.Issue",
    "tracker.v1.Project",
  ]);
  expect(registry.entityType("tributary.v1.ChangeEvent")).toBeUndefined();
  expect(registry.entityType("google.protobuf.Any")).toBeUndefined();
  expect(registry.entityType("tracker.v1.Priority")).toBeUndefined();
  expect(registry.lookup("tributary.v1.ChangeEvent")).toBeDefined();
  expect(registry.lookup("tracker.v1.Priority")).toBeDefined();
  expect(registry.lookup("tracker.v1")).toBeUndefined();
  expect(registry.entityType("scm.v1.File")!.fields.last_commit_sha!.comment).toMatch(/last touched/);
});

test("a folder of its own is enough: the envelope comes along", () => {
  put("shop.proto", `syntax = "proto3"; package shop.v1; message Order { string id = 1; }`);
  const registry = ProtoRegistry.load([dir]);
  expect(registry.entityTypes()).toEqual(["shop.v1.Order"]);
  expect(registry.jsonRegistry.getMessage("tributary.v1.PublishRequest")).toBeDefined();
});

test("the JSON registry agrees with the binary one on every kind of field", () => {
  const registry = loadEverything();
  expect(registry.entityTypes()).toEqual(["demo.v2.All", "other.v1.Far"]);
  const schema = registry.jsonRegistry.getMessage("demo.v2.All")!;
  const json: JsonValue = {
    plainName: "ä",
    raw: "AAEC/w==",
    yes: true,
    real: 1.5,
    single: 0.25,
    i32: -5,
    i64: "-9223372036854775808",
    u32: 4294967295,
    u64: "18446744073709551615",
    s32: -7,
    s64: "-8",
    f32: 9,
    f64: "10",
    sf32: -11,
    sf64: "-12",
    calledThis: "x",
    maybe: 0,
    rightSide: { depth: 3, kind: "KIND_SOME" },
    packedNumbers: ["1", "-1", "9007199254740993"],
    looseNumbers: [1, 300],
    inners: [{ depth: 1 }, { up: { yes: true } }],
    byName: { a: { depth: 1 } },
    byNumber: { "-4": "four" },
    atTime: "2024-02-29T12:00:00.123456789Z",
    colour: "COLOUR_NEGATIVE",
    far: { name1: "n" },
    secondMaybe: "",
    colourByName: { r: "COLOUR_RED" },
  };
  const message = fromJson(schema, json, { registry: registry.jsonRegistry });
  const wire = toBinary(schema, message);
  const type = registry.entityType("demo.v2.All")!;
  const decoded = type.decode(wire);
  const plain = type.toObject(decoded, { longs: String, enums: String, bytes: String });
  expect(plain).toMatchObject({
    plain_name: "ä",
    raw: "AAEC/w==",
    i64: "-9223372036854775808",
    u64: "18446744073709551615",
    renamed: "x",
    maybe: 0,
    second_maybe: "",
    right_side: { depth: 3, kind: "KIND_SOME" },
    packed_numbers: ["1", "-1", "9007199254740993"],
    loose_numbers: [1, 300],
    by_name: { a: { depth: 1 } },
    at_time: { seconds: "1709208000", nanos: 123456789 },
    colour: "COLOUR_NEGATIVE",
    far: { name_1: "n" },
    colour_by_name: { r: "COLOUR_RED" },
  });
  expect(Object.values(plain.by_number as object)).toEqual(["four"]);
  // Re-encoded by the other library, it is the same message, and prints as the same JSON.
  const again = fromBinary(schema, type.encode(decoded).finish());
  expect(toJson(schema, again, { registry: registry.jsonRegistry })).toEqual(json);
  // Presence and packing are those of the file, not a library's guess.
  expect(schema.field.looseNumbers!).toMatchObject({ packed: false });
  expect(schema.field.packedNumbers!).toMatchObject({ packed: true });
  expect(schema.oneofs.map((oneof) => oneof.name)).toEqual(["choice_of"]);
  expect(toBinary(schema, create(schema)).length).toBe(0);
});

test("custom options, which import Google's descriptor file, do no harm", () => {
  put(
    "opt.proto",
    `syntax = "proto3"; package opt.v1; import "google/protobuf/descriptor.proto";
     extend google.protobuf.FieldOptions { string column = 50001; }
     message Row { string id = 1 [(column) = "identifier"]; }`,
  );
  const registry = ProtoRegistry.load([dir]);
  expect(registry.entityTypes()).toEqual(["opt.v1.Row"]);
  expect(registry.jsonRegistry.getMessage("opt.v1.Row")!.fields.map((field) => field.name)).toEqual(["id"]);
});

describe("what cannot be loaded is refused with its file and line", () => {
  test("a syntax error", () => {
    put("a/bad.proto", `syntax = "proto3";\npackage a;\nmessage Bad {\n  string = 1;\n}\n`);
    expect(refusal()).toMatch(/a\/bad\.proto, line 4/);
  });
  test("an unknown field type", () => {
    put("bad.proto", `syntax = "proto3";\npackage a;\n\nmessage Bad {\n  Missing it = 1;\n}\n`);
    expect(refusal()).toMatch(/bad\.proto, line 5: .*Missing/);
  });
  test("an import that is nowhere", () => {
    put("bad.proto", `syntax = "proto3";\nimport "no/such.proto";\n`);
    expect(refusal()).toMatch(/bad\.proto, line 2: import "no\/such\.proto"/);
  });
  test("another syntax than proto3", () => {
    put("bad.proto", `syntax = "proto2"; message M { required string a = 1; }`);
    expect(refusal()).toMatch(/bad\.proto, line 1: expected syntax = "proto3"/);
  });
  test("one message defined by two files", () => {
    put("a.proto", `syntax = "proto3"; package p; message M {}`);
    put("b.proto", `syntax = "proto3"; package p;\nmessage M {}`);
    expect(refusal()).toMatch(/b\.proto, line 2: .*M/);
  });
  test("a field of a Google message that JSON support does not cover", () => {
    put(
      "api.proto",
      `syntax = "proto3"; import "google/protobuf/api.proto"; message M { google.protobuf.Api a = 1; }`,
    );
    expect(refusal()).toMatch(/proto files: .*google\.protobuf\.Api/);
  });
  test("a folder that is not there", () => {
    expect(() => ProtoRegistry.load([join(dir, "nowhere")])).toThrow(/protoDirs/);
  });
});
