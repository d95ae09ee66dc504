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
// The version tells Spark that times before 1900 are of the calendar it uses itself; without, it refuses to read them.
const PARQUET = `FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, DICTIONARY_SIZE_LIMIT 2000, RETURN_STATS,
  KV_METADATA {'org.apache.spark.version': '3.5.0'}`;

/** Writes the rows of `sql`, in its order, as one Parquet file in the store's staging folder. */
export async function stageFile(
  staging: Staging,
  connection: DuckDBConnection,
  sql: string,
  options: StageOptions,
): Promise<StagedFile> {
  const name = `${options.tombstones ? "tombstones" : "part"}-${randomUUID()}.parquet`;
  const folder =
    options.partition === undefined ? "" : `${PARTITION_COLUMN}=${encodeURIComponent(options.partition)}/`;
  const { localPath, row } = await staging.write(name, async (localPath) => {
    const result = await connection.runAndReadAll(`COPY (${sql}) TO ${literal(localPath)} (${PARQUET})`);
    return { localPath, row: result.getRowObjects()[0] };
  });
  const rows = Number(row!.count);
  const path = `${folder}${name}`;
  return {
    localPath,
    key: `${staging.table.root}/${path}`,
    rows,
    add: {
      // The log holds paths URL-encoded (Delta protocol, "Add File"); the folder's name holds an escape already.
      path: path.split("/").map(encodeSegment).join("/"),
      partitionValues: options.partition === undefined ? {} : { [PARTITION_COLUMN]: options.partition },
      size: Number(row!.file_size_bytes),
      modificationTime: Date.now(),
      dataChange: options.dataChange ?? true,
      stats: statsText(
        rows,
        !options.tombstones,
        row!.column_statistics as DuckDBMapValue,
        boundedColumns(staging.table.snapshot),
      ),
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
  statistics: DuckDBMapValue,
  columns: readonly Column[],
): string {
  const found = new Map(statistics.entries.map(({ key, value }) => [String(key), value as DuckDBMapValue]));
  const min: string[] = [];
  const max: string[] = [];
  const nulls: string[] = [];
  for (const { name, type } of columns) {
    const entries = found.get(`"${name.replaceAll('"', '""')}"`) ?? found.get(name);
    const told = new Map(entries?.entries.map(({ key, value }) => [String(key), String(value)]));
    const count = told.get("null_count");
    if (count !== undefined) nulls.push(`${JSON.stringify(name)}:${count}`);
    const least = jsonOf(told.get("min"), type);
    const greatest = jsonOf(told.get("max"), type);
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
