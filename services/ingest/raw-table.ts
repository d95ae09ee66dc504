import { BLOB } from "@duckdb/node-api";
import { FixedColumn, TextColumn } from "../columns/column-writers.js";
import type { FeedColumn, FeedSource } from "../columns/feed.js";
import { ListColumn } from "../columns/nested-columns.js";
import { Envelope } from "../contracts/envelope.js";
import { writtenReference } from "../contracts/payload-reference.js";
import { BOUNDED } from "../table/data-file.js";
import type { TableSpec } from "../table/definition.js";
import { ONE_HOUR, RETENTION } from "../table/delta-table.js";
import { deltaTypeOf } from "../table/schema.js";
import { COMMIT_TIMES } from "../table/state.js";
import { type EventBatch, OPERATIONS } from "./event-batch.js";

/** Raw tables: every event as it arrived, append-only, one table an entity type, payload bytes untouched. */

const DESCRIPTIONS = {
  tenant_id: "Customer the event belongs to.",
  entity_type: "Full name of the payload's message.",
  entity_id: "Identity within tenant and type.",
  operation: "CREATED, UPDATED or DELETED.",
  version: "Greatest wins.",
  occurred_at: "When it happened, says the producer; microseconds.",
  payload_type_url: "Type URL of the payload; NULL without one.",
  payload: "The payload's bytes as published; NULL without one, and where they are at payload_uri.",
  payload_compression: "GZIP or ZSTD; NULL when not packed.",
  payload_uri: "Key of the object that holds the payload's bytes, where those did not travel with the event.",
  payload_size: "Bytes of that object.",
  payload_sha256: "Their SHA-256.",
  attributes: "The producer's own labels.",
  event_id: "The producer's own id; NULL without one.",
  stream: "Stream it came by.",
  partition: "Partition of the stream.",
  position: "Position within the partition, ordered as text.",
  received_at: "When the bus took it.",
} as const;

/**
 * Bounds are kept of what finds events: by tenant, by position (what a model has not seen), by version, by time. No
 * bound tells of a payload.
 */
const BOUNDED_COLUMNS = [
  "tenant_id",
  "stream",
  "partition",
  "position",
  "version",
  "occurred_at",
  "received_at",
].join(",");

export const rawRoot = (entityType: string): string => `raw/${entityType}`;

export const rawColumns = (): TableSpec["columns"] =>
  new RawRows().columns.map(({ name, writer }) => ({
    name,
    type: deltaTypeOf(writer.type)!,
    nullable: true,
    description: DESCRIPTIONS[name as keyof typeof DESCRIPTIONS],
  }));

export const rawSpec = (entityType: string): TableSpec => ({
  columns: rawColumns(),
  partitionColumns: [],
  properties: {
    "delta.appendOnly": "true",
    [COMMIT_TIMES]: "true",
    [BOUNDED]: BOUNDED_COLUMNS,
    [RETENTION]: ONE_HOUR,
    "tributary.entityType": entityType,
  },
  // The last keeps other engines from writing: `appendOnly` alone lets them rewrite files, and add rows that no stream
  // has brought.
  protocol: {
    minReaderVersion: 1,
    minWriterVersion: 7,
    writerFeatures: ["appendOnly", "domainMetadata", "inCommitTimestamp", "tributary.append"],
  },
  description: `Change events of ${entityType} as they arrived.`,
  grows: true,
  irreplaceable: true,
});

const OPERATION_NAMES = OPERATIONS.map((name) => Buffer.from(name));
const COMPRESSION_NAMES = ["", "GZIP", "ZSTD"].map((name) => Buffer.from(name));

/** Events as rows of a raw table. */
export class RawRows {
  private readonly tenant = new TextColumn();
  private readonly type = new TextColumn();
  private readonly id = new TextColumn();
  private readonly operation = new TextColumn();
  private readonly version = FixedColumn.bigint();
  private readonly occurred = FixedColumn.timestamp();
  private readonly url = new TextColumn();
  private readonly payload = new TextColumn(BLOB);
  private readonly compression = new TextColumn();
  private readonly uri = new TextColumn();
  private readonly size = FixedColumn.bigint();
  private readonly sha256 = new TextColumn(BLOB);
  private readonly attributeKey = new TextColumn();
  private readonly attributeValue = new TextColumn();
  private readonly attributes = ListColumn.map(this.attributeKey, this.attributeValue);
  private readonly eventId = new TextColumn();
  private readonly stream = new TextColumn();
  private readonly partition = new TextColumn();
  private readonly position = new TextColumn();
  private readonly received = FixedColumn.timestamp();

