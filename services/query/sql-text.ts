import { TributaryError } from "../base/errors.js";

/** A place in the user's SQL, counted from 1, in characters. */
export interface SqlPosition {
  readonly line: number;
  readonly column: number;
}

/** The place of a UTF-8 byte offset; undefined for the parser's "nowhere" and for offsets outside the text. */
export function positionAt(sql: string, byteOffset: number | undefined): SqlPosition | undefined {
  if (byteOffset === undefined || !Number.isSafeInteger(byteOffset) || byteOffset < 0) return undefined;
  const bytes = Buffer.from(sql);
  if (byteOffset > bytes.length) return undefined;
  const before = bytes.subarray(0, byteOffset).toString("utf8");
  const lastBreak = before.lastIndexOf("\n");
  return {
    line: before.split("\n").length,
    column: [...before.slice(lastBreak + 1)].length + 1,
  };
}

/** Brackets that may be open at once. The parser's own stack is far deeper; people's queries are far shallower. */
const MAX_NESTING = 100;

/**
 * What can be told of SQL without parsing it: its size, its characters, how deep its brackets go. Runs before the
 * parser sees a byte. Errors: TRB-QUERY-TOO-LONG, TRB-QUERY-SYNTAX.
 */
export function checkText(sql: string, maxBytes: number): void {
  // A string of n units has at least n bytes, so that a huge one is not measured in full.
  if (sql.length > maxBytes || Buffer.byteLength(sql) > maxBytes) {
    throw new TributaryError("TRB-QUERY-TOO-LONG", `sql: expected at most ${maxBytes} bytes`);
  }
  // Half a surrogate pair would reach the engine as another character.
  if (/\p{Surrogate}/u.test(sql)) {
    throw new TributaryError("TRB-QUERY-SYNTAX", "sql: expected well-formed Unicode");
  }
  let depth = 0;
  for (let at = 0; at < sql.length; at++) {
    const unit = sql.charCodeAt(at);
    // A NUL would end the text for C, so that what runs is not what was checked.
    if (unit < 0x20 && unit !== 0x09 && unit !== 0x0a && unit !== 0x0d) {
      throw new TributaryError("TRB-QUERY-SYNTAX", "sql: expected no control characters", {
        details: { position: positionAt(sql, Buffer.byteLength(sql.slice(0, at))) },
      });
    }
    // Quotes are not followed: brackets inside texts count too, which only makes the check stricter.
    if (unit === 0x28 || unit === 0x5b || unit === 0x7b) {
      depth++;
      if (depth > MAX_NESTING) throw tooDeep();
    } else if ((unit === 0x29 || unit === 0x5d || unit === 0x7d) && depth > 0) depth--;
  }
}

export const tooDeep = (): TributaryError =>
  new TributaryError("TRB-QUERY-TOO-LONG", "sql: the query is nested too deeply");
