import { randomUUID } from "node:crypto";
import type { DuckDBConnection, DuckDBMapValue } from "@duckdb/node-api";
import { chunksOf, literal, rowsOf } from "../base/duckdb.js";
import { encodeEvent } from "../contracts/encode-event.js";
import type { DeltaTable } from "../table/delta-table.js";
import { type Progress, partsOf, progressOf, type Track } from "../table/progress.js";
import { mayHoldTenant, portionsOf, withFilesScan } from "../table/scan.js";
import type { TableFile, TableSnapshot } from "../table/types.js";
import { EventBatch } from "./event-batch.js";
import { RawEventReader, selectEvents } from "./raw-events.js";

/** A raw table as of one snapshot, and how it is read. */
export interface RawView {
  readonly table: DeltaTable;
  readonly snapshot: TableSnapshot;
  readonly connection: DuckDBConnection;
  readonly entityType: string;
  /** The events that alone are read; all when absent. */
  readonly only?: Selection;
}

/** Events of a raw table: those that fit all that is given. */
export interface Selection {
  readonly tenant?: string;
  /** Of versions from `from` to before `until`, or received in that time. */
  readonly range?: {
    readonly by: "version" | "received_at";
    /** Whole numbers; times in ms since the epoch. */
    readonly from?: number;
    readonly until?: number;
  };
}

/** What a batch of replayed events may hold; whichever is reached first. */
export interface BatchLimits {
  readonly events: number;
  readonly bytes: number;
}

/** What no model may see, and is part of the event all the same. */
const UNSEEN = ["attributes", "event_id"] as const;

/** The tracks on which raw is beyond `from`, of whatever stream, each with raw's position. */
export function beyond(raw: Pick<TableSnapshot, "domains">, from: Progress): Map<Track, string> {
  return ahead(progressOf(raw), from);
}

/** The tracks on which `to` is beyond `from`. */
export const ahead = (to: Progress, from: Progress): Map<Track, string> =>
  new Map([...to].filter(([track, position]) => position > (from.get(track) ?? "")));

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
  const files = filesBetween(view, from, to);
  if (files.reduce((rows, file) => rows + file.rows, 0) <= maxEvents) return [to];
  const rows = await withPositions(view, files, between(view, from, to), async (sql) => {
    const [[events]] = (await rowsOf(view.connection, `SELECT count(*) FROM (${sql})`)) as [[bigint]];
    const count = Math.ceil(Number(events) / maxEvents);
    if (count <= 1) return [];
    return rowsOf(
      view.connection,
      `SELECT range, stream, partition, max(position) FROM (
         SELECT *, ntile(${count}) OVER (PARTITION BY stream, partition ORDER BY position) AS range FROM (${sql})
       ) GROUP BY ALL`,
    );
  });
  if (rows.length === 0) return [to];
  const count = Math.max(...rows.map(([range]) => Number(range)));
  const ends = Array.from({ length: count }, () => new Map<Track, string>());
  for (const [range, stream, partition, position] of rows) {
    ends[Number(range) - 1]!.set(`${stream}.${partition}`, String(position));
  }
  ends[count - 1] = new Map(to);
  return ends.filter((end) => end.size > 0);
}

/** Runs `use` with SQL that yields stream, partition and position of the events in the files that `where` lets pass. */
async function withPositions<T>(
  { table, snapshot, connection }: RawView,
  files: readonly TableFile[],
  where: string,
  use: (sql: string) => Promise<T>,
): Promise<T> {
  const options = { columns: ["stream", "partition", "position"], where };
  const portions = portionsOf(table, files);
  if (portions.length === 1) return withFilesScan(table, snapshot, files, options, use);
  const name = `positions_${randomUUID().replaceAll("-", "")}`;
  await connection.run(`CREATE TEMP TABLE ${name} (stream VARCHAR, partition VARCHAR, position VARCHAR)`);
  try {
    for (const portion of portions) {
      await withFilesScan(table, snapshot, portion, options, (sql) =>
        connection.run(`INSERT INTO ${name} SELECT stream, partition, position FROM (${sql})`),
      );
    }
    return await use(`SELECT * FROM ${name}`);
  } finally {
    await connection.run(`DROP TABLE ${name}`);
  }
}

/**
 * Gives raw's events beyond `from` and up to `to` to `take`, one batch after the other, in no particular order: what
 * comes of them does not depend on it (I3). Ends early when `take` resolves to false, and resolves to that.
 */
export async function readRange(
  view: RawView,
  from: Progress,
  to: Progress,
  limits: BatchLimits,
  take: (batch: EventBatch) => Promise<boolean>,
): Promise<boolean> {
  const files = filesBetween(view, from, to);
  if (files.length === 0) return true;
  for (const portion of portionsOf(view.table, files)) {
    const options = { where: between(view, from, to) };
    const taken = await withFilesScan(view.table, view.snapshot, portion, options, async (sql) => {
      for await (const batch of batchesOf(view, sql, limits)) if (!(await take(batch))) return false;
      return true;
    });
    if (!taken) return false;
  }
  return true;
}

async function* batchesOf(view: RawView, sql: string, limits: BatchLimits): AsyncGenerator<EventBatch> {
  const reader = new RawEventReader(view.entityType);
  const open = new Map<string, EventBatch>();
  const batchOf = (stream: string): EventBatch => {
    const batch = open.get(stream) ?? new EventBatch(view.entityType, stream);
    open.set(stream, batch);
    return batch;
  };
  for await (const chunk of chunksOf(view.connection, selectEvents(sql))) {
    const full: EventBatch[] = [];
    reader.read(chunk, batchOf, (batch) => {
      if (batch.count < limits.events && batch.byteCount < limits.bytes) return;
      open.delete(batch.stream);
      full.push(batch);
    });
    yield* full;
  }
  yield* open.values();
}