  readonly columns: readonly FeedColumn[] = [
    { name: "tenant_id", writer: this.tenant, nullable: false },
    { name: "entity_type", writer: this.type, nullable: false },
    { name: "entity_id", writer: this.id, nullable: false },
    { name: "operation", writer: this.operation, nullable: false },
    { name: "version", writer: this.version, nullable: false },
    { name: "occurred_at", writer: this.occurred, nullable: true },
    { name: "payload_type_url", writer: this.url, nullable: true },
    { name: "payload", writer: this.payload, nullable: true },
    { name: "payload_compression", writer: this.compression, nullable: true },
    { name: "payload_uri", writer: this.uri, nullable: true },
    { name: "payload_size", writer: this.size, nullable: true },
    { name: "payload_sha256", writer: this.sha256, nullable: true },
    { name: "attributes", writer: this.attributes, nullable: false },
    { name: "event_id", writer: this.eventId, nullable: true },
    { name: "stream", writer: this.stream, nullable: false },
    { name: "partition", writer: this.partition, nullable: false },
    { name: "position", writer: this.position, nullable: false },
    { name: "received_at", writer: this.received, nullable: false },
  ];

  source(batch: EventBatch): FeedSource {
    const envelope = new Envelope();
    const streamName = Buffer.from(batch.stream);
    return {
      rows: batch.count,
      fill: (start, rows) => {
        for (let row = 0; row < rows; row++) this.put(row, batch, start + row, envelope, streamName);
      },
    };
  }

  private put(row: number, batch: EventBatch, i: number, envelope: Envelope, stream: Buffer): void {
    batch.readWhole(i, envelope);
    const { bytes } = envelope;
    this.tenant.set(row, bytes, envelope.tenantStart, envelope.tenantEnd);
    this.type.set(row, bytes, envelope.typeStart, envelope.typeEnd);
    this.id.set(row, bytes, envelope.idStart, envelope.idEnd);
    const operation = OPERATION_NAMES[envelope.operation]!;
    this.operation.set(row, operation, 0, operation.length);
    this.version.set64(row, envelope.versionLo, envelope.versionHi);
    putOccurred(this.occurred, row, envelope);
    if (envelope.payloadStart >= 0) {
      this.url.set(row, bytes, envelope.typeUrlStart, envelope.typeUrlEnd);
      this.payload.set(row, bytes, envelope.payloadStart, envelope.payloadEnd);
    }
    this.putReference(row, envelope);
    if (envelope.compression !== 0) {
      const name = COMPRESSION_NAMES[envelope.compression]!;
      this.compression.set(row, name, 0, name.length);
    }
    this.putAttributes(row, envelope);
    if (envelope.eventIdEnd > envelope.eventIdStart) {
      this.eventId.set(row, bytes, envelope.eventIdStart, envelope.eventIdEnd);
    }
    this.stream.set(row, stream, 0, stream.length);
    this.partition.setString(row, batch.partitions[i]!);
    this.position.setString(row, batch.positions[i]!);
    const received = batch.receivedAt[i]!;
    const seconds = Math.floor(received / 1000);
    this.received.setMicros(row, seconds, Math.round((received - seconds * 1000) * 1000));
  }

  private putReference(row: number, envelope: Envelope): void {
    if (envelope.referenceStart < 0) {
      this.size.setNull(row);
      return;
    }
    const { uri, sizeLo, sizeHi, sha256 } = writtenReference(envelope);
    this.url.setString(row, envelope.typeUrl().toWellFormed());
    this.uri.setString(row, uri.toWellFormed());
    this.size.set64(row, sizeLo, sizeHi);
    this.sha256.set(row, sha256, 0, sha256.length);
  }

  private putAttributes(row: number, { bytes, attributes, attributeCount }: Envelope): void {
    for (const at of lastOfEach(bytes, attributes, attributeCount)) {
      const element = this.attributes.append(row);
      this.attributeKey.set(element, bytes, attributes[at]!, attributes[at + 1]!);
      this.attributeValue.set(element, bytes, attributes[at + 2]!, attributes[at + 3]!);
    }
  }
}

/** Where the attributes begin: of equal keys the last stands, as a map has it. */
function lastOfEach(bytes: Buffer, attributes: Int32Array, count: number): Iterable<number> {
  // As most events have none, or a trace context.
  if (count < 2) return count === 0 ? NOWHERE : FIRST;
  const last = new Map<string, number>();
  for (let at = 0; at < count * 4; at += 4) {
    const key = bytes.toString("latin1", attributes[at], attributes[at + 1]);
    last.delete(key);
    last.set(key, at);
  }
  return last.values();
}

const NOWHERE: readonly number[] = [];
const FIRST: readonly number[] = [0];

/** occurred_at in microseconds, rounded down; NULL where the event has none. */
export function putOccurred(column: FixedColumn, row: number, envelope: Envelope): void {
  if (Number.isNaN(envelope.occurredSeconds)) column.setNull(row);
  else column.setMicros(row, envelope.occurredSeconds, Math.floor(envelope.occurredNanos / 1000));
}
