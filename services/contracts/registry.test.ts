import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { create, fromBinary, fromJson, type JsonValue, toBinary, toJson } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema, FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { packageRoot } from "../base/paths.js";
import { compileProtos, importsFile } from "./protoc.js";
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
  expect(registry.types.getMessage("tributary.v1.ChangeEvent")).toBeDefined();
  expect(registry.codec("tributary.v1.ChangeEvent").fields.entity_id!.id).toBe(3);
  expect(() => registry.codec("tracker.v1.Nope")).toThrow(/tracker\.v1\.Nope/);
});

test("a folder of its own is enough: the envelope comes along", () => {
  put("shop.proto", `syntax = "proto3"; package shop.v1; message Order { string id = 1; }`);
  const registry = ProtoRegistry.load([dir]);
  expect(registry.entityTypes()).toEqual(["shop.v1.Order"]);
  expect(registry.types.getMessage("tributary.v1.PublishRequest")).toBeDefined();
});

test("the JSON registry agrees with the binary one on every kind of field", () => {
  const registry = loadEverything();
  expect(registry.entityTypes()).toEqual(["demo.v2.All", "other.v1.Far"]);
  const schema = registry.types.getMessage("demo.v2.All")!;
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
  const message = fromJson(schema, json, { registry: registry.types });
  const wire = toBinary(schema, message);
  const type = registry.codec("demo.v2.All");
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
  expect(toJson(schema, again, { registry: registry.types })).toEqual(json);
  // Presence and packing are those of the file, not a library's guess.
  expect(schema.field.looseNumbers!).toMatchObject({ packed: false });
  expect(schema.field.packedNumbers!).toMatchObject({ packed: true });
  expect(schema.oneofs.map((oneof) => oneof.name)).toEqual(["choice_of"]);
  expect(toBinary(schema, create(schema)).length).toBe(0);
});

describe("contracts as the world writes them", () => {
  test("imports of Google's and buf's files need no folder, and options mean nothing here", () => {
    put(
      "shop/v1/order.proto",
      `syntax = "proto3"; package shop.v1;
       import "buf/validate/validate.proto"; import "google/api/annotations.proto"; import "google/api/client.proto";
       import "google/api/field_behavior.proto"; import "google/api/resource.proto"; import "google/rpc/status.proto";
       import "google/type/date.proto"; import "google/type/latlng.proto"; import "google/type/money.proto";
       import "google/longrunning/operations.proto"; import "google/protobuf/descriptor.proto";
       extend google.protobuf.FieldOptions { string column = 50001; }
       message Order {
         option (google.api.resource) = { type: "shop/Order" pattern: "orders/{order}" };
         string id = 1 [(column) = "identifier", (google.api.field_behavior) = REQUIRED, (buf.validate.field).string.min_len = 1];
         google.type.Money total = 2; google.type.LatLng where = 3; google.type.Date due = 4; google.rpc.Status last = 5;
       }
       service Orders { rpc Get(Order) returns (Order) { option (google.api.http) = { get: "/v1/{id=orders/*}" }; } }`,
    );
    const registry = ProtoRegistry.load([dir]);
    expect(registry.entityTypes()).toEqual(["shop.v1.Order"]);
    const order = registry.entityType("shop.v1.Order")!;
    expect(order.fields.map(({ name, message }) => message?.typeName ?? name)).toEqual([
      "id",
      "google.type.Money",
      "google.type.LatLng",
      "google.type.Date",
      "google.rpc.Status",
    ]);
    expect(registry.codec("shop.v1.Order").fields.total!.id).toBe(2);
  });

  test("proto2, editions and a file without a syntax line, importing each other", () => {
    put(
      "old.proto",
      `package old; message Old { required int32 id = 1; optional group Part = 2 { optional int32 n = 1; } extensions 10 to 20; }`,
    );
    put(
      "ext.proto",
      `syntax = "proto2"; package ext; import "old.proto"; extend old.Old { optional string note = 10; }`,
    );
    put(
      "new.proto",
      `edition = "2024"; package fresh; import "old.proto"; message New { old.Old old = 1; int32 n = 2 [features.field_presence = IMPLICIT]; }`,
    );
    put("mid.proto", `edition = "2023"; package mid; import "new.proto"; message Mid { fresh.New new = 1; }`);
    const registry = ProtoRegistry.load([dir]);
    expect(registry.entityTypes()).toEqual(["fresh.New", "mid.Mid", "old.Old"]);
    const part = registry.entityType("old.Old")!.fields[1]!;
    expect(part).toMatchObject({ name: "part", delimitedEncoding: true });
  });

  test("a FileDescriptorSet does without the folders, and folders may import from it", () => {
    const set = join(dir, "set.binpb");
    put("a/lib.proto", `syntax = "proto2"; package lib; message Lib { optional int32 n = 1; }`);
    put(
      "a/shop.proto",
      `syntax = "proto3"; package shop; import "lib.proto"; message Shop { lib.Lib lib = 1; }`,
    );
    const files = compileProtos([join(dir, "a")], ["shop.proto"], [importsFile]);
    writeFileSync(set, toBinary(FileDescriptorSetSchema, create(FileDescriptorSetSchema, { file: files })));
    expect(ProtoRegistry.load([], [set]).entityTypes()).toEqual(["lib.Lib", "shop.Shop"]);
    put(
      "b/more.proto",
      `syntax = "proto3"; package more; import "shop.proto"; message More { shop.Shop shop = 1; }`,
    );
    expect(ProtoRegistry.load([join(dir, "b")], [set]).entityTypes()).toEqual([
      "lib.Lib",
      "more.More",
      "shop.Shop",
    ]);
    expect(() => ProtoRegistry.load([join(dir, "a")], [set])).toThrow(/lib\.proto: stands in protoDirs and/);
  });

  test("a set that lacks its imports, is none, or is not there, is refused by name", () => {
    const set = join(dir, "set.binpb");
    const load = () => ProtoRegistry.load([], [set]);
    expect(load).toThrow(/protoDescriptors: .*set\.binpb is not a readable file/);
    writeFileSync(set, "no descriptors at all");
    expect(load).toThrow(/set\.binpb is no FileDescriptorSet/);
    writeFileSync(set, "");
    expect(load).toThrow(/set\.binpb is no FileDescriptorSet/);
    put("a/lib.proto", `syntax = "proto3"; package lib; message Lib { int32 n = 1; }`);
    put(
      "a/shop.proto",
      `syntax = "proto3"; package shop; import "lib.proto"; message Shop { lib.Lib lib = 1; }`,
    );
    const files = compileProtos([join(dir, "a")], ["shop.proto"], [importsFile]);
    const alone = files.filter((file) => file.name === "shop.proto");
    writeFileSync(set, toBinary(FileDescriptorSetSchema, create(FileDescriptorSetSchema, { file: alone })));
    expect(load).toThrow(/shop\.proto: import "lib\.proto" is in none of protoDescriptors/);
    const twice = [...files, create(FileDescriptorProtoSchema, { ...files[0]!, name: "other.proto" })];
    writeFileSync(set, toBinary(FileDescriptorSetSchema, create(FileDescriptorSetSchema, { file: twice })));
    expect(load).toThrow(/other\.proto: lib\.Lib is defined by lib\.proto too/);
  });

  test("one file in two folders is one file when it is the same, and refused when it is not", () => {
    const text = `syntax = "proto3"; package a; message A { int32 n = 1; }`;
    put("one/a.proto", text);
    put("two/a.proto", text);
    const load = () => ProtoRegistry.load([join(dir, "one"), join(dir, "two")]);
    expect(load().entityTypes()).toEqual(["a.A"]);
    put("two/a.proto", `${text} // and more`);
    expect(load).toThrow(/^a\.proto: found in more than one of protoDirs/);
  });
});

