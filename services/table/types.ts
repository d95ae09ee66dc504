import type { AddAction } from "./actions.js";
import type { Slots } from "./slot-ranges.js";

/** A column of a table; `type` is DuckDB's spelling, e.g. "BIGINT", "TIMESTAMP WITH TIME ZONE", "VARCHAR[]". */
export interface Column {
  readonly name: string;
  readonly type: string;
  readonly description?: string;
}

/** One data file of a snapshot. */
export interface TableFile {
  /** Relative to the table's root, decoded. */
  readonly path: string;
  readonly partition: string | undefined;
  readonly bytes: number;
  /** Physical rows, masked ones included. */
  readonly rows: number;
  /** Rows masked by the file's deletion vector. */
  readonly maskedRows: number;
  /** Holds tombstones only; fully masked, so that no reader sees a row. */
  readonly tombstones: boolean;
  /** Of the keys it can hold, masked rows included. */
  readonly slots: Slots;
  /** Bounds that are text (times are ISO 8601), by column. */
  readonly min: Readonly<Record<string, string>>;
  readonly max: Readonly<Record<string, string>>;
  /** As it stands in the log: what a remove of this file must repeat. */
  readonly add: AddAction;
}

/** A table at one version: immutable, safe to keep while commits go on. */
export interface TableSnapshot {
  readonly version: number;
  readonly columns: readonly Column[];
  readonly partitionColumns: readonly string[];
  /** Delta table properties and our own (`tributary.*`). */
  readonly properties: ReadonlyMap<string, string>;
  readonly files: readonly TableFile[];
  /** Domain metadata: name → configuration string. */
  readonly domains: ReadonlyMap<string, string>;
  readonly description: string | undefined;
  /**
   * Version at which other rows were last put in the place of the table's or a tenant's, as far as this object of it has
   * seen; -1 where it has not. What was put in before without moving positions may be gone.
   */
  readonly replacedAt: number;
}

const byPath = new WeakMap<TableSnapshot, ReadonlyMap<string, TableFile>>();

/** The files of a snapshot by path. */
export function filesOf(snapshot: TableSnapshot): ReadonlyMap<string, TableFile> {
  let files = byPath.get(snapshot);
  if (files === undefined) {
    files = new Map(snapshot.files.map((file) => [file.path, file]));
    byPath.set(snapshot, files);
  }
  return files;
}
