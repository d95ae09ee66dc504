import { CODES, type Code } from "../base/codes.js";
import { TributaryError } from "../base/errors.js";
import { describe } from "../contracts/event-messages.js";
import type { Appended } from "../stream/change-stream.js";

/** Of an answer in JSON, what is made at once. */
const PIECE_CHARACTERS = 32 * 1024;

/** What became of a request's events, in their order. Filled by the publisher, written out once. */
export class Results {
  readonly count: number;
  /** The code each was rejected with; undefined for accepted ones. */
  readonly codes: (Code | undefined)[];
  /** Messages other than the code's own, by event. */
  readonly messages = new Map<number, string>();
  accepted = 0;

  constructor(count: number) {
    this.count = count;
    this.codes = new Array<Code | undefined>(count).fill(undefined);
  }

  messageOf(index: number, code: Code): string {
    return this.messages.get(index) ?? describe(code);
  }
}

/** Where the accepted events of a request stand, in their order. */
export interface Stored extends Appended {
  readonly positions: readonly string[];
}

export const nothingStored: Stored = { names: [], partitions: new Uint16Array(0), positions: [] };

/** What became of the events that were to be appended to one stream. */
export type Outcome = Appended | TributaryError;

/**
 * Rejects those that a stream has refused for lack of capacity, or has failed with; what is left has positions. `routes`
 * tells, for each event accepted so far, whose outcome it shares.
 */
export function settle(
  results: Results,
  routes: Uint16Array,
  outcomes: ReadonlyMap<number, Outcome>,
): Stored {
  const [only] = outcomes.values();
  if (outcomes.size === 1 && only !== undefined && !(only instanceof TributaryError)) {
    const { names, partitions, positions } = only;
    if (isWhole(positions)) return { names, partitions, positions };
  }
  const names: string[] = [];
  const cursors = new Map<number, { readonly outcome: Outcome; readonly firstName: number; next: number }>();
  for (const [route, outcome] of outcomes) {
    cursors.set(route, { outcome, firstName: names.length, next: 0 });
    if (!(outcome instanceof TributaryError)) names.push(...outcome.names);
  }
  const partitions: number[] = [];
  const positions: string[] = [];
  let at = 0;
  for (let i = 0; i < results.count; i++) {
    if (results.codes[i] !== undefined) continue;
    const cursor = cursors.get(routes[at++]!)!;
    const { outcome, firstName } = cursor;
    const event = cursor.next++;
    if (outcome instanceof TributaryError) {
      results.codes[i] = outcome.code;
      continue;
    }
    const position = outcome.positions[event];
    if (position === undefined) {
      results.codes[i] = outcome.tooLarge?.has(event) === true ? "TRB-EVENT-STREAM-SIZE" : "TRB-BUS-BUSY";
      continue;
    }
    partitions.push(firstName + outcome.partitions[event]!);
    positions.push(position);
  }
  results.accepted = positions.length;
  return { names, partitions: Uint16Array.from(partitions), positions };
}

const isWhole = (positions: readonly (string | undefined)[]): positions is readonly string[] =>
  !positions.includes(undefined);

/** Writes PublishResponse bodies. */
export class ResponseWriter {
  /** accepted = true and the partition, encoded, by its name. */
  private readonly heads = new Map<string, Buffer>();
  /** Whole EventResults of rejections with the code's own message. */
  private readonly rejections = new Map<Code, Buffer>();

