import stringWidth from "string-width";
import { describe, expect, it } from "vitest";
import { duration, grouped, printable } from "../../base/in-words.js";
import { ProgressBar } from "./progress-bar.js";
import { textTable } from "./text-table.js";

describe("a table", () => {
  it("aligns text to the left and numbers to the right, nothing where a value is missing", () => {
    expect(
      textTable(
        ["name", "n"],
        [
          ["a", "1000"],
          ["long one", 5],
          [null, null],
        ],
      ),
    ).toBe(["name         n", "────────  ────", "a         1000", "long one     5", ""].join("\n"));
  });

  it("lets no value rearrange the screen", () => {
    const table = textTable(["x"], [["two\nlines\x1b[2J\u202e"], [{ a: ["\n"] }]]);
    expect(table.split("\n")).toHaveLength(4);
    expect(table).toContain("two\\nlines\\u001b[2J\\u202e");
    expect(printable("a\tb")).toBe("a\\tb");
  });

  it.each(["日本", "👨‍👩‍👧 ", "🫠 ", "e\u0301abc", "ﾊﾛ12", "🇫🇷ab"])(
    "counts the cells that %j takes",
    (text) => {
      // Four cells each, as a terminal draws them.
      const [, , wide, plain] = textTable(
        ["a", "b"],
        [
          [text, "x"],
          ["abcd", "x"],
        ],
      ).split("\n");
      expect(plain).toBe("abcd  x");
      expect(wide!.endsWith("x")).toBe(true);
      expect(stringWidth(wide!)).toBe(7);
    },
  );

  it("shortens what is too long between characters, never within one", () => {
    expect(textTable(["a"], [["x".repeat(100)]], { maxWidth: 10 })).toContain(`${"x".repeat(9)}…`);
    const families = textTable(["a"], [["👨‍👩‍👧".repeat(30)]], { maxWidth: 10 }).split("\n")[2];
    expect(families).toBe(`${"👨‍👩‍👧".repeat(4)}…`);
  });

  it("tells NULL from an empty text, and from a text that reads so", () => {
    const rows = [[null], [""], ["NULL"], ["'NULL'"]];
    expect(textTable(["a"], rows, { nulls: "plain" }).split("\n").slice(2)).toEqual([
      "NULL",
      "",
      "'NULL'",
      "'NULL'",
    ]);
    expect(textTable(["a", "n"], [[null, 1]], { nulls: "dim" }).split("\n")[2]).toBe(
      "\u001b[2mNULL\u001b[22m  1",
    );
    // A column of numbers stays one, whatever is missing in it.
    expect(textTable(["long name"], [[null], [1]], { nulls: "plain" }).split("\n")[2]).toBe("     NULL");
  });

  it("has a head without rows", () => {
    expect(textTable(["a", "b"], [])).toBe("a  b\n─  ─");
  });
});

it("writes numbers and times for people", () => {
  expect([grouped(1234567), grouped("-1234.5678"), grouped(999)]).toEqual([
    "1,234,567",
    "-1,234.5678",
    "999",
  ]);
  expect([0.4, 999, 1500, 59_400, 200_000].map(duration)).toEqual([
    "0 ms",
    "999 ms",
    "1.5 s",
    "59 s",
    "3 min 20 s",
  ]);
});

describe("a progress bar", () => {
  const bar = (isTTY: boolean, columns = 80) => {
    const state = { now: 0, text: "" };
    const stream = { isTTY, columns, write: (part: string) => (state.text += part) };
    return { state, bar: new ProgressBar(stream, "publishing", "events", () => state.now) };
  };

  it("draws over itself on a terminal, with share, rate and time left, within the line", () => {
    for (const columns of [80, 40, 12]) {
      const { state, bar: shown } = bar(true, columns);
      state.now = 2000;
      shown.update({ fraction: 0.5, count: 1000 });
      state.now = 2050;
      shown.update({ fraction: 0.51, count: 1010 });
      expect(state.text.split("\r")).toHaveLength(2);
      expect(state.text.replace("\r", "").replace("\x1b[K", "").length).toBeLessThan(columns);
      if (columns === 80) expect(state.text).toMatch(/█+░+ {3}50 % {2}1,000 events {2}500\/s {2}2\.0 s left/);
      shown.end();
      expect(state.text.endsWith("\n")).toBe(true);
    }
  });

  it("writes a plain line now and then elsewhere", () => {
    const { state, bar: shown } = bar(false);
    for (state.now = 100; state.now <= 11_000; state.now += 100) shown.update({ count: state.now });
    shown.end();
    expect(state.text.trimEnd().split("\n")).toHaveLength(2);
    expect(state.text).not.toContain("\r");
  });
});
