import { isUtf8 } from "node:buffer";
import { parse as parseLossless } from "lossless-json";

/** Comes in place of a value whose text gives a key twice: where that key stood again, from the outside in. */
export class GivenTwice {
  constructor(readonly path: readonly (string | number)[]) {}
}

/**
 * A number that is no integer although the nearest double is one (9007199254740992.5) is a symbol, described by its
 * text: again nothing that a reader takes for a value. Its text, or undefined for anything else.
 */
export const fractionOf = (value: unknown): string | undefined =>
  typeof value === "symbol" ? value.description : undefined;

/**
 * JSON text as values. Undefined when the bytes are not UTF-8 JSON, GivenTwice when some object has a key twice.
 * Integers that a double cannot hold come as bigint, and a number whose fraction a double would lose as a symbol
 * (`fractionOf`).
 */
export function parseJson(bytes: Uint8Array): unknown {
  if (!isUtf8(bytes)) return undefined;
  const text = new TextDecoder().decode(bytes);
  try {
    const seen = scan(bytes);
    // Short numbers are exact as they are, and this parser is many times faster.
    const value: unknown = seen.plain
      ? JSON.parse(text)
      : parseLossless(text, null, { parseNumber, onDuplicateKey: ({ newValue }) => newValue });
    // As many keys as colons: none was given twice.
    return keysIn(value) === seen.colons ? value : new GivenTwice(repeatedKey(text));
  } catch {
    return undefined;
  }
}

/** Digits, exponent and point of a number that a double holds exactly, as an integer or as what it is. */
const PLAIN_DIGITS = 15;
const NUMBER = /^-?(?:0|[1-9]\d*)(?:\.(\d+))?(?:[eE]([+-]?\d+))?$/;
/** Beyond it no 64-bit field takes a number anyway, and arithmetic takes a time that grows with the square. */
const MAX_DIGITS = 60;

/** The integer that a JSON number is, exactly: "10", "1.0", "1e2". Undefined for others and for what is no number. */
export function integerOf(text: string): bigint | undefined {
  const match = NUMBER.exec(text);
  if (match === null) return undefined;
  // Zeros at the end weigh nothing. They are cut by hand: a pattern would look at a run of them once for each of them.
  let digits = (/^-?(\d+)/.exec(text)![1]! + (match[1] ?? "")).replace(/^0+/, "");
  let exponent = Number(match[2] ?? 0) - (match[1]?.length ?? 0);
  let end = digits.length;
  while (end > 0 && digits.charCodeAt(end - 1) === 0x30) end--;
  exponent += digits.length - end;
  digits = digits.slice(0, end);
  if (digits === "") return 0n;
  if (exponent < 0 || digits.length + exponent > MAX_DIGITS) return undefined;
  const whole = BigInt(digits) * 10n ** BigInt(exponent);
  return text.startsWith("-") ? -whole : whole;
}

/** Whether text is a number as JSON writes one. */
export const isNumber = (text: string): boolean => NUMBER.test(text);

function parseNumber(text: string): number | bigint | symbol {
  const value = Number(text);
  if (!Number.isInteger(value)) return value;
  const whole = integerOf(text);
  if (whole === undefined) return Math.abs(value) < 2 ** 64 ? Symbol(text) : value;
  return Number.isSafeInteger(value) && BigInt(value) === whole ? value : whole;
}

/** What lies outside of strings: colons, one for each key, and whether every number is short and without exponent. */
function scan(bytes: Uint8Array): { colons: number; plain: boolean } {
  let colons = 0;
  let digits = 0;
  let plain = true;
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i]!;
    if (byte === 0x22) {
      for (i++; i < bytes.length && bytes[i] !== 0x22; i++) if (bytes[i] === 0x5c) i++;
      digits = 0;
    } else if (byte >= 0x30 && byte <= 0x39) {
      if (++digits > PLAIN_DIGITS) plain = false;
    } else if (byte === 0x3a) {
      colons++;
      digits = 0;
    } else if (byte !== 0x2e) {
      if ((byte | 0x20) === 0x65 && digits > 0) plain = false;
      digits = 0;
    }
  }
  return { colons, plain };
}

function keysIn(value: unknown): number {
  if (typeof value !== "object" || value === null) return 0;
  let count = 0;
  if (Array.isArray(value)) {
    for (const item of value) count += keysIn(item);
    return count;
  }
  for (const key in value) {
    count += 1 + keysIn((value as Readonly<Record<string, unknown>>)[key]);
  }
  return count;
}

/** Where a key stands that its object had before. Of a well-formed text that has one; looks no further than the first. */
function repeatedKey(text: string): (string | number)[] {
  /** Open objects and arrays: the keys so far, and what is being read. */
  const open: { readonly keys: Set<string> | undefined; at: string | number }[] = [];
  const tokens = /"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\],]/g;
  let before = "";
  for (const [token] of text.matchAll(tokens)) {
    const inside = open.at(-1);
    if (token === "{") open.push({ keys: new Set(), at: "" });
    else if (token === "[") open.push({ keys: undefined, at: 0 });
    else if (token === "}" || token === "]") open.pop();
    else if (token === ",") {
      if (typeof inside?.at === "number") inside.at++;
    } else if (inside?.keys !== undefined && (before === "{" || before === ",")) {
      const key = JSON.parse(token) as string;
      inside.at = key;
      if (inside.keys.has(key)) break;
      inside.keys.add(key);
    }
    before = token;
  }
  return open.map(({ at }) => at);
}
