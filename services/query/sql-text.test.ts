import fc from "fast-check";
import { expect, test } from "vitest";
import { TributaryError } from "../base/errors.js";
import { checkText, positionAt } from "./sql-text.js";

const codeOf = (sql: string, maxBytes = 1000): string => {
  try {
    checkText(sql, maxBytes);
    return "passes";
  } catch (error) {
    if (error instanceof TributaryError) return error.code;
    throw error;
  }
};

test("size is counted in bytes", () => {
  expect(codeOf("a".repeat(10), 10)).toBe("passes");
  expect(codeOf("a".repeat(11), 10)).toBe("TRB-QUERY-TOO-LONG");
  expect(codeOf("ä".repeat(6), 10)).toBe("TRB-QUERY-TOO-LONG");
});

test("brackets may nest to a hundred, of whatever kind", () => {
  expect(codeOf("(".repeat(100))).toBe("passes");
  expect(codeOf("(".repeat(101))).toBe("TRB-QUERY-TOO-LONG");
  expect(codeOf("([{".repeat(34))).toBe("TRB-QUERY-TOO-LONG");
  expect(codeOf("()".repeat(400))).toBe("passes");
  expect(codeOf(`${")".repeat(200)}${"(".repeat(101)}`)).toBe("TRB-QUERY-TOO-LONG");
});

test("control characters and halves of characters are refused, line ends and tabs are not", () => {
  expect(codeOf("select\t1\r\n, '𐍈'")).toBe("passes");
  expect(codeOf("select 1\0")).toBe("TRB-QUERY-SYNTAX");
  expect(codeOf("select '\u001b'")).toBe("TRB-QUERY-SYNTAX");
  expect(codeOf("select '\ud800'")).toBe("TRB-QUERY-SYNTAX");
});

test("a byte offset becomes the line and column of its character", () => {
  fc.assert(
    fc.property(fc.array(fc.string({ unit: "binary" })), fc.string({ unit: "binary" }), (lines, last) => {
      const clean = (text: string) => text.replaceAll("\n", " ");
      const before = lines.map((line) => `${clean(line)}\n`).join("");
      const sql = `${before}${clean(last)}X rest`;
      const offset = Buffer.byteLength(before + clean(last));
      expect(positionAt(sql, offset)).toEqual({
        line: lines.length + 1,
        column: [...clean(last)].length + 1,
      });
    }),
  );
  expect(positionAt("select", undefined)).toBeUndefined();
  expect(positionAt("select", 2 ** 64)).toBeUndefined();
  expect(positionAt("select", 7)).toBeUndefined();
});
