import type { DuckDBBlobValue, DuckDBConnection, DuckDBTimestampTZValue } from "@duckdb/node-api";
import { chunksOf, literal } from "../base/duckdb.js";
import { encodeEvent } from "../contracts/encode-event.js";
import type { DeltaTable } from "../table/delta-table.js";
import { type Positions, positionsOf } from "../table/progress.js";
import { scanFilesSql } from "../table/scan.js";
import type { TableSnapshot } from "../table/types.js";
import { EventBatch, OPERATIONS } from "./event-batch.js";

const COLUMNS = [
  "tenant_id",
  "entity_id",
  "operation",
  "version",
  "occurred_at",
  "payload_type_url",
  "payload",
  "payload_compression",
  "partition",
  "position",
  "received_at",
] as const;

/**
 * Reads a raw table's events beyond `from`, as of `snapshot`, in no particular order: what comes out of them does not
 * depend on it (I3). Batches hold up to `maxEvents`. What no model may see (attributes, event_id) is left out.
 */
export async function* replayRaw(
  table: DeltaTable,
  snapshot: TableSnapshot,
  connection: DuckDBConnection,
  entityType: string,
  stream: string,
  from: Positions,
  maxEvents: number,
): AsyncGenerator<EventBatch> {
  // Positions bound files only while `from` knows every partition.
  const known = [...positionsOf(snapshot, stream).keys()].every((partition) => from.has(partition));
  const least = [...from.values()].reduce((a, b) => (b < a ? b : a), "~");
  const files = snapshot.files.filter(
    ({ max }) => !known || typeof max.position !== "string" || max.position > least,
  );
  if (files.length === 0) return;
  const conditions = [...from].map(
    ([partition, position]) => `(partition = ${literal(partition)} AND position > ${literal(position)})`,
  );
  if (from.size > 0) conditions.push(`partition NOT IN (${[...from.keys()].map(literal).join(", ")})`);
  const sql = await scanFilesSql(table, snapshot, files, {
    ...(conditions.length === 0 ? {} : { where: conditions.join(" OR ") }),
  });
  const result = await connection.stream(`SELECT ${COLUMNS.join(", ")} FROM (${sql})`);
  let batch = new EventBatch(entityType);
  for await (const chunk of chunksOf(result)) {
    const columns = COLUMNS.map((_, index) => chunk.getColumnValues(index));
    for (let row = 0; row < chunk.rowCount; row++) {
      const [
        tenant,
        id,
        operation,
        version,
        occurred,
        url,
        payload,
        compression,
        partition,
        position,
        received,
      ] = columns.map((column) => column[row]);
      const micros = (occurred as DuckDBTimestampTZValue | null)?.micros;
      const event = encodeEvent({
        tenantId: tenant as string,
        entityType,
        entityId: id as string,
        operation: OPERATIONS.indexOf(operation as (typeof OPERATIONS)[number]),
        version: version as bigint,
        ...(micros === undefined ? {} : { occurredAt: timestampOf(micros) }),
        ...(payload == null
          ? {}
          : { payload: { typeUrl: url as string, value: (payload as DuckDBBlobValue).bytes } }),
        compression: compression === "GZIP" ? 1 : compression === "ZSTD" ? 2 : 0,
      });
      const receivedAt = Number((received as DuckDBTimestampTZValue).micros) / 1000;
      batch.add(event, 0, event.length, partition as string, position as string, receivedAt);
    }
    if (batch.count >= maxEvents) {
      yield batch;
      batch = new EventBatch(entityType);
    }
  }
  if (batch.count > 0) yield batch;
}

function timestampOf(micros: bigint): { seconds: bigint; nanos: number } {
  const part = ((micros % 1_000_000n) + 1_000_000n) % 1_000_000n;
  return { seconds: (micros - part) / 1_000_000n, nanos: Number(part) * 1000 };
}
