import type { DuckDBBlobValue, DuckDBDataChunk } from "@duckdb/node-api";
import { Envelope } from "../contracts/envelope.js";
import { type EventBatch, OPERATIONS } from "./event-batch.js";

/**
 * Rows of a raw table back as events, on the wire as they were: bytes are copied from the engine's chunks, and no event
 * becomes an object. A model that catches up is as fast as this, so it is to cost less than landing does.
 */

const MICROS = "epoch_us(occurred_at)";
/** Microseconds within the second, counted forward. */
const FRACTION = `((${MICROS} % 1000000 + 1000000) % 1000000)`;

/** What is asked of the engine, by what it is to this reader. All that is text comes as one value. */
const COLUMNS = {
  bytes:
    "encode(tenant_id) || encode(entity_id) || encode(coalesce(payload_type_url, '')) || coalesce(payload, ''::BLOB)",
  tenant: "strlen(tenant_id)::INTEGER",
  id: "strlen(entity_id)::INTEGER",
  url: "CASE WHEN payload IS NULL THEN -1 ELSE strlen(coalesce(payload_type_url, '')) END::INTEGER",
  operation: `(list_position([${OPERATIONS.map((name) => `'${name}'`).join(", ")}], operation) - 1)::INTEGER`,
  low: "(version & 4294967295)::UINTEGER",
  high: "((version >> 32) & 4294967295)::UINTEGER",
  seconds: `((${MICROS} - ${FRACTION}) // 1000000)::DOUBLE`,
  nanos: `(${FRACTION} * 1000)::INTEGER`,
  compression: "CASE payload_compression WHEN 'GZIP' THEN 1 WHEN 'ZSTD' THEN 2 ELSE 0 END::INTEGER",
  stream: "stream",
  partition: "partition",
  position: "position",
  received: "epoch_us(received_at)::DOUBLE",
} as const;
type Name = keyof typeof COLUMNS;

/** SQL for the chunks that a reader takes, of rows with a raw table's columns; `more` columns come after them. */
export function selectEvents(rows: string, more: readonly string[] = []): string {
  const columns = Object.entries(COLUMNS).map(([name, sql]) => `${sql} AS "${name}"`);
  return `SELECT ${[...columns, ...more].join(", ")} FROM (${rows})`;
}

/** Bytes of an event beside its texts: tags, lengths and numbers. */
const FRAME_BYTES = 96;

export class RawEventReader {
  private readonly type: Buffer;
  private readonly envelope = new Envelope();
  private out = Buffer.alloc(0);
  private at = 0;

  constructor(entityType: string) {
    this.type = Buffer.from(entityType);
  }

  /** Adds each event of a chunk to the batch that `batchOf` its stream is, then says so with its row. */
  read(
    chunk: DuckDBDataChunk,
    batchOf: (stream: string) => EventBatch,
    added: (batch: EventBatch, row: number) => void,
  ): void {
    const names = Object.keys(COLUMNS) as Name[];
    const column = <T>(name: Name) => chunk.getColumnValues(names.indexOf(name)) as T[];
    const bytes = column<DuckDBBlobValue>("bytes");
    const tenants = column<number>("tenant");
    const ids = column<number>("id");
    const urls = column<number>("url");
    const operations = column<number>("operation");
    const lows = column<number>("low");
    const highs = column<number>("high");
    const seconds = column<number | null>("seconds");
    const nanos = column<number | null>("nanos");
    const compressions = column<number>("compression");
    const streams = column<string>("stream");
    const partitions = column<string>("partition");
    const positions = column<string>("position");
    const received = column<number>("received");
    const { envelope, type } = this;
    const frames = chunk.rowCount * (type.length + FRAME_BYTES);
    this.out = Buffer.allocUnsafe(bytes.reduce((sum, one) => sum + one.bytes.length, frames));
    this.at = 0;
    for (let row = 0; row < chunk.rowCount; row++) {
      const text = bytes[row]!.bytes;
      const tenantEnd = tenants[row]!;
      const idEnd = tenantEnd + ids[row]!;
      envelope.start = this.at;
      envelope.tenantStart = this.text(0x0a, text, 0, tenantEnd);
      envelope.tenantEnd = this.at;
      envelope.typeStart = this.text(0x12, type, 0, type.length);
      envelope.typeEnd = this.at;
      envelope.idStart = this.text(0x1a, text, tenantEnd, idEnd);
      envelope.idEnd = this.at;
      envelope.operation = operations[row]!;
      this.tagged(0x20, envelope.operation);
      this.putVersion(lows[row]!, highs[row]!);
      this.putOccurred(seconds[row] ?? Number.NaN, nanos[row] ?? 0);
      this.putPayload(text, idEnd, urls[row]!);
      envelope.compression = compressions[row]!;
      if (envelope.compression !== 0) this.tagged(0x48, envelope.compression);
      const batch = batchOf(streams[row]!);
      const { out, at } = this;
      batch.add(out, envelope.start, at, partitions[row]!, positions[row]!, received[row]! / 1000, envelope);
      added(batch, row);
    }
  }

