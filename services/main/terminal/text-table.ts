import { styleText } from "node:util";
import stringWidth from "string-width";
import { printable } from "../../base/in-words.js";

export interface TableLook {
  /** Cells on a terminal that a column may take; longer texts end in "…" (default: 60). */
  readonly maxWidth?: number;
  /**
   * Shows SQL's NULL as the word, so that it does not look like an empty text; a text that reads NULL is put in quotes
   * then. "dim" is for terminals. Without it a missing value is an empty cell.
   */
  readonly nulls?: "plain" | "dim";
}

/** What is shown, and how many cells of a terminal it takes. */
interface Cell {
  readonly text: string;
  readonly width: number;
  readonly dim: boolean;
}

/**
 * Rows as text under their headings, for people: columns as wide as they need to be, numbers to the right. Line breaks
 * and other control characters are shown as escapes, so that no value can rearrange the screen. No trailing line break.
 */
export function textTable(
  columns: readonly string[],
  rows: readonly (readonly unknown[])[],
  { maxWidth = 60, nulls }: TableLook = {},
): string {
  const heads = columns.map((name) => cellOf(name, maxWidth, undefined));
  const cells = rows.map((row) => columns.map((_, at) => cellOf(row[at], maxWidth, nulls)));
  const widths = heads.map((head, at) =>
    cells.reduce((width, row) => Math.max(width, row[at]!.width), head.width),
  );
  const numeric = columns.map((_, at) => {
    const values = cells.filter((_, nth) => !isEmpty(rows[nth]![at]));
    return values.length > 0 && values.every((row) => NUMBER.test(row[at]!.text));
  });
  const line = (row: readonly Cell[]) =>
    row
      .map(({ text, width, dim }, at) => {
        const padding = " ".repeat(widths[at]! - width);
        const shown = dim ? styleText("dim", text, { validateStream: false }) : text;
        return numeric[at] ? padding + shown : shown + padding;
      })
      .join("  ")
      .trimEnd();
  const rule = widths.map((width) => ({ text: "─".repeat(width), width, dim: false }));
  return [heads, rule, ...cells].map(line).join("\n");
}

const isEmpty = (value: unknown): boolean => value === null || value === undefined || value === "";

function cellOf(value: unknown, maxWidth: number, nulls: TableLook["nulls"]): Cell {
  if (value === null || value === undefined) {
    const text = nulls === undefined ? "" : "NULL";
    return { text, width: text.length, dim: nulls === "dim" };
  }
  const plain = typeof value === "object" ? JSON.stringify(value) : String(value);
  const text = shorten(printable(nulls !== undefined && plain === "NULL" ? "'NULL'" : plain), maxWidth);
  return { text, width: stringWidth(text), dim: false };
}

/** A number as answers hold it, or as `grouped` writes it. */
const NUMBER = /^-?\d[\d,]*(\.\d+)?([eE][+-]?\d+)?$/;

const GRAPHEMES = new Intl.Segmenter();

/** The text, or what of it fits with "…" at its end: cut between characters as people see them. */
export function shorten(text: string, maxWidth: number): string {
  if (text.length <= maxWidth / 2 || stringWidth(text) <= maxWidth) return text;
  let kept = "";
  let width = 1;
  for (const { segment } of GRAPHEMES.segment(text)) {
    width += stringWidth(segment);
    if (width > maxWidth) break;
    kept += segment;
  }
  return `${kept}…`;
}
