import { endianness } from "node:os";
import { crc32 } from "node:zlib";
import { assert } from "../../base/errors.js";

/*
 * The bytes of the embedded log; no I/O. Numbers are little-endian.
 *
 * Segment header: magic 8 · crc 4 (of all that follows in the header) · version 4 · partitions 4 · zero 4 ·
 *   number 8 · base 8 · marker 8 · first position per partition 8 each.
 * Frame, one per group commit, at a multiple of 8: marker 8 · crc 4 (of all that follows) · length 4 · events 4 ·
 *   appends 4 · data bytes 4 · zero 4 · first position per partition 8 each · data, padded to 8 ·
 *   start in data 4 per event · length 4 per event · partition 2 per event, padded to 8 ·
 *   received-at (ms, double) 8 per append · events 4 per append, padded to 8.
 *
 * The marker is random per segment and known to nobody outside, so no payload can pass for a frame, and neither can
 * what a disk block held before.
 */

const MAGIC = Buffer.from("TRBLOG1\n", "latin1");
const VERSION = 1;
const CRC_AT = 8;
const CRC_FROM = 12;
export const MARKER_BYTES = 8;
/** More than any append needs; a length beyond it is damage. */
export const MAX_FRAME_BYTES = 512 * 1024 * 1024;

const align8 = (bytes: number) => Math.ceil(bytes / 8) * 8;
export const segmentHeaderBytes = (partitions: number) => 48 + 8 * partitions;
export const frameHeaderBytes = (partitions: number) => 32 + 8 * partitions;

export function frameBytes(partitions: number, dataBytes: number, events: number, appends: number): number {
  return frameHeaderBytes(partitions) + align8(dataBytes) + align8(10 * events) + align8(12 * appends);
}

export interface SegmentHeader {
  /** 1, 2, 3, … without gaps, as are the files' names. */
  readonly number: number;
  /** Frame bytes of all segments before this one. */
  readonly base: number;
  readonly marker: Buffer;
  /** Position the next event of each partition gets. */
  readonly first: readonly number[];
}

export function encodeSegmentHeader(header: SegmentHeader): Buffer {
  const bytes = Buffer.alloc(segmentHeaderBytes(header.first.length));
  MAGIC.copy(bytes);
  bytes.writeUInt32LE(VERSION, 12);
  bytes.writeUInt32LE(header.first.length, 16);
  writeU64(bytes, header.number, 24);
  writeU64(bytes, header.base, 32);
  header.marker.copy(bytes, 40);
  header.first.forEach((position, p) => {
    writeU64(bytes, position, 48 + 8 * p);
  });
  bytes.writeUInt32LE(crc32(bytes.subarray(CRC_FROM)), CRC_AT);
  return bytes;
}

/** Undefined when the bytes are not a whole header of this format with this many partitions. */
export function decodeSegmentHeader(bytes: Buffer, partitions: number): SegmentHeader | undefined {
  const length = segmentHeaderBytes(partitions);
  if (bytes.length < length || !bytes.subarray(0, 8).equals(MAGIC)) return undefined;
  if (bytes.readUInt32LE(12) !== VERSION || bytes.readUInt32LE(16) !== partitions) return undefined;
  if (crc32(bytes.subarray(CRC_FROM, length)) !== bytes.readUInt32LE(CRC_AT)) return undefined;
  return {
    number: readU64(bytes, 24),
    base: readU64(bytes, 32),
    marker: Buffer.from(bytes.subarray(40, 48)),
    first: Array.from({ length: partitions }, (_, p) => readU64(bytes, 48 + 8 * p)),
  };
}

/** What `sealFrame` needs beside the data, which already lies behind the frame header's place. */
export interface FrameTables {
  readonly dataBytes: number;
  readonly events: number;
  readonly starts: Uint32Array;
  readonly lengths: Uint32Array;
  readonly partitions: Uint16Array;
  readonly appends: readonly { readonly receivedAt: number; readonly count: number }[];
}