  private tagged(tag: number, value: number): void {
    this.out[this.at++] = tag;
    this.varint(value);
  }

  /** Of an integer from 0 to 2^53. */
  private varint(value: number): void {
    let rest = value;
    for (; rest >= 0x80; rest = Math.floor(rest / 0x80)) this.out[this.at++] = (rest % 0x80) | 0x80;
    this.out[this.at++] = rest;
  }

  /** Returns where the bytes start. */
  private text(tag: number, from: Uint8Array, start: number, end: number): number {
    this.tagged(tag, end - start);
    const at = this.at;
    this.out.set(start === 0 && end === from.length ? from : from.subarray(start, end), at);
    this.at += end - start;
    return at;
  }

  private putVersion(low: number, high: number): void {
    this.envelope.versionLo = low;
    this.envelope.versionHi = high;
    this.out[this.at++] = 0x28;
    let [lo, hi] = [low, high];
    while (hi !== 0 || lo >= 0x80) {
      this.out[this.at++] = (lo & 0x7f) | 0x80;
      lo = ((lo >>> 7) | (hi << 25)) >>> 0;
      hi >>>= 7;
    }
    this.out[this.at++] = lo;
  }

  private putOccurred(seconds: number, nanos: number): void {
    this.envelope.occurredSeconds = seconds;
    this.envelope.occurredNanos = nanos;
    if (Number.isNaN(seconds)) return;
    this.out[this.at++] = 0x32;
    const length = this.at++;
    if (seconds !== 0) this.putSeconds(seconds);
    if (nanos !== 0) this.tagged(0x10, nanos);
    this.out[length] = this.at - length - 1;
  }

  private putSeconds(seconds: number): void {
    this.out[this.at++] = 0x08;
    if (seconds > 0) {
      this.varint(seconds);
      return;
    }
    let rest = BigInt.asUintN(64, BigInt(seconds));
    for (; rest >= 0x80n; rest >>= 7n) this.out[this.at++] = Number(rest & 0x7fn) | 0x80;
    this.out[this.at++] = Number(rest);
  }

  /** The Any of a type URL of `url` bytes and of what follows it; nothing for -1. */
  private putPayload(text: Uint8Array, start: number, url: number): void {
    const { envelope } = this;
    envelope.typeUrlStart = envelope.typeUrlEnd = 0;
    envelope.payloadStart = envelope.payloadEnd = -1;
    if (url < 0) return;
    const value = text.length - start - url;
    this.tagged(0x3a, 2 + lengthBytes(url) + url + lengthBytes(value) + value);
    envelope.typeUrlStart = this.text(0x0a, text, start, start + url);
    envelope.typeUrlEnd = this.at;
    envelope.payloadStart = this.text(0x12, text, start + url, text.length);
    envelope.payloadEnd = this.at;
  }
}

/** Bytes of a length as a varint. */
function lengthBytes(length: number): number {
  let bytes = 1;
  for (let rest = length; rest >= 0x80; rest >>>= 7) bytes++;
  return bytes;
}
