import { expect, test } from "vitest";
import { lineOf } from "./mendable.js";
import type { KeptReject } from "./rejects.js";

const why = { code: "TRB-EVENT-TENANT", reason: "tenant: expected one", source: "exports/a.csv", row: 7 };
const reject = (bytes: Buffer | string, offset?: number): KeptReject => ({
  code: why.code,
  message: why.reason,
  source: why.source,
  row: why.row,
  offset,
  bytes: Buffer.from(bytes),
  rejectedAt: "2026-01-02T03:04:05.000Z",
});

test("a record of JSON is what it was, to the digit, and says why it was rejected", () => {
  const line = lineOf(reject(' { "id": 9007199254740993, "n": 1.10 }', 2 ** 40));
  expect(line).toContain('"id": 9007199254740993, "n": 1.10 }\n');
  expect(JSON.parse(line)).toMatchObject({ tributary_reject: { ...why, offset: 2 ** 40 }, n: 1.1 });
  expect(JSON.parse(lineOf(reject("{}")))).toEqual({ tributary_reject: why });
});

test.each([
  ["a line of CSV", 'acme,"x', { text: 'acme,"x' }],
  ["a record that was cut", '{"id": "a', { text: '{"id": "a' }],
  ["no object", "[1]", { text: "[1]" }],
  ["two lines", '{"a":\n1}', { text: '{"a":\n1}' }],
  ["bytes that are no text", Buffer.from([0x7b, 0xff, 0x7d]), { base64: "e/99" }],
  ["nothing", "", { text: "" }],
])("%s is kept aside, on one line", (_, bytes, kept) => {
  const line = lineOf(reject(bytes));
  expect(line.indexOf("\n")).toBe(line.length - 1);
  expect(JSON.parse(line)).toEqual({ tributary_reject: { ...why, ...kept } });
});
