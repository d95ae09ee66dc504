import type {
  DuckDBBlobValue,
  DuckDBConnection,
  DuckDBMapValue,
  DuckDBTimestampTZValue,
} from "@duckdb/node-api";
import { chunksOf, literal, rowsOf } from "../base/duckdb.js";
import { encodeEvent } from "../contracts/encode-event.js";
import type { DeltaTable } from "../table/delta-table.js";
import { type Progress, partsOf, progressOf, type Track } from "../table/progress.js";
import { scanFilesSql } from "../table/scan.js";
import type { TableFile, TableSnapshot } from "../table/types.js";
import { EventBatch, OPERATIONS } from "./event-batch.js";

/** A raw table as of one snapshot, and how it is read. */
export interface RawView {
  readonly table: DeltaTable;
  readonly snapshot: TableSnapshot;
  readonly connection: DuckDBConnection;
  readonly entityType: string;
}

/** What a batch of replayed events may hold; whichever is reached first. */
export interface BatchLimits {
  readonly events: number;
  readonly bytes: number;
}

/** All that a model may see. */
const SEEN = [
  "tenant_id",
  "entity_id",
  "operation",
  "version",
  "occurred_at",
  "payload_type_url",
  "payload",
  "payload_compression",
  "stream",
  "partition",
  "position",
  "received_at",
] as const;
/** What else an event is made of. */
const UNSEEN = ["attributes", "event_id"] as const;

/** The tracks on which raw is beyond `from`, of whatever stream, each with raw's position. */
export function beyond(raw: Pick<TableSnapshot, "domains">, from: Progress): Map<Track, string> {
  return new Map([...progressOf(raw)].filter(([track, position]) => position > (from.get(track) ?? "")));
}

/**
 * Cuts the way from `from` to `to` into ranges of about `maxEvents` events: how far each goes, on every track. An event
 * is in the first range that reaches its position.
 */
export async function rangesOf(
  view: RawView,
  from: Progress,
  to: Progress,
  maxEvents: number,
): Promise<Progress[]> {
  const files = filesBetween(view.snapshot, from, to);
  if (files.reduce((rows, file) => rows + file.rows, 0) <= maxEvents) return [to];
  const sql = await scanFilesSql(view.table, view.snapshot, files, {
    columns: ["stream", "partition", "position"],
    where: between(from, to),
  });
  const [[events]] = (await rowsOf(view.connection, `SELECT count(*) FROM (${sql})`)) as [[bigint]];
  const count = Math.ceil(Number(events) / maxEvents);
  if (count <= 1) return [to];
  const rows = await rowsOf(
    view.connection,
    `SELECT range, stream, partition, max(position) FROM (
       SELECT *, ntile(${count}) OVER (PARTITION BY stream, partition ORDER BY position) AS range FROM (${sql})
     ) GROUP BY ALL`,
  );
  const ends = Array.from({ length: count }, () => new Map<Track, string>());
  for (const [range, stream, partition, position] of rows) {
    ends[Number(range) - 1]!.set(`${stream}.${partition}`, String(position));
  }
  ends[count - 1] = new Map(to);
  return ends.filter((end) => end.size > 0);
}

/** Reads raw's events beyond `from` and up to `to`, in no particular order: what comes of them does not depend on it (I3). */
export async function* readRange(
  view: RawView,
  from: Progress,
  to: Progress,
  limits: BatchLimits,
): AsyncGenerator<EventBatch> {
  const files = filesBetween(view.snapshot, from, to);
  if (files.length === 0) return;
  const sql = await scanFilesSql(view.table, view.snapshot, files, { where: between(from, to) });
  yield* batches(view, `SELECT ${SEEN.join(", ")} FROM (${sql})`, limits);
}

/** The events at some positions of one stream as they were published, what no model may see included. */
export async function originals(
  view: RawView,
  stream: string,
  wanted: readonly { readonly partition: string; readonly position: string }[],
): Promise<Map<string, Buffer>> {
  const positions = [...new Set(wanted.map(({ position }) => position))];
  const files = filesAt(view.snapshot, positions);
  const sql = await scanFilesSql(view.table, view.snapshot, files, {
    where: `stream = ${literal(stream)} AND position IN (${positions.map(literal).join(", ")})`,
  });
  const columns = [...SEEN, ...UNSEEN].join(", ");
  const found = new Map<string, Buffer>();
  for await (const batch of batches(view, `SELECT ${columns} FROM (${sql})`, EVERYTHING)) {
    for (let i = 0; i < batch.count; i++) {
      found.set(`${batch.partitions[i]}/${batch.positions[i]}`, batch.event(i));
    }
  }
  return found;
}

