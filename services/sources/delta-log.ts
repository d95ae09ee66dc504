import type { Duck } from "../base/duckdb.js";
import { hasCode, TributaryError } from "../base/errors.js";
import type { DeletionVectorDescriptor } from "../table/actions.js";
import { locateVector } from "../table/deletion-vector.js";
import { listLog, readCommit } from "../table/delta-log.js";
import { loadCheckpoint } from "../table/log-checkpoint.js";
import { TableState } from "../table/state.js";
import type { Column } from "../table/types.js";
import { damaged } from "./formats.js";
import { ListedFiles } from "./listed-files.js";

/** A file of a Delta table that holds rows. */
export interface DeltaFile {
  /** Below the table's folder. */
  readonly path: string;
  readonly bytes: number;
  readonly partition: Readonly<Record<string, string | null>>;
  readonly vector: DeletionVectorDescriptor | undefined;
  /** Below the table's folder, where the vector has a file. */
  readonly vectorPath: string | undefined;
}

/** A Delta table at its newest version. */
export interface DeltaListing {
  readonly version: number;
  readonly columns: readonly Column[];
  readonly files: readonly DeltaFile[];
}

const ROOT = "table";
const MAPPING = "delta.columnMapping.mode";

/**
 * Reads the log of a table that others write, from local copies of its files by their names in `_delta_log`. Nothing of
 * what the table's columns are stored as is guessed: features that are not known are refused.
 * Errors: TRB-SOURCE-FORMAT, TRB-SOURCE-DAMAGED.
 */
export async function readDeltaLog(
  shown: string,
  log: ReadonlyMap<string, string>,
  duck: Duck,
): Promise<DeltaListing> {
  const keys = new Map([...log].map(([name, path]) => [`${ROOT}/_delta_log/${name}`, path]));
  const place = { store: new ListedFiles(keys), root: ROOT, duck };
  try {
    const { commits, checkpoints } = await listLog(place);
    const state = new TableState();
    if (checkpoints[0] !== undefined) await loadCheckpoint(place, checkpoints[0], state);
    for (;;) {
      const commit = await readCommit(place.store, ROOT, state.version + 1);
      if (commit === undefined) break;
      state.apply(state.version + 1, commit);
    }
    if (state.version < (commits.at(-1) ?? 0))
      throw damaged(shown, `commit ${state.version + 1} of its log is missing`);
    return listingOf(shown, state);
  } catch (error) {
    if (hasCode(error, "TRB-TABLE-UNSUPPORTED")) throw unknownFeature(shown, error.message);
    if (hasCode(error, "TRB-TABLE-CORRUPT")) throw damaged(shown, error.message, error);
    throw error;
  }
}

function listingOf(shown: string, state: TableState): DeltaListing {
  const snapshot = state.snapshot();
  const { minReaderVersion } = state.protocol!;
  if (minReaderVersion > 3) throw unknownFeature(shown, `reader version ${minReaderVersion} is not known`);
  const mapping = snapshot.properties.get(MAPPING) ?? "none";
  if (mapping !== "none") throw unknownFeature(shown, "column mapping is not known");
  const partition = new Set(snapshot.partitionColumns);
  const files = snapshot.files
    .filter((file) => file.maskedRows === 0 || file.maskedRows !== file.rows)
    .map(({ path, bytes, add }) => {
      for (const column of partition) {
        if (!Object.hasOwn(add.partitionValues, column))
          throw damaged(shown, "a file's partition values are missing");
      }
      const at = add.deletionVector === undefined ? undefined : locateVector(add.deletionVector);
      return {
        path,
        bytes,
        partition: add.partitionValues,
        vector: add.deletionVector,
        vectorPath: at !== undefined && "path" in at ? at.path : undefined,
      };
    });
  const columns = snapshot.columns.map(({ name, type }) => ({ name, type }));
  return { version: snapshot.version, columns, files };
}

const unknownFeature = (shown: string, reason: string) =>
  new TributaryError("TRB-SOURCE-FORMAT", `${shown}: ${reason}`);

/** Versions by the names of files in a log. Undefined for others. */
const versionOf = (name: string): number | undefined => {
  const digits = /^(\d{20})\.(json|checkpoint(\.\d{10}\.\d{10})?\.parquet)$/.exec(name)?.[1];
  return digits === undefined ? undefined : Number(digits);
};

/** Of the names in a log, those that are needed to read it: from its newest whole checkpoint on. */
export function neededOf(names: readonly string[]): string[] {
  const parts = new Map<string, number>();
  let newest = 0;
  for (const name of names) {
    const [, version, of] = /^(\d{20})\.checkpoint(?:\.\d{10}\.(\d{10}))?\.parquet$/.exec(name) ?? [];
    if (version === undefined) continue;
    const id = `${version}.${of ?? ""}`;
    parts.set(id, (parts.get(id) ?? 0) + 1);
    if (parts.get(id) === Number(of ?? 1)) newest = Math.max(newest, Number(version));
  }
  return names.filter((name) => (versionOf(name) ?? -1) >= newest);
}