/** The events at some positions of one stream as they were published, what no model may see included. */
export async function originals(
  view: RawView,
  stream: string,
  wanted: readonly { readonly partition: string; readonly position: string }[],
): Promise<Map<string, Buffer>> {
  const positions = [...new Set(wanted.map(({ position }) => position))];
  const files = filesAt(view.snapshot, positions);
  const where = `stream = ${literal(stream)} AND position IN (${positions.map(literal).join(", ")})`;
  const found = new Map<string, Buffer>();
  await withFilesScan(view.table, view.snapshot, files, { where }, async (sql) => {
    for await (const { partition, position, event } of wholeEvents(view, sql))
      found.set(`${partition}/${position}`, event);
  });
  return found;
}

/** An event as it was published, and where it came along. */
export interface WholeEvent {
  readonly stream: string;
  readonly partition: string;
  readonly position: string;
  /** In ms since the epoch. */
  readonly receivedAt: number;
  readonly event: Buffer;
}

/** The events of `rows`, SQL for rows with a raw table's columns. */
export async function* wholeEvents(
  { connection, entityType }: Pick<RawView, "connection" | "entityType">,
  rows: string,
): AsyncGenerator<WholeEvent> {
  const reader = new RawEventReader(entityType);
  for await (const chunk of chunksOf(connection, selectEvents(rows, UNSEEN))) {
    const first = chunk.columnCount - UNSEEN.length;
    const attributes = chunk.getColumnValues(first) as (DuckDBMapValue | null)[];
    const eventIds = chunk.getColumnValues(first + 1) as (string | null)[];
    const found: WholeEvent[] = [];
    const batches = new Map<string, EventBatch>();
    const batchOf = (stream: string): EventBatch => {
      const batch = batches.get(stream) ?? new EventBatch(entityType, stream);
      batches.set(stream, batch);
      return batch;
    };
    reader.read(chunk, batchOf, (batch, row) => {
      const i = batch.count - 1;
      const unseen = unseenOf(attributes[row] ?? null, eventIds[row] ?? null);
      found.push({
        stream: batch.stream,
        partition: batch.partitions[i]!,
        position: batch.positions[i]!,
        receivedAt: batch.receivedAt[i]!,
        event: Buffer.concat([batch.event(i), unseen]),
      });
    });
    yield* found;
  }
}

/** What follows the rest of an event on the wire. */
const unseenOf = (attributes: DuckDBMapValue | null, eventId: string | null): Buffer =>
  encodeEvent({
    ...(attributes === null
      ? {}
      : { attributes: Object.fromEntries(attributes.entries.map((e) => [String(e.key), String(e.value)])) }),
    ...(eventId === null ? {} : { eventId }),
  });

/** Files that may hold events at some of the positions, of whatever partition. */
export function filesAt({ files }: TableSnapshot, positions: readonly string[]): TableFile[] {
  return files.filter(({ min, max }) =>
    positions.some((position) => covers(min.position, max.position, position)),
  );
}

/** SQL condition for what lies between; `to` names the tracks that matter. */
function between({ only }: Pick<RawView, "only">, from: Progress, to: Progress): string {
  const conditions = [...to].map(([track, end]) => {
    const { stream, partition } = partsOf(track);
    const start = from.get(track);
    const after = start === undefined ? "" : ` AND position > ${literal(start)}`;
    return `(stream = ${literal(stream)} AND partition = ${literal(partition)}${after} AND position <= ${literal(end)})`;
  });
  const any = conditions.length === 0 ? "false" : conditions.join(" OR ");
  return [`(${any})`, ...selected(only)].join(" AND ");
}

/** Files that may hold something between, by their bounds where they have any. */
function filesBetween({ snapshot, only }: RawView, from: Progress, to: Progress): TableFile[] {
  return selectedFiles(snapshot, only).filter(({ min, max }) =>
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

/** SQL conditions for what is selected. */
function selected({ tenant, range }: Selection = {}): string[] {
  const conditions = tenant === undefined ? [] : [`tenant_id = ${literal(tenant)}`];
  if (range === undefined) return conditions;
  const value = (of: number) => (range.by === "version" ? String(of) : `epoch_ms(${of})::TIMESTAMPTZ`);
  if (range.from !== undefined) conditions.push(`${range.by} >= ${value(range.from)}`);
  if (range.until !== undefined) conditions.push(`${range.by} < ${value(range.until)}`);
  return conditions;
}

/** Files that may hold something that is selected, by their bounds where they have any. */
export function selectedFiles(
  { files }: Pick<TableSnapshot, "files">,
  { tenant, range }: Selection = {},
): TableFile[] {
  return files.filter((file) => {
    if (tenant !== undefined && !mayHoldTenant(file, tenant)) return false;
    if (range?.by !== "received_at") return true;
    const { received_at: min } = file.min;
    const { received_at: max } = file.max;
    return (
      typeof min !== "string" ||
      typeof max !== "string" ||
      ((range.until === undefined || Date.parse(min) < range.until) &&
        // Bounds may be cut to milliseconds.
        (range.from === undefined || Date.parse(max) + 1 >= range.from))
    );
  });
}

const covers = (min: unknown, max: unknown, value: string): boolean =>
  typeof min !== "string" || typeof max !== "string" || (min <= value && value <= max);
