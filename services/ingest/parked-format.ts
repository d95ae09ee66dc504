import { crc32 } from "node:zlib";
import { TributaryError } from "../base/errors.js";

/*
 * An object of parked events: magic 8 · crc 4 (of all that follows) · length of the head 4 · head (JSON: stream,
 * partition, [position, received-at, length] per event) · the events' bytes. Numbers are little-endian.
 */
const MAGIC = Buffer.from("TRBPARK2", "latin1");
const CRC_AT = MAGIC.length;
const LENGTH_AT = CRC_AT + 4;
const HEAD_AT = LENGTH_AT + 4;

/** Events in the order in which they land. */
export interface ParkedEvents {
  readonly count: number;
  readonly partitions: readonly string[];
  readonly positions: readonly string[];
  /** Milliseconds since the epoch. */
  readonly receivedAt: readonly number[];
  event(i: number): Buffer;
}

/** Some of the oldest parked events, of one stream. */
export interface ParkedChunk extends ParkedEvents {
  readonly stream: string;
  /** The objects that hold them, and nothing else. */
  readonly keys: readonly string[];
}

interface Head {
  readonly stream: string;
  readonly partition: string;
  readonly rows: readonly (readonly [position: string, receivedAt: number, length: number])[];
}

/** Those events of one partition that `picked` names, as an object. */
export function encode(
  stream: string,
  partition: string,
  events: ParkedEvents,
  picked: readonly number[],
): Buffer {
  const slices = picked.map((i) => events.event(i));
  const rows = picked.map(
    (i, n) => [events.positions[i]!, events.receivedAt[i]!, slices[n]!.length] as const,
  );
  const head = Buffer.from(JSON.stringify({ stream, partition, rows } satisfies Head));
  const object = Buffer.concat([MAGIC, Buffer.alloc(HEAD_AT - CRC_AT), head, ...slices]);
  object.writeUInt32LE(head.length, LENGTH_AT);
  object.writeUInt32LE(crc32(object.subarray(LENGTH_AT)), CRC_AT);
  return object;
}

/**
 * What objects of one stream hold, one after the other; what a later one repeats of an earlier one's partition is left
 * out. Errors: TRB-STREAM-CORRUPT, naming the one that is damaged.
 */
export function decode(objects: readonly { readonly key: string; readonly bytes: Buffer }[]): ParkedChunk {
  const partitions: string[] = [];
  const positions: string[] = [];
  const receivedAt: number[] = [];
  const events: Buffer[] = [];
  const last = new Map<string, string>();
  let stream = "";
  for (const { key, bytes } of objects) {
    const head = headOf(key, bytes);
    stream = head.stream;
    let at = HEAD_AT + bytes.readUInt32LE(LENGTH_AT);
    for (const [position, received, length] of head.rows) {
      const event = bytes.subarray(at, at + length);
      at += length;
      if (position <= (last.get(head.partition) ?? "")) continue;
      last.set(head.partition, position);
      partitions.push(head.partition);
      positions.push(position);
      receivedAt.push(received);
      events.push(event);
    }
  }
  return {
    stream,
    count: events.length,
    partitions,
    positions,
    receivedAt,
    event: (i) => events[i]!,
    keys: objects.map(({ key }) => key),
  };
}

function headOf(key: string, bytes: Buffer): Head {
  const isWhole =
    bytes.length > HEAD_AT &&
    bytes.subarray(0, CRC_AT).equals(MAGIC) &&
    crc32(bytes.subarray(LENGTH_AT)) === bytes.readUInt32LE(CRC_AT);
  if (!isWhole) {
    throw new TributaryError(
      "TRB-STREAM-CORRUPT",
      `parked events are damaged; put ${key} back from a copy of the lake`,
    );
  }
  const end = HEAD_AT + bytes.readUInt32LE(LENGTH_AT);
  return JSON.parse(bytes.toString("utf8", HEAD_AT, end)) as Head;
}