/** Completes a frame around its data in `buffer` (which starts with the frame) and returns exactly its bytes. */
export function sealFrame(
  buffer: Buffer,
  marker: Buffer,
  first: readonly number[],
  tables: FrameTables,
): Buffer {
  const { dataBytes, events, appends } = tables;
  const length = frameBytes(first.length, dataBytes, events, appends.length);
  marker.copy(buffer, 0);
  buffer.writeUInt32LE(length, 12);
  buffer.writeUInt32LE(events, 16);
  buffer.writeUInt32LE(appends.length, 20);
  buffer.writeUInt32LE(dataBytes, 24);
  buffer.writeUInt32LE(0, 28);
  first.forEach((position, p) => {
    writeU64(buffer, position, 32 + 8 * p);
  });
  const dataEnd = frameHeaderBytes(first.length) + dataBytes;
  let at = align8(dataEnd);
  buffer.fill(0, dataEnd, at);
  const view = buffer.buffer;
  const origin = buffer.byteOffset;
  new Uint32Array(view, origin + at, events).set(tables.starts.subarray(0, events));
  new Uint32Array(view, origin + at + 4 * events, events).set(tables.lengths.subarray(0, events));
  new Uint16Array(view, origin + at + 8 * events, events).set(tables.partitions.subarray(0, events));
  buffer.fill(0, at + 10 * events, at + align8(10 * events));
  at += align8(10 * events);
  appends.forEach((append, a) => {
    buffer.writeDoubleLE(append.receivedAt, at + 8 * a);
    buffer.writeUInt32LE(append.count, at + 8 * appends.length + 4 * a);
  });
  buffer.fill(0, at + 12 * appends.length, length);
  buffer.writeUInt32LE(crc32(buffer.subarray(CRC_FROM, length)), CRC_AT);
  return buffer.subarray(0, length);
}

/** A checked frame as views into the buffer it was read into. */
export interface Frame {
  /** Offset of the frame in its buffer, and of its data. */
  readonly at: number;
  readonly dataAt: number;
  readonly length: number;
  readonly events: number;
  readonly starts: Uint32Array;
  readonly lengths: Uint32Array;
  readonly partitions: Uint16Array;
  readonly receivedAt: Float64Array;
  readonly appendCounts: Uint32Array;
  /** First position of each partition in this frame, and after it. */
  readonly first: readonly number[];
  readonly next: readonly number[];
}

export const hasMarker = (buffer: Buffer, at: number, marker: Buffer): boolean =>
  buffer.length >= at + MARKER_BYTES && buffer.compare(marker, 0, 8, at, at + 8) === 0;

/** Of a frame's header, unchecked. */
export const frameLength = (buffer: Buffer, at = 0): number => buffer.readUInt32LE(at + 12);

export const firstPositions = (buffer: Buffer, at: number, partitions: number): number[] =>
  Array.from({ length: partitions }, (_, p) => readU64(buffer, at + 32 + 8 * p));

/**
 * Reads the frame at `at` (a multiple of 8 in a buffer of its own). `"partial"`: it may be whole once more bytes are
 * there, `needs` of them if known. `"invalid"`: these bytes are no frame.
 */
export function readFrame(
  buffer: Buffer,
  at: number,
  marker: Buffer,
  partitions: number,
): Frame | { readonly kind: "partial"; readonly needs: number } | { readonly kind: "invalid" } {
  const header = frameHeaderBytes(partitions);
  if (buffer.length < at + header) return { kind: "partial", needs: header };
  if (!hasMarker(buffer, at, marker)) return { kind: "invalid" };
  const length = frameLength(buffer, at);
  if (length < header || length > MAX_FRAME_BYTES || length % 8 !== 0) return { kind: "invalid" };
  if (buffer.length < at + length) return { kind: "partial", needs: length };
  if (crc32(buffer.subarray(at + CRC_FROM, at + length)) !== buffer.readUInt32LE(at + CRC_AT)) {
    return { kind: "invalid" };
  }
  const events = buffer.readUInt32LE(at + 16);
  const appends = buffer.readUInt32LE(at + 20);
  const dataBytes = buffer.readUInt32LE(at + 24);
  assert(length === frameBytes(partitions, dataBytes, events, appends), "frame length fits its parts");
  const first = firstPositions(buffer, at, partitions);
  const next = [...first];
  const view = buffer.buffer;
  const dataAt = at + header;
  const tables = buffer.byteOffset + dataAt + align8(dataBytes);
  const partitionOf = new Uint16Array(view, tables + 8 * events, events);
  for (let i = 0; i < events; i++) next[partitionOf[i]!]!++;
  const appendTable = tables + align8(10 * events);
  return {
    at,
    dataAt,
    length,
    events,
    starts: new Uint32Array(view, tables, events),
    lengths: new Uint32Array(view, tables + 4 * events, events),
    partitions: partitionOf,
    receivedAt: new Float64Array(view, appendTable, appends),
    appendCounts: new Uint32Array(view, appendTable + 8 * appends, appends),
    first,
    next,
  };
}

/** A buffer whose typed-array views are aligned: its own memory, from its beginning. */
export const alignedBuffer = (bytes: number): Buffer => Buffer.allocUnsafeSlow(bytes);

function writeU64(bytes: Buffer, value: number, at: number): void {
  bytes.writeUInt32LE(value % 2 ** 32, at);
  bytes.writeUInt32LE(Math.floor(value / 2 ** 32), at + 4);
}

const readU64 = (bytes: Buffer, at: number): number =>
  bytes.readUInt32LE(at) + bytes.readUInt32LE(at + 4) * 2 ** 32;

// The tables are typed-array views, which have the machine's byte order.
assert(endianness() === "LE", "the embedded log needs a little-endian machine");
