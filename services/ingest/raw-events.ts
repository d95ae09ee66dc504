import type { DuckDBBlobValue, DuckDBDataChunk } from "@duckdb/node-api";
import { encodeReference } from "../contracts/encode-event.js";
import { WireWriter } from "../contracts/wire-writer.js";
import { type EventBatch, OPERATIONS } from "./event-batch.js";
import { EventWriter, FRAME_BYTES } from "./event-writer.js";

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
  reference: `CASE WHEN payload_uri IS NULL THEN NULL ELSE
    json_array(payload_uri, payload_type_url, payload_size::VARCHAR, hex(payload_sha256))::VARCHAR END`,
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

export class RawEventReader {
  private readonly writer: EventWriter;

  constructor(entityType: string) {
    this.writer = new EventWriter(entityType);
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
    const references = column<string | null>("reference").map(referenceBytes);
    const streams = column<string>("stream");
    const partitions = column<string>("partition");
    const positions = column<string>("position");
    const received = column<number>("received");
    const { writer } = this;
    const { envelope } = writer;
    const frames = chunk.rowCount * (writer.type.length + FRAME_BYTES);
    const texts = bytes.reduce((sum, one) => sum + one.bytes.length, frames);
    const out = new WireWriter(references.reduce((sum, one) => sum + (one?.length ?? 0), texts));
    for (let row = 0; row < chunk.rowCount; row++) {
      const text = bytes[row]!.bytes;
      const tenantEnd = tenants[row]!;
      const idEnd = tenantEnd + ids[row]!;
      writer.begin(out, {
        text,
        tenantEnd,
        idEnd,
        operation: operations[row]!,
        versionLo: lows[row]!,
        versionHi: highs[row]!,
        occurredSeconds: seconds[row] ?? Number.NaN,
        occurredNanos: nanos[row] ?? 0,
      });
      const url = urls[row]!;
      const reference = references[row];
      if (url >= 0) writer.payload(out, text, idEnd, idEnd + url, text, idEnd + url, text.length);
      if (reference !== undefined) writer.reference(out, reference);
      writer.compression(out, compressions[row]!);
      const batch = batchOf(streams[row]!);
      const at = received[row]! / 1000;
      batch.add(out.buffer, envelope.start, out.length, partitions[row]!, positions[row]!, at, envelope);
      added(batch, row);
    }
  }
}

/** A reference on the wire, of what the query says of it. */
function referenceBytes(told: string | null): Buffer | undefined {
  if (told === null) return undefined;
  const [uri, typeUrl, size, sha256] = JSON.parse(told) as [string, string | null, string, string];
  return encodeReference({
    uri,
    typeUrl: typeUrl ?? "",
    sizeBytes: BigInt(size),
    sha256: Buffer.from(sha256, "hex"),
  });
}
