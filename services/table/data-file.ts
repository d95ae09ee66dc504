import { randomUUID } from "node:crypto";
import type { DuckDBConnection, DuckDBMapValue } from "@duckdb/node-api";
import { literal } from "../base/duckdb.js";
import type { AddAction } from "./actions.js";
import { EVERY_SLOT, type Slots, slotsTag } from "./slot-ranges.js";
import type { StagedFile, Staging } from "./staging.js";
import { KIND_TAG, PARTITION_COLUMN, TOMBSTONES } from "./state.js";
import type { Column, TableSnapshot } from "./types.js";

export interface StageOptions {
  /** Value of `tenant_partition`; undefined for a table without partitions. */
  readonly partition?: string;
  readonly tombstones?: boolean;
  readonly dataChange?: boolean;
  /** Where its keys lie; anywhere when absent. */
  readonly slots?: Slots;
}

/** The rows of a file, all of them. */
export const allRows = ({ rows }: StagedFile): Uint32Array =>
  Uint32Array.from({ length: rows }, (_, row) => row);

// Level 1 costs a third of the default level's CPU for a tenth more bytes. Dictionaries help keys and enums, not
// payloads: beyond this many distinct values they only cost.
// Row groups of half the default's rows: a writer holds one of them, and a third of its CPU went into fresh memory.
// The version tells Spark that times before 1900 are of the calendar it uses itself; without, it refuses to read them.
const PARQUET = `FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, DICTIONARY_SIZE_LIMIT 2000, ROW_GROUP_SIZE 61440, RETURN_STATS,
  KV_METADATA {'org.apache.spark.version': '3.5.0'}`;

/** What the engine says of a file that it has written: plain, so that a process can tell another one. */
export interface WrittenFile {
  readonly rows: number;
  readonly bytes: number;
  /** Column → what is known of its values → in the engine's words. */
  readonly statistics: Readonly<Record<string, Readonly<Record<string, string>>>>;
}

/** Writes the rows of `sql`, in its order, as one Parquet file at a path where none is. */
export async function writeParquet(
  connection: DuckDBConnection,
  sql: string,
  localPath: string,
): Promise<WrittenFile> {
  const result = await connection.runAndReadAll(`COPY (${sql}) TO ${literal(localPath)} (${PARQUET})`);
  const row = result.getRowObjects()[0]!;
  const columns = (row.column_statistics as DuckDBMapValue).entries.map(({ key, value }) => {
    const told = (value as DuckDBMapValue).entries.map((entry) => [String(entry.key), String(entry.value)]);
    // Names come quoted where they need it.
    return [
      String(key)
        .replace(/^"(.*)"$/s, "$1")
        .replaceAll('""', '"'),
      Object.fromEntries(told),
    ];
  });
  return {
    rows: Number(row.count),
    bytes: Number(row.file_size_bytes),
    statistics: Object.fromEntries(columns) as WrittenFile["statistics"],
  };
}

/** Writes the rows of `sql`, in its order, as one Parquet file in the store's staging folder. */
export const stageFile = (
  staging: Staging,
  connection: DuckDBConnection,
  sql: string,
  options: StageOptions,
): Promise<StagedFile> =>
  stageWritten(staging, options, (localPath) => writeParquet(connection, sql, localPath));

/** As `stageFile`, of a file that `write` makes at the path that it is given. */
export async function stageWritten(
  staging: Staging,
  options: StageOptions,
  write: (localPath: string) => Promise<WrittenFile>,
): Promise<StagedFile> {
  const name = `${options.tombstones ? "tombstones" : "part"}-${randomUUID()}.parquet`;
  const folder =
    options.partition === undefined ? "" : `${PARTITION_COLUMN}=${encodeURIComponent(options.partition)}/`;
  const { localPath, written } = await staging.write(name, async (localPath) => ({
    localPath,
    written: await write(localPath),
  }));
  const { rows, bytes, statistics } = written;
  const path = `${folder}${name}`;
  return {
    localPath,
    key: `${staging.table.root}/${path}`,
    rows,
    add: {
      // The log holds paths URL-encoded (Delta protocol, "Add File"); the folder's name holds an escape already.
      path: path.split("/").map(encodeSegment).join("/"),
      partitionValues: options.partition === undefined ? {} : { [PARTITION_COLUMN]: options.partition },
      size: bytes,
      modificationTime: Date.now(),
      dataChange: options.dataChange ?? true,
      stats: statsText(rows, !options.tombstones, statistics, boundedColumns(staging.table.snapshot)),
      ...tagged({
        ...(options.tombstones ? { [KIND_TAG]: TOMBSTONES } : {}),
        ...slotsTag(options.slots ?? EVERY_SLOT),
      }),
    },
  };
}

const tagged = (tags: Readonly<Record<string, string>>): Pick<AddAction, "tags"> =>
  Object.keys(tags).length === 0 ? {} : { tags };

const encodeSegment = (segment: string): string => encodeURIComponent(segment).replaceAll("%3D", "=");

/** The property that tells any writer which columns to keep bounds of; others would tell of values that nobody prunes by. */
export const BOUNDED = "delta.dataSkippingStatsColumns";

function boundedColumns({ properties, columns }: TableSnapshot): Column[] {
  const names = (properties.get(BOUNDED) ?? "").split(",");
  return columns.filter(({ name }) => names.includes(name));
}

/** Statistics of a file (Delta protocol, "Per-file Statistics"), written as text: a number may have 64 bits. */
function statsText(
  rows: number,
  tight: boolean,
  statistics: WrittenFile["statistics"],
  columns: readonly Column[],
): string {
  const min: string[] = [];
  const max: string[] = [];
  const nulls: string[] = [];
  for (const { name, type } of columns) {
    const told = statistics[name];
    const count = told?.null_count;
    if (count !== undefined) nulls.push(`${JSON.stringify(name)}:${count}`);
    const least = jsonOf(told?.min, type);
    const greatest = jsonOf(told?.max, type);
    if (least === undefined || greatest === undefined) continue;
    min.push(`${JSON.stringify(name)}:${least}`);
    max.push(`${JSON.stringify(name)}:${greatest}`);
  }
  return `{"numRecords":${rows},"tightBounds":${tight},"minValues":{${min}},"maxValues":{${max}},"nullCount":{${nulls}}}`;
}

/** A bound, as DuckDB words it, in JSON. */
function jsonOf(bound: string | undefined, type: string): string | undefined {
  if (bound === undefined) return undefined;
  switch (type) {
    case "VARCHAR":
      return JSON.stringify(bound);
    case "BIGINT":
      return bound;
    case "TIMESTAMP WITH TIME ZONE": {
      const [, day, time, fraction = ""] =
        /^(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d)(?:\.(\d+))?\+00$/.exec(bound) ?? [];
      return day === undefined ? undefined : `"${day}T${time}.${fraction.padEnd(6, "0")}Z"`;
    }
    default:
      return undefined;
  }
}
