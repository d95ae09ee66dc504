import { createHash } from "node:crypto";

/**
 * The format in which the Kinesis Producer Library packs several user records into one: four magic bytes, a protobuf
 * message, the MD5 of the message.
 *
 *     message AggregatedRecord {
 *       repeated string partition_key_table = 1;
 *       repeated string explicit_hash_key_table = 2;
 *       repeated Record records = 3;
 *     }
 *     message Record {
 *       required uint64 partition_key_index = 1;
 *       optional uint64 explicit_hash_key_index = 2;
 *       required bytes data = 3;
 *     }
 *
 * What we write names one partition key and one explicit hash key for all its records, those of the whole: a KCL drops
 * user records whose own key is not of the shard it reads them from, and none may be dropped because a shard was split
 * while its record was on the way.
 */
const MAGIC = Buffer.from([0xf3, 0x89, 0x9a, 0xc2]);
const DIGEST_BYTES = 16;

const PARTITION_KEYS = 0x0a;
const HASH_KEYS = 0x12;
const RECORDS = 0x1a;
/** Both indexes are 0; then the tag of `data`. */
const RECORD_HEAD = Buffer.from([0x08, 0x00, 0x10, 0x00, 0x1a]);

export interface Slice {
  readonly bytes: Uint8Array;
  readonly start: number;
  readonly end: number;
}

const varintBytes = (value: number): number => {
  let bytes = 1;
  for (let rest = value; rest >= 0x80; rest = Math.floor(rest / 0x80)) bytes++;
  return bytes;
};

/** What an event adds to an aggregated record. */
export function aggregatedBytes(length: number): number {
  const record = RECORD_HEAD.length + varintBytes(length) + length;
  return 1 + varintBytes(record) + record;
}

/** What an aggregated record takes beside its events, at most. */
export const AGGREGATE_OVERHEAD = MAGIC.length + DIGEST_BYTES + 2 * (1 + 1 + 40);

/** Whether bytes would be taken for an aggregated record, or might be: such an event never stands by itself. */
export const looksAggregated = (bytes: Uint8Array, start = 0): boolean =>
  MAGIC.every((byte, i) => bytes[start + i] === byte);

/** Both keys are ASCII of at most 40 characters. */
export function aggregate(events: readonly Slice[], partitionKey: string, hashKey: string): Buffer {
  let size = MAGIC.length + DIGEST_BYTES + 4 + partitionKey.length + hashKey.length;
  for (const { start, end } of events) size += aggregatedBytes(end - start);
  const out = Buffer.allocUnsafe(size);
  let at = MAGIC.copy(out);
  const varint = (value: number): void => {
    let rest = value;
    for (; rest >= 0x80; rest = Math.floor(rest / 0x80)) out[at++] = (rest % 0x80) | 0x80;
    out[at++] = rest;
  };
  const text = (tag: number, value: string): void => {
    out[at++] = tag;
    varint(value.length);
    at += out.write(value, at, "latin1");
  };
  text(PARTITION_KEYS, partitionKey);
  text(HASH_KEYS, hashKey);
  for (const { bytes, start, end } of events) {
    const length = end - start;
    out[at++] = RECORDS;
    varint(RECORD_HEAD.length + varintBytes(length) + length);
    at += RECORD_HEAD.copy(out, at);
    varint(length);
    out.set(bytes.subarray(start, end), at);
    at += length;
  }
  const digest = createHash("md5").update(out.subarray(MAGIC.length, at)).digest();
  digest.copy(out, at);
  return out;
}

/** Where the user records of an aggregated record stand; undefined when it is none. */
export function disaggregate(
  data: Uint8Array,
): { readonly starts: readonly number[]; readonly ends: readonly number[] } | undefined {
  const end = data.length - DIGEST_BYTES;
  if (end < MAGIC.length || !looksAggregated(data)) return undefined;
  const digest = createHash("md5").update(data.subarray(MAGIC.length, end)).digest();
  if (!digest.equals(data.subarray(end))) return undefined;
  const starts: number[] = [];
  const ends: number[] = [];
  const whole = fieldsOf(data, MAGIC.length, end, (tag, from, to) => {
    if (tag !== RECORDS) return true;
    let found = false;
    const well = fieldsOf(data, from, to, (field, dataFrom, dataTo) => {
      if (field !== RECORD_HEAD.at(-1)) return true;
      // The last one counts, as with any field of protobuf.
      if (found) {
        starts.pop();
        ends.pop();
      }
      found = true;
      starts.push(dataFrom);
      ends.push(dataTo);
      return true;
    });
    return well && found;
  });
  // Whole by its digest and yet not of this format: then it is an event that only begins like one.
  return whole ? { starts, ends } : undefined;
}

/** Calls `field` with tag and bounds of each length-delimited field; false when the bytes are no message. */
function fieldsOf(
  data: Uint8Array,
  from: number,
  to: number,
  field: (tag: number, start: number, end: number) => boolean,
): boolean {
  let at = from;
  const varint = (): number => {
    let value = 0;
    for (let factor = 1; at < to && factor < 2 ** 63; factor *= 0x80) {
      const byte = data[at++]!;
      value += (byte & 0x7f) * factor;
      if (byte < 0x80) return value;
    }
    return Number.NaN;
  };
  while (at < to) {
    const tag = varint();
    const kind = tag % 8;
    if (kind === 0) {
      if (Number.isNaN(varint())) return false;
    } else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind === 2) {
      const end = varint() + at;
      // Not a number fails here, too.
      if (!(end <= to) || !field(tag, at, end)) return false;
      at = end;
    } else return false;
  }
  return at === to;
}