  /** The PublishResponse on the wire. */
  protobuf(results: Results, { names, partitions, positions }: Stored): Buffer {
    const heads = names.map((name) => this.head(name));
    const rejections = results.codes.map((code, i) =>
      code === undefined ? undefined : this.rejection(results, i, code),
    );
    let size = 12;
    let at = 0;
    for (let i = 0; i < results.count; i++) {
      const rejection = rejections[i];
      if (rejection) size += rejection.length + 6;
      else size += heads[partitions[at]!]!.length + positions[at++]!.length * 3 + 12;
    }
    const out = Buffer.allocUnsafe(size);
    let pos = 0;
    at = 0;
    for (let i = 0; i < results.count; i++) {
      const rejection = rejections[i];
      out[pos++] = 10;
      if (rejection) {
        pos = writeVarint(out, pos, rejection.length);
        pos += rejection.copy(out, pos);
        continue;
      }
      const head = heads[partitions[at]!]!;
      const position = positions[at++]!;
      const positionBytes = isAscii(position) ? position.length : Buffer.byteLength(position);
      pos = writeVarint(out, pos, head.length + 1 + varintSize(positionBytes) + positionBytes);
      for (let k = 0; k < head.length; k++) out[pos++] = head[k]!;
      out[pos++] = 26;
      pos = writeVarint(out, pos, positionBytes);
      if (positionBytes === position.length) {
        for (let k = 0; k < positionBytes; k++) out[pos++] = position.charCodeAt(k);
      } else pos += out.write(position, pos, "utf8");
    }
    const rejected = results.count - results.accepted;
    if (results.accepted > 0) {
      out[pos++] = 16;
      pos = writeVarint(out, pos, results.accepted);
    }
    if (rejected > 0) {
      out[pos++] = 24;
      pos = writeVarint(out, pos, rejected);
    }
    return out.subarray(0, pos);
  }

  /** The same as proto3 JSON, in pieces that are made one at a time: a long one costs no long turn, nor memory. */
  *json(results: Results, { names, partitions, positions }: Stored): Generator<Buffer> {
    let at = 0;
    let text = '{"results":[';
    for (let index = 0; index < results.count; index++) {
      const code = results.codes[index];
      if (index > 0) text += ",";
      text += JSON.stringify(
        code === undefined
          ? {
              accepted: true,
              partition: names[partitions[at]!],
              position: positions[at++],
            }
          : {
              accepted: false,
              code,
              message: results.messageOf(index, code),
              retryable: CODES[code].retry,
            },
      );
      if (text.length < PIECE_CHARACTERS) continue;
      yield Buffer.from(text);
      text = "";
    }
    const { accepted, count } = results;
    yield Buffer.from(`${text}],"accepted":${accepted},"rejected":${count - accepted}}`);
  }

  private head(partition: string): Buffer {
    let head = this.heads.get(partition);
    if (head === undefined) {
      head = Buffer.concat([Buffer.from([8, 1]), stringField(2, partition)]);
      this.heads.set(partition, head);
    }
    return head;
  }

  private rejection(results: Results, index: number, code: Code): Buffer {
    if (results.messages.has(index)) return rejectionBytes(code, results.messageOf(index, code));
    let bytes = this.rejections.get(code);
    if (!bytes) {
      bytes = rejectionBytes(code, describe(code));
      this.rejections.set(code, bytes);
    }
    return bytes;
  }
}

function rejectionBytes(code: Code, message: string): Buffer {
  const retryable = Buffer.from(CODES[code].retry ? [48, 1] : []);
  return Buffer.concat([stringField(4, code), stringField(5, message), retryable]);
}

function stringField(field: number, text: string): Buffer {
  const bytes = Buffer.from(text);
  const head = Buffer.alloc(6);
  head[0] = (field << 3) | 2;
  return Buffer.concat([head.subarray(0, writeVarint(head, 1, bytes.length)), bytes]);
}

function writeVarint(out: Buffer, at: number, value: number): number {
  let pos = at;
  let rest = value;
  while (rest > 0x7f) {
    out[pos++] = (rest & 0x7f) | 0x80;
    rest >>>= 7;
  }
  out[pos++] = rest;
  return pos;
}

function varintSize(value: number): number {
  let size = 1;
  for (let rest = value; rest > 0x7f; rest >>>= 7) size++;
  return size;
}

function isAscii(text: string): boolean {
  for (let i = 0; i < text.length; i++) if (text.charCodeAt(i) > 0x7f) return false;
  return true;
}
