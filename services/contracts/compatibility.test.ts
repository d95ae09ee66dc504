import { expect, test } from "vitest";
import { inlineProtos } from "../../test/support/inline-protos.js";
import { incompatibilities } from "./compatibility.js";

const M = (fields: string, more = "") =>
  inlineProtos({
    "m.proto": `syntax = "proto3"; package m; message M { ${fields} } message Sub { int32 n = 1; } enum K { NONE = 0; } ${more}`,
  });
const between = (before: string, after: string) => incompatibilities(M(before), M(after));

test.each([
  ["a new field", "int32 a = 1;", "int32 a = 1; string b = 2;"],
  ["a field that is gone", "int32 a = 1; string b = 2;", "int32 a = 1;"],
  ["another name", "int32 a = 1;", "int32 b = 1;"],
  [
    "a type of the same bytes",
    "int32 a = 1; string s = 2; K k = 3;",
    "uint64 a = 1; bytes s = 2; bool k = 3;",
  ],
  ["presence, and a oneof", "int32 a = 1; int32 b = 2;", "optional int32 a = 1; oneof o { int32 b = 2; }"],
  ["a recursive message", "M up = 1;", "M up = 1; int32 a = 2;"],
])("%s can be taken in", (_, before, after) => {
  expect(between(before, after)).toEqual([]);
});

test.each([
  ["int64 a = 1;", "string a = 1;", "m.M.a: number 1 was int64 and is string; expected a new number"],
  ["int32 a = 1;", "sint32 a = 1;", "m.M.a: number 1 was int32 and is sint32; expected a new number"],
  ["fixed32 a = 1;", "fixed64 a = 1;", "m.M.a: number 1 was fixed32 and is fixed64; expected a new number"],
  [
    "int32 a = 1;",
    "repeated int32 a = 1;",
    "m.M.a: number 1 was int32 and is repeated int32; expected a new number",
  ],
  ["Sub a = 1;", "string b = 1;", "m.M.b: number 1 was m.Sub and is string; expected a new number"],
  [
    "map<string, int32> a = 1;",
    "map<string, string> a = 1;",
    "m.M.a: number 1 was map<string, int32> and is map<string, string>; expected a new number",
  ],
])("%s as %s cannot", (before, after, message) => {
  expect(between(before, after)).toEqual([message]);
});

test("nested messages count, and entity types that are gone", () => {
  const before = M("Sub sub = 1;");
  const after = inlineProtos({
    "m.proto": `syntax = "proto3"; package m; message M { Sub sub = 1; message Sub { string n = 1; } }`,
  });
  expect(incompatibilities(before, after)).toEqual([
    "m.Sub.n: number 1 was int32 and is string; expected a new number",
    "m.Sub: the message is gone",
  ]);
});
