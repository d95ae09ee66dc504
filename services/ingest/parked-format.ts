import { crc32 } from "node:zlib";
import { TributaryError } from "../base/errors.js";

/*
 * A segment: magic 8 · marker 8 · frames. A frame: marker 8 · crc 4 (of all that follows) · length 4 (of the body) ·
 * body: length of the head 4 · head (JSON: stream, partition names, [partition, position, received-at, length] per
 * event) · the events' bytes. A frame without a body seals a segment that was left whole. Numbers are little-endian.
 * The marker is random per segment, so that no payload can pass for a frame.
 */
const MAGIC = Buffer.from("TRBPARK1", "latin1");
export const HEADER_BYTES = 16;
const FRAME_BYTES = 16;

/** Events in the order in which they land. */
export interface ParkedEvents {
  readonly count: number;
  readonly partitions: readonly string[];
  readonly positions: readonly string[];
  /** Milliseconds since the epoch. */
  readonly receivedAt: readonly number[];
  event(i: number): Buffer;
}

/** The oldest parked events, of one stream. */
export interface ParkedChunk extends ParkedEvents {
  readonly stream: string;
  /** Where the rest begins. */
  readonly end: { readonly segment: number; readonly at: number };
}

/** What a segment begins with. */
export const segmentHeader = (marker: Buffer): Buffer => Buffer.concat([MAGIC, marker]);

/** What ends a segment that was left whole. */
export const sealOf = (marker: Buffer): Buffer => frameOf(marker, Buffer.alloc(0));

export function encode(marker: Buffer, stream: string, events: ParkedEvents): Buffer {
  const names = [...new Set(events.partitions)];
  const rows: [number, string, number, number][] = [];
  const slices: Buffer[] = [];
  for (let i = 0; i < events.count; i++) {
    const event = events.event(i);
    slices.push(event);
    rows.push([
      names.indexOf(events.partitions[i]!),
      events.positions[i]!,
      events.receivedAt[i]!,
      event.length,
    ]);
  }
  const head = Buffer.from(JSON.stringify({ stream, partitions: names, rows }));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(head.length);
  return frameOf(marker, Buffer.concat([length, head, ...slices]));
}

function frameOf(marker: Buffer, body: Buffer): Buffer {
  const frame = Buffer.concat([marker, Buffer.alloc(8), body]);
  frame.writeUInt32LE(body.length, 12);
  frame.writeUInt32LE(crc32(frame.subarray(12)), 8);
  return frame;
}

export interface Frames {
  /** Where each frame with a body begins and ends. */
  readonly found: readonly { readonly at: number; readonly end: number }[];
  /** Where whole frames end. */
  readonly end: number;
}

/** The whole frames of a segment from `from` on. Errors: TRB-STREAM-CORRUPT when something is damaged before the last one. */
export function frames(bytes: Buffer, from: number): Frames {
  if (bytes.length <= HEADER_BYTES) return { found: [], end: 0 };
  if (!bytes.subarray(0, 8).equals(MAGIC)) throw damaged();
  const marker = bytes.subarray(8, 16);
  const found: { at: number; end: number }[] = [];
  let at = Math.max(from, HEADER_BYTES);
  for (;;) {
    const end = frameEnd(bytes, marker, at);
    if (end === undefined) break;
    if (end > at + FRAME_BYTES) found.push({ at, end });
    at = end;
  }
  // The marker itself may be what is damaged: frames have it too.
  if (at === HEADER_BYTES && frameEnd(bytes, bytes.subarray(at, at + 8), at) !== undefined) throw damaged();
  for (let later = bytes.indexOf(marker, at + 1); later >= 0; later = bytes.indexOf(marker, later + 1)) {
    if (frameEnd(bytes, marker, later) !== undefined) {
      throw damaged();
    }
  }
  return { found, end: at };
}

export const damaged = () =>
  new TributaryError("TRB-STREAM-CORRUPT", "a log of parked events is damaged; restore it from a copy");

function frameEnd(bytes: Buffer, marker: Buffer, at: number): number | undefined {
  if (bytes.length < at + FRAME_BYTES || bytes.compare(marker, 0, 8, at, at + 8) !== 0) return undefined;
  const end = at + FRAME_BYTES + bytes.readUInt32LE(at + 12);
  if (end > bytes.length || crc32(bytes.subarray(at + 12, end)) !== bytes.readUInt32LE(at + 8))
    return undefined;
  return end;
}

interface Head {
  readonly stream: string;
  readonly partitions: readonly string[];
  readonly rows: readonly [number, string, number, number][];
}

export function decode(
  bytes: Buffer,
  segment: number,
  from: number,
  maxEvents: number,
  maxBytes: number,
): ParkedChunk {
  const partitions: string[] = [];
  const positions: string[] = [];
  const receivedAt: number[] = [];
  const events: Buffer[] = [];
  let stream: string | undefined;
  let size = 0;
  const { found, end } = frames(bytes, from);
  let reached = end;
  for (const frame of found) {
    const headAt = frame.at + FRAME_BYTES + 4;
    const headEnd = headAt + bytes.readUInt32LE(frame.at + FRAME_BYTES);
    const head = JSON.parse(bytes.toString("utf8", headAt, headEnd)) as Head;
    const full = events.length > 0 && (events.length + head.rows.length > maxEvents || size >= maxBytes);
    if (full || (stream !== undefined && stream !== head.stream)) {
      reached = frame.at;
      break;
    }
    stream = head.stream;
    let at = headEnd;
    for (const [partition, position, received, length] of head.rows) {
      partitions.push(head.partitions[partition]!);
      positions.push(position);
      receivedAt.push(received);
      events.push(bytes.subarray(at, at + length));
      at += length;
      size += length;
    }
  }
  return {
    stream: stream ?? "",
    count: events.length,
    partitions,
    positions,
    receivedAt,
    event: (i) => events[i]!,
    end: { segment, at: reached },
  };
}
