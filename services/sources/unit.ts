import type { BigIntStats } from "node:fs";
import { lstat } from "node:fs/promises";
import { TributaryError } from "../base/errors.js";
import type { DeletionVectorDescriptor } from "../table/actions.js";
import type { Column } from "../table/types.js";
import type { Compression, CsvOptions, Format } from "./formats.js";

/** What a Delta table's log says of one of its files. */
export interface DeltaPart {
  /** Of the table, in its order. */
  readonly columns: readonly Column[];
  /** Values of the columns that the file itself does not have. */
  readonly partition: Readonly<Record<string, string | null>>;
  readonly vector?: DeletionVectorDescriptor | undefined;
}

/** One file as its reader is told of it: all that a process which reads it needs to know. Plain JSON. */
export interface ReadUnit {
  /** What messages call it. */
  readonly shown: string;
  /** The local file, named without links where others may change it. */
  readonly path: string;
  /** As `localIdentity` tells it, when others may change the file while it is read. */
  readonly identity: string | undefined;
  readonly format: Format;
  readonly compression: Compression;
  /** Columns that stand in the file's path, `tenant=acme/…`. */
  readonly partition: Readonly<Record<string, string | null>>;
  readonly csv: CsvOptions;
  readonly delta?: DeltaPart | undefined;
  /** The local file of the vector, where it has one of its own. */
  readonly vectorPath?: string | undefined;
  readonly maxRecordBytes: number;
  /** What the records of one batch have together, roughly. */
  readonly batchBytes: number;
}

/** What Hive writes for NULL. */
const NO_VALUE = "__HIVE_DEFAULT_PARTITION__";

/** The columns in a path: of its folders that are called `name=value`. A value may be percent-encoded. */
export function partitionOf(path: string): Record<string, string | null> {
  const columns = new Map<string, string | null>();
  for (const folder of path.split("/").slice(0, -1)) {
    const at = folder.indexOf("=");
    if (at > 0) columns.set(folder.slice(0, at), textOf(folder.slice(at + 1)));
  }
  return Object.fromEntries(columns);
}

function textOf(text: string): string | null {
  if (text === NO_VALUE) return null;
  try {
    const decoded = decodeURIComponent(text);
    // SQL would end there.
    return decoded.includes("\0") ? text : decoded;
  } catch {
    return text;
  }
}

/** Another one once a local file is another, or has other contents. Undefined when it is no plain file any more. */
export async function localIdentity(path: string): Promise<string | undefined> {
  const info = await lstat(path, { bigint: true }).catch(() => undefined);
  return info?.isFile() === true ? identityOf(info) : undefined;
}

export const identityOf = ({ size, mtimeNs, ino }: BigIntStats): string => `${size}-${mtimeNs}-${ino}`;

/** Errors: TRB-SOURCE-CHANGED. */
export async function requireUnchanged(unit: ReadUnit): Promise<void> {
  const { path, identity } = unit;
  if (identity !== undefined && (await localIdentity(path)) !== identity) throw changedUnit(unit);
}

export const changedUnit = ({ shown }: ReadUnit) =>
  new TributaryError("TRB-SOURCE-CHANGED", `${shown}: it has changed since it was listed`);
