import { randomUUID } from "node:crypto";
import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type Duck, literal, rowsOf } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import type { ObjectStore } from "../storage/object-store.js";
import { type Action, checkpointKey, commitKey, decodeCommit } from "./actions.js";
import type { TableState } from "./state.js";

/** Reads and writes `_delta_log`: commits are the store's business, log checkpoints DuckDB's. */

const VECTOR =
  'STRUCT("storageType" VARCHAR, "pathOrInlineDv" VARCHAR, "offset" INTEGER, "sizeInBytes" INTEGER, cardinality BIGINT)';
/** Commits held in memory, and confirmed, together. */
const STRETCH = 256;
const MIN_OBJECT_BYTES = 1024 * 1024;
const STRINGS = "MAP(VARCHAR, VARCHAR)";
// Delta protocol, "Checkpoint Schema" (V1, classic).
const CHECKPOINT_COLUMNS: Readonly<Record<string, string>> = {
  protocol:
    'STRUCT("minReaderVersion" INTEGER, "minWriterVersion" INTEGER, "readerFeatures" VARCHAR[], "writerFeatures" VARCHAR[])',
  metaData: `STRUCT(id VARCHAR, "name" VARCHAR, description VARCHAR, format STRUCT(provider VARCHAR, options ${STRINGS}), "schemaString" VARCHAR, "partitionColumns" VARCHAR[], "configuration" ${STRINGS}, "createdTime" BIGINT)`,
  add: `STRUCT(path VARCHAR, "partitionValues" ${STRINGS}, size BIGINT, "modificationTime" BIGINT, "dataChange" BOOLEAN, stats VARCHAR, tags ${STRINGS}, "deletionVector" ${VECTOR})`,
  remove: `STRUCT(path VARCHAR, "deletionTimestamp" BIGINT, "dataChange" BOOLEAN, "extendedFileMetadata" BOOLEAN, "partitionValues" ${STRINGS}, size BIGINT, "deletionVector" ${VECTOR})`,
  domainMetadata: 'STRUCT("domain" VARCHAR, "configuration" VARCHAR, removed BOOLEAN)',
};

/** The commit of one version, undefined when it is not there. */
export async function readCommit(
  store: ObjectStore,
  root: string,
  version: number,
): Promise<Action[] | undefined> {
  const bytes = await store.get(commitKey(root, version));
  if (bytes === undefined) return undefined;
  try {
    return decodeCommit(bytes);
  } catch (cause) {
    throw new TributaryError("TRB-TABLE-CORRUPT", `commit ${version} is not readable`, { cause });
  }
}

/**
 * Brings `state` from its version to the newest one; tells `seen` of each commit on the way. A commit counts once it is
 * sure to stay: its writer may have died, or failed, between giving it its name and making the name durable, and
 * progress that was read from it must not be lost again.
 */
export async function advance(
  store: ObjectStore,
  root: string,
  state: TableState,
  seen?: (version: number, actions: readonly Action[]) => void,
): Promise<void> {
  let failure: unknown;
  for (let commits: Action[][] = []; ; commits = []) {
    let actions: Action[] | undefined;
    do {
      try {
        actions = await readCommit(store, root, state.version + commits.length + 1);
      } catch (error) {
        failure = error;
        actions = undefined;
      }
      if (actions !== undefined) commits.push(actions);
    } while (actions !== undefined && commits.length < STRETCH);
    if (commits.length > 0) await store.confirm([commitKey(root, state.version + commits.length)]);
    for (const commit of commits) {
      state.apply(state.version + 1, commit);
      seen?.(state.version, commit);
    }
    if (failure !== undefined) throw failure;
    if (actions === undefined) return;
  }
}

/** Starts a fresh state at the newest log checkpoint, if there is one. */
export async function loadCheckpoint(
  store: ObjectStore,
  root: string,
  duck: Duck,
  state: TableState,
): Promise<void> {
  const pointer = await store.get(`${root}/_delta_log/_last_checkpoint`);
  if (pointer === undefined) return;
  const { version } = JSON.parse(pointer.toString("utf8")) as { version: number };
  const path = await store.localPath(checkpointKey(root, version));
  const names = Object.keys(CHECKPOINT_COLUMNS);
  const rows = await duck.with((connection) =>
    rowsOf(
      connection,
      `SELECT ${names.map((name) => `CASE WHEN "${name}" IS NOT NULL THEN to_json("${name}")::VARCHAR END`).join(", ")}
       FROM read_parquet(${literal(path)})`,
    ),
  );
  const actions = rows.map((row) => {
    const at = row.findIndex((value) => value !== null);
    return { [names[at]!]: withoutNulls(JSON.parse(row[at] as string)) } as Action;
  });
  state.apply(version, actions);
}

/** Writes the state as a classic log checkpoint. */
export async function writeCheckpoint(
  store: ObjectStore,
  root: string,
  duck: Duck,
  state: TableState,
): Promise<void> {
  const { version } = state;
  const actions: Action[] = [
    { protocol: state.protocol! },
    { metaData: state.metaData! },
    ...[...state.domains].map(([domain, configuration]) => ({
      domainMetadata: { domain, configuration, removed: false },
    })),
    ...[...state.removed.values()].map((remove) => ({ remove: { ...remove, dataChange: false } })),
    ...[...state.files.values()].map(({ add }) => ({ add: { ...add, dataChange: false } })),
  ];
  const base = join(store.staging, randomUUID());
  const json = `${base}.ndjson`;
  const parquet = `${base}.parquet`;
  try {
    const lines = actions.map((action) => Buffer.from(`${JSON.stringify(action)}\n`));
    await writeFile(json, lines);
    // DuckDB takes twice this at once, whatever the lines are.
    const longest = lines.reduce((most, { length }) => Math.max(most, length), MIN_OBJECT_BYTES);
    const columns = Object.entries(CHECKPOINT_COLUMNS).map(([name, type]) => `${name}: ${literal(type)}`);
    await duck.with((connection) =>
      connection.run(
        `COPY (SELECT * FROM read_json(${literal(json)}, format='newline_delimited', maximum_object_size=${longest},
           columns={${columns.join(", ")}})) TO ${literal(parquet)} (FORMAT parquet, COMPRESSION zstd)`,
      ),
    );
    await store.adopt([{ localPath: parquet, key: checkpointKey(root, version) }]);
    await store.put(
      `${root}/_delta_log/_last_checkpoint`,
      Buffer.from(JSON.stringify({ version, size: actions.length, numOfAddFiles: state.files.size })),
    );
  } finally {
    await rm(json, { force: true });
    await rm(parquet, { force: true });
  }
}

function withoutNulls(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutNulls);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value)
      .filter(([, child]) => child !== null)
      .map(([key, child]) => [key, withoutNulls(child)]),
  );
}
