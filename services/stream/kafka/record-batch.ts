import { crc32c } from "@platformatic/kafka";

/**
 * Record batches, format 2 (kafka.apache.org/documentation, "Record Batch" and "Record"), written from slices of a
 * request's body into one buffer: an object for each message costs several times what the bytes do.
 */

/** What of an event a consumer that knows no envelopes wants; offsets into the buffer that the event lies in. */
export interface EventFacts {
  tenantStart: number;
  tenantEnd: number;
  typeStart: number;
  typeEnd: number;
  idStart: number;
  idEnd: number;
  /** -1 when the event has none. */
  traceparentStart: number;
  traceparentEnd: number;
}
/** Finds them; the answer holds until the next call. Undefined: there is no entity to be seen, so no key. */
export type DescribeEvent = (bytes: Buffer, start: number, end: number) => EventFacts | undefined;

export interface ProducerIdentity {
  readonly id: bigint;
  readonly epoch: number;
}

const HEADER_BYTES = 61;
/** From here to the end is what the checksum covers. */
const ATTRIBUTES_AT = 21;
const SLASH = 0x2f;
/** More than lengths, timestamp, offset and names of headers ever take. */
const RECORD_BYTES = 160;
const CONTENT_TYPE = headerBytes("content-type", "application/x-protobuf");
const ENTITY_TYPE = nameBytes("entity-type");
const TRACEPARENT = nameBytes("traceparent");

/** What a record takes beside the event and its key, at most. */
const recordOverhead = (facts: EventFacts | undefined): number =>
  facts === undefined
    ? RECORD_BYTES
    : RECORD_BYTES +
      2 * (facts.typeEnd - facts.typeStart) +
      keyBytes(facts) +
      facts.traceparentEnd -
      facts.traceparentStart;

const keyBytes = (facts: EventFacts): number =>
  facts.tenantEnd - facts.tenantStart + facts.typeEnd - facts.typeStart + facts.idEnd - facts.idStart + 2;

/** One partition's next batch, as it fills. */
export class BatchBuilder {
  count = 0;
  /** Bytes of the events alone. */
  eventBytes = 0;
  private buffer: Buffer;
  private at = HEADER_BYTES;
  private firstTimestamp = 0;
  private maxTimestamp = 0;

  constructor(
    private readonly limit: number,
    capacity = 64 * 1024,
  ) {
    this.buffer = Buffer.allocUnsafe(Math.min(limit, capacity));
  }

  get bytes(): number {
    return this.at;
  }

  /** False when there is no room beside others; one that is alone always fits. */
  add(bytes: Buffer, start: number, end: number, facts: EventFacts | undefined, timestamp: number): boolean {
    const most = end - start + recordOverhead(facts);
    if (this.at + most > this.limit && this.count > 0) return false;
    this.reserve(most);
    if (this.count === 0) this.firstTimestamp = this.maxTimestamp = timestamp;
    this.maxTimestamp = Math.max(this.maxTimestamp, timestamp);
    const key = facts === undefined ? -1 : keyBytes(facts);
    const value = end - start;
    const traced = facts !== undefined && facts.traceparentStart >= 0;
    const type = facts === undefined ? 0 : facts.typeEnd - facts.typeStart;
    const trace = traced ? facts.traceparentEnd - facts.traceparentStart : 0;
    const delta = zigzag(timestamp - this.firstTimestamp);
    let length =
      1 + varintBytes(delta) + varintBytes(2 * this.count) + varintBytes(zigzag(key)) + Math.max(0, key);
    length += varintBytes(2 * value) + value + 1 + CONTENT_TYPE.length;
    if (facts !== undefined) length += ENTITY_TYPE.length + varintBytes(2 * type) + type;
    if (traced) length += TRACEPARENT.length + varintBytes(2 * trace) + trace;
    this.varint(2 * length);
    this.buffer[this.at++] = 0;
    this.varint(delta);
    this.varint(2 * this.count);
    this.varint(zigzag(key));
    if (facts !== undefined) {
      this.copy(bytes, facts.tenantStart, facts.tenantEnd);
      this.buffer[this.at++] = SLASH;
      this.copy(bytes, facts.typeStart, facts.typeEnd);
      this.buffer[this.at++] = SLASH;
      this.copy(bytes, facts.idStart, facts.idEnd);
    }
    this.varint(2 * value);
    this.copy(bytes, start, end);
    this.varint(2 * (1 + (facts === undefined ? 0 : 1) + (traced ? 1 : 0)));
    this.copy(CONTENT_TYPE, 0, CONTENT_TYPE.length);
    if (facts !== undefined) {
      this.copy(ENTITY_TYPE, 0, ENTITY_TYPE.length);
      this.varint(2 * type);
      this.copy(bytes, facts.typeStart, facts.typeEnd);
    }
    if (traced) {
      this.copy(TRACEPARENT, 0, TRACEPARENT.length);
      this.varint(2 * trace);
      this.copy(bytes, facts.traceparentStart, facts.traceparentEnd);
    }
    this.count++;
    this.eventBytes += value;
    return true;
  }

