import {
  BIGINT,
  BLOB,
  blobValue,
  DuckDBTimestampTZValue,
  type DuckDBValue,
  MAP,
  mapValue,
  TIMESTAMPTZ,
  VARCHAR,
} from "@duckdb/node-api";
import { Envelope } from "../contracts/envelope.js";
import type { TableSpec } from "../table/delta-table.js";
import { deltaTypeOf } from "../table/schema.js";
import { type EventBatch, OPERATIONS, occurredMicros, timestamp, versionOf } from "./event-batch.js";
import type { FeedColumn, FeedSource } from "./feed.js";

/** Raw tables: every event as it arrived, append-only, one table an entity type, payload bytes untouched. */

export const RAW_COLUMNS: readonly (FeedColumn & { readonly description: string })[] = [
  { name: "tenant_id", type: VARCHAR, description: "Customer the event belongs to." },
  { name: "entity_type", type: VARCHAR, description: "Full name of the payload's message." },
  { name: "entity_id", type: VARCHAR, description: "Identity within tenant and type." },
  { name: "operation", type: VARCHAR, description: "CREATED, UPDATED or DELETED." },
  { name: "version", type: BIGINT, description: "Greatest wins." },
  {
    name: "occurred_at",
    type: TIMESTAMPTZ,
    description: "When it happened, says the producer; microseconds.",
  },
  { name: "payload_type_url", type: VARCHAR, description: "Type URL of the payload; NULL without one." },
  { name: "payload", type: BLOB, description: "The payload's bytes as published; NULL without one." },
  { name: "payload_compression", type: VARCHAR, description: "GZIP or ZSTD; NULL when not packed." },
  { name: "attributes", type: MAP(VARCHAR, VARCHAR), description: "The producer's own labels." },
  { name: "event_id", type: VARCHAR, description: "The producer's own id; NULL without one." },
  { name: "stream", type: VARCHAR, description: "Stream it came by." },
  { name: "partition", type: VARCHAR, description: "Partition of the stream." },
  { name: "position", type: VARCHAR, description: "Position within the partition, ordered as text." },
  { name: "received_at", type: TIMESTAMPTZ, description: "When the bus took it." },
];

/** Positions find what a model has not seen; tenants find what a tenant's life cycle needs. */
export const RAW_BOUNDS = ["tenant_id", "partition", "position"];

export const rawRoot = (entityType: string): string => `raw/${entityType}`;

export const rawSpec = (entityType: string): TableSpec => ({
  columns: RAW_COLUMNS.map(({ name, type, description }) => ({
    name,
    type: deltaTypeOf(type)!,
    nullable: true,
    description,
  })),
  partitionColumns: [],
  properties: { "tributary.entityType": entityType },
  protocol: { minReaderVersion: 1, minWriterVersion: 7, writerFeatures: ["domainMetadata"] },
  description: `Change events of ${entityType} as they arrived.`,
});

const COMPRESSIONS = [null, "GZIP", "ZSTD"] as const;
const NO_ATTRIBUTES = mapValue([]);

/** The batch as rows of RAW_COLUMNS. */
export function rawRows(batch: EventBatch, stream: string): FeedSource {
  const envelope = new Envelope();
  return {
    rows: batch.count,
    fill(columns, start, rows) {
      const [tenant, type, id, operation, version, occurred, url, payload, compression, attributes, eventId] =
        columns;
      const [streams, partition, position, received] = columns.slice(11);
      for (let row = 0; row < rows; row++) {
        const i = start + row;
        batch.read(i, envelope);
        const bytes = envelope.bytes;
        set(tenant, row, envelope.tenantId());
        set(type, row, batch.entityType);
        set(id, row, envelope.entityId());
        set(operation, row, OPERATIONS[envelope.operation]!);
        set(version, row, versionOf(envelope));
        set(occurred, row, timestamp(occurredMicros(envelope)));
        const has = envelope.payloadStart >= 0;
        set(url, row, has ? envelope.typeUrl() : null);
        set(payload, row, has ? blobValue(bytes.subarray(envelope.payloadStart, envelope.payloadEnd)) : null);
        set(compression, row, COMPRESSIONS[envelope.compression]!);
        set(attributes, row, envelope.attributeCount === 0 ? NO_ATTRIBUTES : attributesOf(envelope));
        set(eventId, row, envelope.eventIdStart === envelope.eventIdEnd ? null : envelope.eventId());
        set(streams, row, stream);
        set(partition, row, batch.partitions[i]!);
        set(position, row, batch.positions[i]!);
        set(received, row, new DuckDBTimestampTZValue(BigInt(Math.round(batch.receivedAt[i]! * 1000))));
      }
    },
  };
}

const set = (column: DuckDBValue[] | undefined, row: number, value: DuckDBValue): void => {
  if (column !== undefined) column[row] = value;
};

const attributesOf = (envelope: Envelope): DuckDBValue =>
  mapValue([...envelope.attributeMap()].map(([key, value]) => ({ key, value })));
