import { createFileRegistry, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { expect, test } from "vitest";
import { inlineProtos } from "../../test/support/inline-protos.js";
import { EDGE, EDGE_PROTO } from "../../test/support/spark-edges.js";
import { SPARK_DECODED, SPARK_MESSAGE, sparkPayload } from "./spark-payload.js";

const payloadOf = (proto: string, name: string) =>
  sparkPayload(inlineProtos({ "t/v1/t.proto": proto }).entityType(name)!);

/** The payload's message as Spark is told of it. */
function toldOf(descriptors: Uint8Array) {
  const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, descriptors));
  return registry.getMessage(SPARK_MESSAGE)!;
}

test("a message inside itself, and one without fields, are bytes; the wire stays as it is", () => {
  const { descriptors, unreadable } = payloadOf(EDGE_PROTO, EDGE);
  const told = toldOf(descriptors);
  const fields = new Map(told.fields.map((field) => [field.name, field]));
  for (const name of ["self", "selves", "nothing"]) expect(fields.get(name)!.proto.type, name).toBe(12);
  expect(fields.get("self")!.presence).toBe(1);
  const inner = fields.get("inner")!.message!;
  expect(inner.fields.find(({ name }) => name === "more")!.proto.type).toBe(12);
  expect([...unreadable.keys()].sort()).toEqual(["document", "span"]);
  expect(fields.has("span")).toBe(false);
  expect(fields.get(SPARK_DECODED)!.fieldKind).toBe("list");
  expect(fields.get("maybe")!.oneof).toBeUndefined();
  expect(["word", "figure", "part", "which"].map((name) => fields.get(name)!.oneof!.name)).toEqual(
    Array(4).fill("choice"),
  );
});

test("unknown enums and unsigned fixed numbers are mended, wherever they stand", () => {
  const proto = `syntax = "proto3"; package t.v1; enum K { A = 0; }
    message In { K k = 1; fixed32 f = 2; } message T { K k = 1; repeated In in = 2; map<string, K> m = 3; string s = 4; }`;
  const sql = payloadOf(proto, "t.v1.T").payload("d");
  expect(sql).toContain("'k', if(startswith(d.`k`, 'UNKNOWN_ENUM_VALUE_K_'), substr(d.`k`, 22), d.`k`)");
  expect(sql).toContain(
    "'in', transform(d.`in`, x0 -> if(x0 is null, null, named_struct('k', if(startswith(x0.`k`",
  );
  expect(sql).toContain("'f', (cast(x0.`f` as bigint) & 4294967295L)");
  expect(sql).toContain("'m', transform_values(d.`m`, (k0, x0) -> if(startswith(x0,");
  expect(sql).toMatch(/'s', d\.`s`\)$/);
});

test("what Spark can't be made to read our way is told, with all of its oneof", () => {
  const proto2 = `syntax = "proto2"; package t.v1; enum K { A = 0; }
    message T { optional K k = 1; optional string s = 2; optional group G = 3 { optional int32 a = 1; }
      optional int32 fine = 4 [default = 7]; repeated bytes also = 5; }`;
  const closed = payloadOf(proto2, "t.v1.T");
  expect([...closed.unreadable.keys()].sort()).toEqual(["g", "k", "s"]);
  const [fine] = toldOf(closed.descriptors).fields;
  // The default is the reader's, not the event's: absent is NULL.
  expect(fine).toMatchObject({ name: "fine", presence: 1 });
  expect(fine!.proto.defaultValue).toBe("");
  const oneof = payloadOf(
    `syntax = "proto3"; package t.v1; import "google/protobuf/duration.proto";
     message Deep { google.protobuf.Duration d = 1; }
     message T { oneof x { google.protobuf.Duration a = 1; int32 b = 2; } Deep deep = 3; int32 c = 4; }`,
    "t.v1.T",
  );
  expect([...oneof.unreadable.keys()].sort()).toEqual(["a", "b", "deep"]);
  expect(toldOf(oneof.descriptors).fields.map(({ name }) => name)).toEqual(["c", SPARK_DECODED]);
});
