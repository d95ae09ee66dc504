import { randomUUID } from "node:crypto";
import { rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type Duck, literal, rowsOf } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import type { ObjectStore } from "../storage/object-store.js";
import { type Action, checkpointKey } from "./actions.js";
import type { TableState } from "./state.js";

/** Log checkpoints (Delta protocol, "Checkpoints", V1), read and written by DuckDB. */

/** Where a table is and what reads it. */
export interface LogPlace {
  readonly store: ObjectStore;
  readonly root: string;
  readonly duck: Duck;
}

const VECTOR =
  'STRUCT("storageType" VARCHAR, "pathOrInlineDv" VARCHAR, "offset" INTEGER, "sizeInBytes" INTEGER, cardinality BIGINT)';
const MIN_OBJECT_BYTES = 1024 * 1024;
const STRINGS = "MAP(VARCHAR, VARCHAR)";
const COLUMNS: Readonly<Record<string, string>> = {
  txn: 'STRUCT("appId" VARCHAR, "version" BIGINT, "lastUpdated" BIGINT)',
  protocol:
    'STRUCT("minReaderVersion" INTEGER, "minWriterVersion" INTEGER, "readerFeatures" VARCHAR[], "writerFeatures" VARCHAR[])',
  metaData: `STRUCT(id VARCHAR, "name" VARCHAR, description VARCHAR, format STRUCT(provider VARCHAR, options ${STRINGS}), "schemaString" VARCHAR, "partitionColumns" VARCHAR[], "configuration" ${STRINGS}, "createdTime" BIGINT)`,
  add: `STRUCT(path VARCHAR, "partitionValues" ${STRINGS}, size BIGINT, "modificationTime" BIGINT, "dataChange" BOOLEAN, stats VARCHAR, tags ${STRINGS}, "deletionVector" ${VECTOR})`,
  remove: `STRUCT(path VARCHAR, "deletionTimestamp" BIGINT, "dataChange" BOOLEAN, "extendedFileMetadata" BOOLEAN, "partitionValues" ${STRINGS}, size BIGINT, "deletionVector" ${VECTOR})`,
  domainMetadata: 'STRUCT("domain" VARCHAR, "configuration" VARCHAR, removed BOOLEAN)',
};

export const hintKey = (root: string): string => `${root}/_delta_log/_last_checkpoint`;

/** One log checkpoint; in several parts as other writers may make it. */
export interface LogCheckpoint {
  readonly version: number;
  readonly keys: readonly string[];
}

/** What `_last_checkpoint` points to. It is a hint: undefined when it is missing or makes no sense. */
export async function hintedCheckpoint({ store, root }: LogPlace): Promise<LogCheckpoint | undefined> {
  const hint = await store.get(hintKey(root));
  if (hint === undefined) return undefined;
  try {
    const { version, parts } = JSON.parse(hint.toString("utf8")) as { version?: unknown; parts?: unknown };
    if (!Number.isSafeInteger(version) || (version as number) < 0 || parts !== undefined) return undefined;
    return { version: version as number, keys: [checkpointKey(root, version as number)] };
  } catch {
    return undefined;
  }
}

/** Brings a fresh state to a log checkpoint. Errors: TRB-TABLE-CORRUPT when it is missing or damaged. */
export async function loadCheckpoint(
  { store, duck }: LogPlace,
  { version, keys }: LogCheckpoint,
  state: TableState,
): Promise<void> {
  // A table that was made anew, or repaired, can have another log checkpoint of the same name.
  const actions = await store.withLocal(keys, (paths) => actionsIn(duck, version, paths), { fresh: true });
  state.load(version, actions);
}

async function actionsIn(duck: Duck, version: number, paths: readonly string[]): Promise<Action[]> {
  const from = `read_parquet([${paths.map(literal).join(", ")}], union_by_name=true)`;
  try {
    return await duck.with(async (connection) => {
      const names = (await connection.run(`SELECT * FROM ${from} LIMIT 0`))
        .columnNames()
        .filter((name) => Object.hasOwn(COLUMNS, name));
      const texts = names.map(
        (name) => `CASE WHEN "${name}" IS NOT NULL THEN to_json("${name}")::VARCHAR END`,
      );
      const rows = await rowsOf(connection, `SELECT ${texts.join(", ")} FROM ${from}`);
      return rows.flatMap((row) => {
        const at = row.findIndex((value) => value !== null);
        if (at < 0) return [];
        return [{ [names[at]!]: withoutNulls(JSON.parse(row[at] as string)) } as Action];
      });
    });
  } catch (cause) {
    const details = { checkpoint: version };
    const reason = `the log checkpoint of version ${version} is missing or damaged`;
    throw new TributaryError("TRB-TABLE-CORRUPT", reason, { cause, details });
  }
}

/** A state as it stands now, to be written while commits go on. */
export interface FrozenState {
  readonly version: number;
  readonly files: number;
  readonly actions: readonly Action[];
}

export const frozen = (state: TableState): FrozenState => ({
  version: state.version,
  files: state.files.size,
  actions: [
    { protocol: state.protocol! },
    { metaData: state.metaData! },
    ...[...state.txns.values()].map((txn) => ({ txn })),
    ...[...state.domains].map(([domain, configuration]) => ({
      domainMetadata: { domain, configuration, removed: false },
    })),
    ...[...state.removed.values()].map((remove) => ({ remove: { ...remove, dataChange: false } })),
    ...[...state.files.values()].map(({ add }) => ({ add: { ...add, dataChange: false } })),
  ],
});

/** Writes a log checkpoint and the hint that names it. */
export async function writeCheckpoint(
  { store, root, duck }: LogPlace,
  { version, files, actions }: FrozenState,
): Promise<void> {
  const local = join(store.staging, randomUUID());
  const json = `${local}.ndjson`;
  const parquet = `${local}.parquet`;
  try {
    const lines = actions.map((action) => Buffer.from(`${JSON.stringify(action)}\n`));
    await writeFile(json, lines);
    // DuckDB takes twice this at once, whatever the lines are.
    const longest = lines.reduce((most, { length }) => Math.max(most, length), MIN_OBJECT_BYTES);
    const columns = Object.entries(COLUMNS).map(([name, type]) => `${name}: ${literal(type)}`);
    await duck.with((connection) =>
      connection.run(
        `COPY (SELECT * FROM read_json(${literal(json)}, format='newline_delimited', maximum_object_size=${longest},
           columns={${columns.join(", ")}})) TO ${literal(parquet)} (FORMAT parquet, COMPRESSION zstd)`,
      ),
    );
    await store.adopt([{ localPath: parquet, key: checkpointKey(root, version) }]);
    const hint = { version, size: actions.length, numOfAddFiles: files };
    await store.put(hintKey(root), Buffer.from(JSON.stringify(hint)));
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
