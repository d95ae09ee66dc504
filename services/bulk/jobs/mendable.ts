import type { KeptReject } from "./rejects.js";

/** Beside a record's own fields: why it was rejected. No mapping names it, so that a mended line may keep it. */
const REJECTED = "tributary_reject";

/**
 * A reject as a line of NDJSON, to be mended and read again with the mapping of its job. A record of JSON, and a row of
 * columns, which is kept as one, is what it was, to the digit. Of any other record there is nothing but its text, or
 * its bytes in base64: whoever mends it gives it the fields that the mapping names.
 */
export function lineOf({ code, message, source, row, offset, bytes }: KeptReject): string {
  const why = { code, reason: message, source, row, ...(offset === undefined ? {} : { offset }) };
  const text = Buffer.from(bytes).toString("utf8").trim();
  if (isRecord(text)) {
    const rest = text.slice(1).trimStart();
    return `{"${REJECTED}":${JSON.stringify(why)}${rest === "}" ? "" : ","}${rest}\n`;
  }
  const isText = Buffer.from(text, "utf8").equals(Buffer.from(bytes));
  const record = isText ? { text } : { base64: Buffer.from(bytes).toString("base64") };
  return `${JSON.stringify({ [REJECTED]: { ...why, ...record } })}\n`;
}

function isRecord(text: string): boolean {
  // A line break within would be one between two lines.
  if (!text.startsWith("{") || /[\r\n]/.test(text)) return false;
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}
