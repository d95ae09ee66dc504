import type { Code } from "../base/codes.js";
import { TributaryError } from "../base/errors.js";

/**
 * `ndjson`: one JSON object a line. `csv`: RFC 4180. `events`: ChangeEvents, each after its length as a varint.
 * `debezium`: NDJSON of rows that Debezium read for a snapshot. `delta`: a folder with a `_delta_log`.
 */
export const FORMATS = ["parquet", "ndjson", "csv", "events", "debezium", "delta"] as const;
export type Format = (typeof FORMATS)[number];

export type Compression = "none" | "gzip" | "zstd";

/** How a CSV is written. */
export interface CsvOptions {
  /** One ASCII character. */
  readonly delimiter: string;
  /** Names of the columns where the files have no header. */
  readonly columns?: readonly string[] | undefined;
  /** What an unquoted field must be to be NULL. */
  readonly nullText: string;
}
export const CSV_DEFAULTS: CsvOptions = { delimiter: ",", nullText: "" };

/** What is told of a source beside its path. */
export interface Choice {
  /** By the files' names when not given. */
  readonly format?: Format | undefined;
  readonly csv?: CsvOptions | undefined;
}

const EXTENSIONS: Readonly<Record<string, Format>> = {
  parquet: "parquet",
  ndjson: "ndjson",
  jsonl: "ndjson",
  csv: "csv",
  pb: "events",
};
const COMPRESSIONS: Readonly<Record<string, Compression>> = { gz: "gzip", zst: "zstd" };

/** What a file's name says of it: `orders.csv.gz`. Names of parts such as `x.snappy.parquet` end in the format's. */
export function told(path: string): {
  readonly format: Format | undefined;
  readonly compression: Compression;
} {
  const parts = path
    .slice(path.lastIndexOf("/") + 1)
    .toLowerCase()
    .split(".")
    .slice(1);
  const compression = COMPRESSIONS[parts.at(-1) ?? ""];
  if (compression !== undefined) parts.pop();
  return { format: EXTENSIONS[parts.at(-1) ?? ""], compression: compression ?? "none" };
}

/** One column of what a reader gives; `type` is DuckDB's spelling. */
export interface SourceColumn {
  readonly name: string;
  readonly type: string;
}

/** A record that is no row. */
export interface Reject {
  /** Its number in the file, from 0, among all records: as ORDINAL would be. */
  readonly row: number;
  /** Where it begins in the file, unpacked; undefined where formats have no such place. */
  readonly offset: number | undefined;
  readonly code: Code;
  /** Words of ours. */
  readonly message: string;
  /** The record, or the beginning of a long one: REJECT_BYTES at most. */
  readonly bytes: Uint8Array;
}
export const REJECT_BYTES = 64 * 1024;

/** Name of the column that numbers a file's records, from 0. */
export const ORDINAL = "tributary_ordinal";

/** A file that cannot be read to its end. */
export const damaged = (shown: string, reason: string, cause?: unknown) =>
  new TributaryError("TRB-SOURCE-DAMAGED", `${shown}: ${reason}`, { cause });
