import stringWidth from "string-width";
import { describe, expect, it } from "vitest";
import { sqlExcerpt } from "./sql-excerpt.js";

describe("the place of a failure in SQL", () => {
  it("is the line it is on, with a caret below", () => {
    expect(sqlExcerpt("select path\nfrom fils\nlimit 1", { line: 2, column: 6 })).toBe(
      "  2 | from fils\n    |      ^",
    );
  });

  it.each([
    ["\tselect x", 9],
    ["select '日本', x", 14],
    ["select '👨‍👩‍👧', x", 17],
    ["select '\u202e', x\r", 13],
  ])("points at x in %j", (sql, column) => {
    const [line, caret] = sqlExcerpt(sql, { line: 1, column })!.split("\n");
    expect(line!.slice(line!.indexOf("x", line!.indexOf(",") + 1))).toMatch(/^x/);
    expect(stringWidth(line!.slice(0, line!.lastIndexOf("x")))).toBe(stringWidth(caret!) - 1);
    expect(line).not.toMatch(/[\t\r\u202e]/);
  });

  it("shows of a long line what is around the place", () => {
    const sql = `${"a".repeat(5000)}X${"b".repeat(5000)}`;
    const [line, caret] = sqlExcerpt(sql, { line: 1, column: 5001 }, 80)!.split("\n");
    expect(line).toMatch(/^ {2}1 \| …a+Xb+…$/);
    expect(line!.length).toBeLessThanOrEqual(80);
    expect(line![caret!.indexOf("^")]).toBe("X");
  });

  it("may be the end of the text; elsewhere there is none", () => {
    expect(sqlExcerpt("select", { line: 1, column: 7 })).toBe("  1 | select\n    |       ^");
    for (const [line, column] of [
      [0, 1],
      [2, 1],
      [1, 8],
      [1, 0],
    ] as const)
      expect(sqlExcerpt("select", { line, column })).toBeUndefined();
  });
});