/** Files that may hold events at some of the positions, of whatever partition. */
export function filesAt({ files }: TableSnapshot, positions: readonly string[]): TableFile[] {
  return files.filter(({ min, max }) =>
    positions.some((position) => covers(min.position, max.position, position)),
  );
}

const EVERYTHING: BatchLimits = { events: Number.POSITIVE_INFINITY, bytes: Number.POSITIVE_INFINITY };

async function* batches(view: RawView, sql: string, limits: BatchLimits): AsyncGenerator<EventBatch> {
  const { entityType } = view;
  const open = new Map<string, EventBatch>();
  const result = await view.connection.stream(sql);
  const names = result.columnNames();
  for await (const chunk of chunksOf(result)) {
    const columns = new Map(names.map((name, index) => [name, chunk.getColumnValues(index)]));
    let row = 0;
    const value = (name: string): unknown => columns.get(name)?.[row];
    for (; row < chunk.rowCount; row++) {
      const stream = value("stream") as string;
      let batch = open.get(stream);
      if (batch === undefined) {
        batch = new EventBatch(entityType, stream);
        open.set(stream, batch);
      }
      const event = eventOf(entityType, value);
      const receivedAt = Number((value("received_at") as DuckDBTimestampTZValue).micros) / 1000;
      batch.add(
        event,
        0,
        event.length,
        value("partition") as string,
        value("position") as string,
        receivedAt,
      );
      if (batch.count >= limits.events || batch.byteCount >= limits.bytes) {
        open.delete(stream);
        yield batch;
      }
    }
  }
  yield* open.values();
}

function eventOf(entityType: string, value: (name: string) => unknown): Buffer {
  const micros = (value("occurred_at") as DuckDBTimestampTZValue | null)?.micros;
  const payload = value("payload") as DuckDBBlobValue | null;
  const compression = value("payload_compression");
  const attributes = value("attributes") as DuckDBMapValue | null | undefined;
  const eventId = value("event_id") as string | null | undefined;
  return encodeEvent({
    tenantId: value("tenant_id") as string,
    entityType,
    entityId: value("entity_id") as string,
    operation: OPERATIONS.indexOf(value("operation") as (typeof OPERATIONS)[number]),
    version: value("version") as bigint,
    ...(micros === undefined ? {} : { occurredAt: timestampOf(micros) }),
    ...(payload === null
      ? {}
      : { payload: { typeUrl: value("payload_type_url") as string, value: payload.bytes } }),
    compression: compression === "GZIP" ? 1 : compression === "ZSTD" ? 2 : 0,
    ...(attributes == null
      ? {}
      : { attributes: Object.fromEntries(attributes.entries.map((e) => [String(e.key), String(e.value)])) }),
    ...(eventId == null ? {} : { eventId }),
  });
}

/** SQL condition for what lies between; `to` names the tracks that matter. */
function between(from: Progress, to: Progress): string {
  const conditions = [...to].map(([track, end]) => {
    const { stream, partition } = partsOf(track);
    const start = from.get(track);
    const after = start === undefined ? "" : ` AND position > ${literal(start)}`;
    return `(stream = ${literal(stream)} AND partition = ${literal(partition)}${after} AND position <= ${literal(end)})`;
  });
  return conditions.length === 0 ? "false" : conditions.join(" OR ");
}

/** Files that may hold something between, by their bounds where they have any. */
function filesBetween({ files }: TableSnapshot, from: Progress, to: Progress): TableFile[] {
  return files.filter(({ min, max }) =>
    [...to].some(([track, end]) => {
      const { stream, partition } = partsOf(track);
      const start = from.get(track);
      return (
        covers(min.stream, max.stream, stream) &&
        covers(min.partition, max.partition, partition) &&
        (typeof max.position !== "string" || start === undefined || max.position > start) &&
        (typeof min.position !== "string" || min.position <= end)
      );
    }),
  );
}

const covers = (min: unknown, max: unknown, value: string): boolean =>
  typeof min !== "string" || typeof max !== "string" || (min <= value && value <= max);

function timestampOf(micros: bigint): { seconds: bigint; nanos: number } {
  const part = ((micros % 1_000_000n) + 1_000_000n) % 1_000_000n;
  return { seconds: (micros - part) / 1_000_000n, nanos: Number(part) * 1000 };
}
