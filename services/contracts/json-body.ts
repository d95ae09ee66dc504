import { TributaryError } from "../base/errors.js";
import { name } from "./json.js";

/** Where an event's text lies; undefined says only that some bytes were passed without an event's end. */
export type Found = readonly [start: number, end: number] | undefined;

/** How many bytes are passed between two signs of life. */
const STRIDE = 64 * 1024;

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const COMMA = 0x2c;
const COLON = 0x3a;
const OPEN_ARRAY = 0x5b;
const CLOSE_ARRAY = 0x5d;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;

const SHAPE = 'body: expected {"events": […]} or an array of events';

/** The lines of an NDJSON body, without line breaks; blank lines are left out. */
export function* lines(body: Uint8Array): Generator<Found> {
  let start = afterMark(body);
  let seen = start;
  while (start < body.length) {
    const at = body.indexOf(0x0a, start);
    const end = at < 0 ? body.length : at;
    let first = start;
    while (first < end && isBlank(body[first]!)) {
      if (++first - seen < STRIDE) continue;
      seen = first;
      yield undefined;
    }
    if (first < end) yield [start, end];
    else if (end - seen >= STRIDE) yield undefined;
    if (first < end || end - seen >= STRIDE) seen = end;
    start = end + 1;
  }
}

/**
 * The events of a JSON body that is a PublishRequest or a bare array, found without parsing them: each is told to be
 * JSON or not by whoever reads it. Errors: TRB-REQ-UNREADABLE when what surrounds them is something else.
 */
export function* elements(body: Uint8Array): Generator<Found> {
  yield* new Scanner(body).request();
}

class Scanner {
  private readonly body: Uint8Array;
  private pos: number;

  constructor(body: Uint8Array) {
    this.body = body;
    this.pos = afterMark(body);
  }

  *request(): Generator<Found> {
    yield* this.blanks();
    if (this.at(OPEN_ARRAY)) yield* this.array();
    else if (this.at(OPEN_OBJECT)) yield* this.object();
    else yield* this.scalar();
    yield* this.blanks();
    if (this.pos < this.body.length) throw notJson();
  }

  /** {"events": […]}, where the list may be missing or null. */
  private *object(): Generator<Found> {
    this.pos++;
    yield* this.blanks();
    if (this.take(CLOSE_OBJECT)) return;
    if (!this.at(QUOTE)) throw notJson();
    const key = this.key();
    if (key !== "events") throw unreadable(`${SHAPE}; field "${name(key)}" is not known`);
    yield* this.blanks();
    if (!this.take(COLON)) throw notJson();
    yield* this.blanks();
    if (this.at(OPEN_ARRAY)) yield* this.array();
    else yield* this.nothing();
    yield* this.blanks();
    if (this.take(CLOSE_OBJECT)) return;
    throw this.at(COMMA) ? unreadable(`${SHAPE}, and nothing else`) : notJson();
  }

  private *array(): Generator<Found> {
    this.pos++;
    yield* this.blanks();
    if (this.take(CLOSE_ARRAY)) return;
    for (;;) {
      const start = this.pos;
      yield* this.value();
      yield [start, this.pos];
      yield* this.blanks();
      if (this.take(CLOSE_ARRAY)) return;
      if (!this.take(COMMA)) throw notJson();
      yield* this.blanks();
    }
  }

  /** Steps over one value, looking at brackets and strings only. */
  private *value(): Generator<Found> {
    const { body } = this;
    let depth = 0;
    let quoted = false;
    let look = this.pos + STRIDE;
    for (let pos = this.pos; pos < body.length; pos++) {
      const byte = body[pos]!;
      if (pos >= look) {
        look = pos + STRIDE;
        yield undefined;
      }
      if (byte === QUOTE) quoted = !quoted;
      else if (quoted) {
        if (byte === BACKSLASH) pos++;
      } else if (byte === OPEN_OBJECT || byte === OPEN_ARRAY) depth++;
      else if (byte === CLOSE_OBJECT || byte === CLOSE_ARRAY) {
        // At depth 0 it closes what the value stands in.
        this.pos = depth === 0 ? pos : pos + 1;
        if (depth === 0 || --depth === 0) return;
      } else if (byte === COMMA && depth === 0) {
        this.pos = pos;
        return;
      }
    }
    throw notJson();
  }

  /** A string that is no longer than keys are. */
  private key(): string {
    const { body } = this;
    const start = this.pos;
    let end = start + 1;
    while (end < body.length && end - start < STRIDE && body[end] !== QUOTE) {
      end += body[end] === BACKSLASH ? 2 : 1;
    }
    this.pos = end + 1;
    const key = parsed(body.subarray(start, this.pos));
    if (typeof key !== "string") throw notJson();
    return key;
  }

  private *blanks(): Generator<Found> {
    const { body } = this;
    const from = this.pos;
    while (this.pos < body.length && (isBlank(body[this.pos]!) || body[this.pos] === 0x0a)) {
      if ((++this.pos - from) % STRIDE === 0) yield undefined;
    }
  }

  /** What may stand in place of the list. */
  private *nothing(): Generator<Found> {
    const start = this.pos;
    yield* this.value();
    const value = parsed(this.body.subarray(start, this.pos));
    if (value === undefined) throw notJson();
    if (value !== null) throw unreadable("events: expected an array");
  }

  private *scalar(): Generator<Found> {
    const rest = this.body.subarray(this.pos);
    // Long ones are no less wrong.
    if (rest.length < STRIDE && parsed(rest) === undefined) throw notJson();
    yield undefined;
    throw unreadable(SHAPE);
  }

  private at(byte: number): boolean {
    return this.body[this.pos] === byte;
  }

  private take(byte: number): boolean {
    const found = this.at(byte);
    if (found) this.pos++;
    return found;
  }
}

/** A byte order mark may stand at the start. */
const afterMark = (body: Uint8Array): number =>
  body[0] === 0xef && body[1] === 0xbb && body[2] === 0xbf ? 3 : 0;

/** Spaces, tabs and carriage returns. */
const isBlank = (byte: number): boolean => byte === 0x20 || byte === 0x09 || byte === 0x0d;

/** Undefined when it is no JSON; only for what is short. */
function parsed(bytes: Uint8Array): unknown {
  if (bytes.length > STRIDE) return undefined;
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    return undefined;
  }
}

const unreadable = (message: string) => new TributaryError("TRB-REQ-UNREADABLE", message);
const notJson = () => unreadable("body: expected UTF-8 JSON");
