import { expect, test } from "vitest";
import { isWhole } from "./chunk-file.js";

const size = { rows: 100, bytes: 1000 };
const taken = { rows: 10, bytes: 900, rejectedBytes: 0, left: 5000 };

test.each([
  ["rows and bytes are few", taken, false],
  ["there are enough rows", { ...taken, rows: 100 }, true],
  ["there are enough bytes", { ...taken, bytes: 1000 }, true],
  ["the rest of the file would make a small chunk", { ...taken, bytes: 1000, left: 400 }, false],
  ["the rest would make a chunk of its own", { ...taken, bytes: 1000, left: 600 }, true],
  ["more is left than was told", { ...taken, bytes: 1500, left: 100 }, true],
  ["nothing is left, and whoever reads has not been told so", { ...taken, rows: 100, left: 0 }, false],
  ["rejects fill the memory", { ...taken, rejectedBytes: 64 * 1024 * 1024 }, true],
])("a chunk is whole or not: %s", (_, some, expected) => {
  expect(isWhole(size, some)).toBe(expected);
});
