import { crc32c } from "@platformatic/kafka";
import { TributaryError } from "../../base/errors.js";
import { unpack } from "./codecs.js";

/** What a broker answered for one partition. */
export interface FetchedPartition {
  readonly index: number;
  readonly errorCode: number;
  readonly highWatermark: number;
  readonly logStart: number;
  /** By producer, where a transaction begins that was aborted; in the order of offsets. */
  readonly aborted: readonly { readonly producer: bigint; readonly first: number }[];
  readonly records: Buffer;
}

/** Events of one answer, partition after partition: views of one buffer. */
export interface Window {
  readonly bytes: Buffer;
  readonly count: number;
  readonly starts: Uint32Array;
  readonly ends: Uint32Array;
  readonly partitions: Uint16Array;
  readonly offsets: Float64Array;
  readonly timestamps: Float64Array;
  /** Offset to read on from, by partition: beyond what holds no events as well. */
  readonly next: ReadonlyMap<number, number>;
}

const HEADER_BYTES = 61;
const CODEC_MASK = 0x07;
const LOG_APPEND_TIME = 0x08;
const TRANSACTIONAL = 0x10;
const CONTROL = 0x20;
/** What one batch may hold when it is unpacked: many times what brokers take packed. */
const MAX_UNPACKED_BYTES = 256 * 1024 * 1024;
/**
 * Beyond this no further batch of an answer is unpacked: what is left is fetched again. A broker counts what it answers as
 * it is packed, and that may be a thousandth.
 */
const ENOUGH_BYTES = 32 * 1024 * 1024;

interface Batch {
  readonly partition: number;
  readonly base: number;
  readonly count: number;
  readonly timestamp: number;
  /** The timestamp is the broker's and the same for all. */
  readonly ofBroker: boolean;
  readonly codec: number;
  records: Buffer;
}

/**
 * The events at `from` and later of each partition, as many as may be in memory at once; without control records and what
 * aborted transactions have left. Errors: TRB-STREAM-CORRUPT.
 */
export async function windowOf(
  answers: readonly FetchedPartition[],
  from: ReadonlyMap<number, number>,
): Promise<Window> {
  const batches: Batch[] = [];
  const next = new Map<number, number>();
  for (const answer of answers) {
    next.set(answer.index, batchesOf(answer, from.get(answer.index)!, batches));
  }
  // Views of what came over the wire where nothing is packed; otherwise of a copy that has all of it.
  const packed = batches.some(({ codec }) => codec !== 0);
  let bytes = 0;
  let taken = 0;
  for (; taken < batches.length && bytes < ENOUGH_BYTES; taken++) {
    const batch = batches[taken]!;
    if (batch.codec !== 0) batch.records = await unpack(batch.codec, batch.records, MAX_UNPACKED_BYTES);
    bytes += batch.records.length;
  }
  // The last one set is the first one left of its partition.
  for (const { partition, base } of batches.splice(taken).reverse()) {
    next.set(partition, Math.max(base, from.get(partition)!));
  }
  const whole =
    packed || batches.length === 0 ? Buffer.concat(batches.map(({ records }) => records)) : undefined;
  return eventsOf(batches, whole, from, next);
}

