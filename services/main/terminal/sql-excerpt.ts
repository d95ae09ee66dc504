import stringWidth from "string-width";
import { printable } from "../../base/in-words.js";
import type { SqlPosition } from "../../query/sql-text.js";
import { shorten } from "./text-table.js";

const TAB = "    ";
const ELLIPSIS = "…";

/**
 * The line of `sql` that a place is on, under its number, and a caret below the place. `width` is the terminal's: of a
 * longer line, what is around the place. Undefined where the text has no such place.
 */
export function sqlExcerpt(sql: string, { line, column }: SqlPosition, width = 100): string | undefined {
  const text = sql.split("\n")[line - 1];
  if (text === undefined) return undefined;
  const characters = [...text.replace(/\r$/, "")];
  if (column < 1 || column > characters.length + 1) return undefined;
  const number = String(line);
  const room = Math.max(20, width - number.length - 5);
  const before = lastOf(characters.slice(0, column - 1).map(shown), Math.floor((room * 2) / 3));
  const after = shorten(
    characters
      .slice(column - 1)
      .map(shown)
      .join(""),
    room - stringWidth(before),
  );
  const caret = `${" ".repeat(stringWidth(before))}^`;
  return `  ${number} | ${before}${after}\n  ${" ".repeat(number.length)} | ${caret}`;
}

const shown = (character: string): string => (character === "\t" ? TAB : printable(character));

/** The end of a text that takes `maxWidth` cells at most. */
function lastOf(characters: readonly string[], maxWidth: number): string {
  let kept = "";
  for (const character of characters.toReversed()) {
    if (stringWidth(character + kept) >= maxWidth) return ELLIPSIS + kept;
    kept = character + kept;
  }
  return kept;
}
