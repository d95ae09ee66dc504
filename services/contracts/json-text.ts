import { isUtf8 } from "node:buffer";
import { parse as parseLossless } from "lossless-json";

/** Stands where JSON text gives a key twice: no reader takes it for a value. */
export const GIVEN_TWICE = Symbol("given twice");

/**
 * A number that is no integer although the nearest double is one (9007199254740992.5) is a symbol, described by its
 * text: again nothing that a reader takes for a value. Its text, or undefined for anything else.
 */
export const fractionOf = (value: unknown): string | undefined =>
  typeof value === "symbol" && value !== GIVEN_TWICE ? value.description : undefined;

/**
 * JSON text as values. Undefined when the bytes are not UTF-8 JSON. Integers that a double cannot hold come as bigint,
 * a key given twice as GIVEN_TWICE, and a number whose fraction a double would lose as a symbol (`fractionOf`).
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
    if (keysIn(value) !== seen.colons) for (const path of repeatedKeys(text)) mark(value, path);
    return value;
  } catch {
    return undefined;
  }
}

/** Digits, exponent and point of a number that a double holds exactly, as an integer or as what it is. */
const PLAIN_DIGITS = 15;
const NUMBER = /^-?(?:0|[1-9]\d*)(?:\.(\d+))?(?:[eE]([+-]?\d+))?$/;
/** Beyond it no 64-bit field takes a number anyway. */
const MAX_EXPONENT = 40;

/** The integer that a JSON number is, exactly: "10", "1.0", "1e2". Undefined for others and for what is no number. */
export function integerOf(text: string): bigint | undefined {
  const match = NUMBER.exec(text);
  if (match === null) return undefined;
  const fraction = (match[1] ?? "").replace(/0+$/, "");
  const exponent = Number(match[2] ?? 0);
  const digits = /^-?(\d+)/.exec(text)![1]! + fraction;
  if (/^0+$/.test(digits)) return 0n;
  const zeros = exponent - fraction.length;
  if (zeros > MAX_EXPONENT) return undefined;
  let whole = BigInt(digits);
  if (zeros >= 0) whole *= 10n ** BigInt(zeros);
  else {
    // So many digits are all there can be to take away.
    if (-zeros > digits.length) return undefined;
    const scale = 10n ** BigInt(-zeros);
    if (whole % scale !== 0n) return undefined;
    whole /= scale;
  }
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

type Path = readonly (string | number)[];

/** Where a key stands that its object had before; the text is well-formed. */
function repeatedKeys(text: string): Path[] {
  const found: Path[] = [];
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
      if (inside.keys.has(key)) found.push(open.map(({ at }) => at));
      inside.keys.add(key);
    }
    before = token;
  }
  return found;
}

function mark(root: unknown, path: Path): void {
  let node = root;
  for (const [index, at] of path.entries()) {
    // A key given twice inside of what a later one replaced.
    if (typeof node !== "object" || node === null || !Object.hasOwn(node, at)) return;
    const holder = node as Record<string | number, unknown>;
    if (index === path.length - 1) {
      Object.defineProperty(holder, at, { value: GIVEN_TWICE, enumerable: true });
    } else node = holder[at];
  }
}