/** Takes the batches of one answer apart; returns the offset after the last whole one. */
function batchesOf(answer: FetchedPartition, from: number, batches: Batch[]): number {
  const { index, records, aborted } = answer;
  const gone = new Set<bigint>();
  let nextAborted = 0;
  let next = from;
  for (let at = 0; at + HEADER_BYTES <= records.length; ) {
    const end = at + 12 + records.readInt32BE(at + 8);
    // An answer may end within a batch; the rest of it is fetched again.
    if (end > records.length) break;
    if (records[at + 16] !== 2 || end < at + HEADER_BYTES)
      throw corrupt("expected record batches of format 2");
    if (crc32c(records.subarray(at + 21, end)) >>> 0 !== records.readUInt32BE(at + 17)) {
      throw corrupt("a record batch does not match its checksum");
    }
    const base = Number(records.readBigInt64BE(at));
    const attributes = records.readInt16BE(at + 21);
    const last = base + records.readInt32BE(at + 23);
    const producer = records.readBigInt64BE(at + 43);
    while (nextAborted < aborted.length && aborted[nextAborted]!.first <= last) {
      gone.add(aborted[nextAborted++]!.producer);
    }
    if ((attributes & CONTROL) !== 0) {
      gone.delete(producer);
    } else if (last >= from && !((attributes & TRANSACTIONAL) !== 0 && gone.has(producer))) {
      const ofBroker = (attributes & LOG_APPEND_TIME) !== 0;
      batches.push({
        partition: index,
        base,
        count: records.readInt32BE(at + 57),
        timestamp: Number(records.readBigInt64BE(ofBroker ? at + 35 : at + 27)),
        ofBroker,
        codec: attributes & CODEC_MASK,
        records: records.subarray(at + HEADER_BYTES, end),
      });
    }
    next = Math.max(next, last + 1);
    at = end;
  }
  return next;
}

/** Where `varint` has ended. */
let after = 0;

function varint(bytes: Buffer, at: number, end: number): number {
  let value = 0;
  let scale = 1;
  for (let i = at; i < end; i++) {
    const byte = bytes[i]!;
    value += (byte & 0x7f) * scale;
    if (byte < 0x80) {
      after = i + 1;
      return value % 2 === 0 ? value / 2 : -(value + 1) / 2;
    }
    scale *= 0x80;
  }
  throw corrupt("a record ends within a number");
}

function eventsOf(
  batches: readonly Batch[],
  whole: Buffer | undefined,
  from: ReadonlyMap<number, number>,
  next: ReadonlyMap<number, number>,
): Window {
  const room = batches.reduce((sum, batch) => sum + batch.count, 0);
  const starts = new Uint32Array(room);
  const ends = new Uint32Array(room);
  const partitions = new Uint16Array(room);
  const offsets = new Float64Array(room);
  const timestamps = new Float64Array(room);
  // All records of one answer lie in one buffer: offsets are those within it.
  const bytes = whole ?? wholeOf(batches);
  let count = 0;
  let at = 0;
  for (const batch of batches) {
    if (whole === undefined) at = batch.records.byteOffset - bytes.byteOffset;
    const batchEnd = at + batch.records.length;
    const first = from.get(batch.partition)!;
    for (let i = 0; i < batch.count; i++) {
      const length = varint(bytes, at, batchEnd);
      const end = after + length;
      if (length < 0 || end > batchEnd) throw corrupt("a record is longer than its batch");
      // One byte of attributes that nobody uses.
      const timestamp = batch.timestamp + (batch.ofBroker ? 0 : varint(bytes, after + 1, end));
      if (batch.ofBroker) varint(bytes, after + 1, end);
      const offset = batch.base + varint(bytes, after, end);
      const key = varint(bytes, after, end);
      const value = varint(bytes, after + Math.max(0, key), end);
      if (after + Math.max(0, value) > end) throw corrupt("a value is longer than its record");
      if (offset >= first) {
        starts[count] = after;
        ends[count] = after + Math.max(0, value);
        partitions[count] = batch.partition;
        offsets[count] = offset;
        timestamps[count] = timestamp;
        count++;
      }
      at = end;
    }
    at = batchEnd;
  }
  return { bytes, count, starts, ends, partitions, offsets, timestamps, next };
}

/** The part of the answer's buffer that the batches lie in. */
function wholeOf(batches: readonly Batch[]): Buffer {
  const first = batches[0]!.records;
  const last = batches.at(-1)!.records;
  return Buffer.from(first.buffer, first.byteOffset, last.byteOffset + last.length - first.byteOffset);
}

const corrupt = (message: string): TributaryError =>
  new TributaryError("TRB-STREAM-CORRUPT", `topic: ${message}`);
