/**
 * Rows as text under their headings, for people: columns as wide as they need to be, numbers to the right. Line breaks
 * and other control characters are shown as escapes, so that no value can rearrange the screen. No trailing line break.
 */
export function textTable(
  columns: readonly string[],
  rows: readonly (readonly unknown[])[],
  options: { readonly maxWidth?: number } = {},
): string {
  const maxWidth = options.maxWidth ?? 60;
  const heads = columns.map((name) => shorten(printable(name), maxWidth));
  const cells = rows.map((row) => columns.map((_, at) => shorten(textOf(row[at]), maxWidth)));
  const widths = heads.map((head, at) =>
    cells.reduce((width, row) => Math.max(width, widthOf(row[at]!)), widthOf(head)),
  );
  const numeric = columns.map(
    (_, at) => cells.length > 0 && cells.every((row) => row[at] === "" || NUMBER.test(row[at]!)),
  );
  const line = (texts: readonly string[]) =>
    texts
      .map((text, at) => {
        const padding = " ".repeat(widths[at]! - widthOf(text));
        return numeric[at] ? padding + text : text + padding;
      })
      .join("  ")
      .trimEnd();
  return [line(heads), line(widths.map((width) => "─".repeat(width))), ...cells.map(line)].join("\n");
}

/** A number as answers hold it, or as `grouped` writes it. */
const NUMBER = /^-?\d[\d,]*(\.\d+)?([eE][+-]?\d+)?$/;

/** 1234567 → "1,234,567" */
export const grouped = (value: number | bigint | string): string =>
  String(value).replace(/^(-?)(\d+)/, (_, sign: string, digits: string) => {
    return sign + digits.replace(/\B(?=(\d{3})+$)/g, ",");
  });

/** 0.4 s, 12 s, 3 min 20 s */
export function duration(milliseconds: number): string {
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  const seconds = milliseconds / 1000;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** Control characters, direction marks included, as escapes. */
export const printable = (text: string): string =>
  text.replace(CONTROLS, (character) => {
    if (character === "\n") return "\\n";
    if (character === "\t") return "\\t";
    return `\\u${character.codePointAt(0)!.toString(16).padStart(4, "0")}`;
  });

const CONTROLS = /[\p{Cc}\u2028\u2029\u202a-\u202e\u2066-\u2069]/gu;

function textOf(value: unknown): string {
  if (value === null || value === undefined) return "";
  return printable(typeof value === "object" ? JSON.stringify(value) : String(value));
}

/** Cells on a terminal: East Asian wide characters and emoji take two, combining marks none. */
function widthOf(text: string): number {
  let width = 0;
  for (const character of text) width += MARK.test(character) ? 0 : WIDE.test(character) ? 2 : 1;
  return width;
}

const MARK = /\p{Mn}|\p{Me}|[\u200b-\u200d]/u;
const WIDE =
  /[\u1100-\u115f\u2e80-\u303e\u3041-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]|\p{Emoji_Presentation}/u;

function shorten(text: string, maxWidth: number): string {
  if (text.length <= maxWidth / 2 || widthOf(text) <= maxWidth) return text;
  let kept = "";
  let width = 1;
  for (const character of text) {
    width += widthOf(character);
    if (width > maxWidth) break;
    kept += character;
  }
  return `${kept}…`;
}