  /** The records alone, for packing. */
  get records(): Buffer {
    return this.buffer.subarray(HEADER_BYTES, this.at);
  }

  /** The whole batch, with records as they are or as they were packed; not yet signed. */
  finish(packed?: { readonly records: Buffer; readonly codec: number }): Buffer {
    let batch = this.buffer.subarray(0, this.at);
    if (packed !== undefined) {
      batch = Buffer.allocUnsafe(HEADER_BYTES + packed.records.length);
      packed.records.copy(batch, HEADER_BYTES);
    }
    batch.writeBigInt64BE(0n, 0);
    batch.writeInt32BE(batch.length - 12, 8);
    batch.writeInt32BE(-1, 12);
    batch[16] = 2;
    batch.writeInt16BE(packed?.codec ?? 0, ATTRIBUTES_AT);
    batch.writeInt32BE(this.count - 1, 23);
    batch.writeBigInt64BE(BigInt(this.firstTimestamp), 27);
    batch.writeBigInt64BE(BigInt(this.maxTimestamp), 35);
    batch.writeInt32BE(this.count, 57);
    return batch;
  }

  private reserve(bytes: number): void {
    if (this.at + bytes <= this.buffer.length) return;
    const grown = Buffer.allocUnsafe(Math.max(this.at + bytes, Math.min(this.limit, 2 * this.buffer.length)));
    this.buffer.copy(grown, 0, 0, this.at);
    this.buffer = grown;
  }

  private copy(from: Buffer, start: number, end: number): void {
    from.copy(this.buffer, this.at, start, end);
    this.at += end - start;
  }

  /** `value` is zigzag already. */
  private varint(value: number): void {
    let left = value;
    while (left >= 0x80) {
      this.buffer[this.at++] = (left % 0x80) | 0x80;
      left = Math.floor(left / 0x80);
    }
    this.buffer[this.at++] = left;
  }
}

/** Says who sends the batch and where it stands among what it sends; a batch that is sent again keeps it all. */
export function sign(batch: Buffer, { id, epoch }: ProducerIdentity, sequence: number): void {
  batch.writeBigInt64BE(id, 43);
  batch.writeInt16BE(epoch, 51);
  batch.writeInt32BE(sequence, 53);
  batch.writeUInt32BE(crc32c(batch.subarray(ATTRIBUTES_AT)) >>> 0, 17);
}

/** Sequence numbers are int32 and begin again at 0. */
export const sequenceAfter = (sequence: number, count: number): number => (sequence + count) % 0x8000_0000;

/** Beyond 32 bits too: a clock that was set back makes a long way. */
const zigzag = (value: number): number => (value < 0 ? -2 * value - 1 : 2 * value);

function varintBytes(value: number): number {
  let bytes = 1;
  for (let left = value; left >= 0x80; left = Math.floor(left / 0x80)) bytes++;
  return bytes;
}

function nameBytes(name: string): Buffer {
  const text = Buffer.from(name);
  return Buffer.concat([Buffer.from([2 * text.length]), text]);
}

function headerBytes(name: string, value: string): Buffer {
  return Buffer.concat([nameBytes(name), nameBytes(value)]);
}