describe("what cannot be loaded is refused with its file, line and column", () => {
  test("a syntax error, with the line itself", () => {
    put("a/bad.proto", `syntax = "proto3";\npackage a;\nmessage Bad {\n  string = 1;\n}\n`);
    expect(refusal()).toMatch(/^a\/bad\.proto, line 4, column 10: .* \(string = 1;\)$/);
  });
  test("an unknown field type", () => {
    put("bad.proto", `syntax = "proto3";\npackage a;\n\nmessage Bad {\n  Missing it = 1;\n}\n`);
    expect(refusal()).toMatch(/^bad\.proto, line 5, column 3: "Missing" .*\(Missing it = 1;\)$/);
  });
  test("an import that is nowhere", () => {
    put("bad.proto", `syntax = "proto3";\nimport "no/such.proto";\n`);
    expect(refusal()).toMatch(
      /^bad\.proto, line 2, column 1: import "no\/such\.proto" is in none of protoDirs/,
    );
  });
  test("one message defined by two files", () => {
    put("a.proto", `syntax = "proto3"; package p; message M {}`);
    put("b.proto", `syntax = "proto3"; package p;\nmessage M {}`);
    expect(refusal()).toMatch(/b\.proto, line 2, column 9: "p\.M" is already defined in file "a\.proto"/);
  });
  test("one message defined by two folders", () => {
    put("one/a.proto", `syntax = "proto3"; package p; message M {}`);
    put("two/b.proto", `syntax = "proto3"; package p; message M {}`);
    expect(() => ProtoRegistry.load([join(dir, "one"), join(dir, "two")])).toThrow(
      /b\.proto.*"p\.M".*a\.proto/,
    );
  });
  test("fields whose names differ in case only, also in a nested message", () => {
    put(
      "case.proto",
      `syntax = "proto2"; package c;\nmessage M {\n  optional int32 Id = 1;\n  optional int32 id = 2;\n}`,
    );
    expect(refusal()).toMatch(
      /^case\.proto, line 4, column 3: field "id" of c\.M differs from "Id" in case only/,
    );
    put(
      "case.proto",
      `syntax = "proto2"; package c; message M { optional N n = 1;\n  message N {\n    oneof o { int32 aB = 1;\n int32 ab = 2; } } }`,
    );
    expect(refusal()).toMatch(/^case\.proto, line 4, column 2: field "ab" of c\.M\.N/);
  });
  test("all errors of a file; no folder of this machine", () => {
    put("a.proto", `syntax = "proto3";\nmessage A {\n  X x = 1;\n  Y y = 2;\n}`);
    expect(refusal()).toMatch(/^a\.proto, line 3.*"X".*; a\.proto, line 4.*"Y"/);
    expect(refusal()).not.toContain(dir);
  });
  test("a folder that is not there", () => {
    expect(() => ProtoRegistry.load([join(dir, "nowhere")])).toThrow(/protoDirs/);
  });
});
