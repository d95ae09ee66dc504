import type { DuckDBConnection } from "@duckdb/node-api";
import { literal } from "../base/duckdb.js";
import { assert } from "../base/errors.js";
import { removeOf } from "./actions.js";
import { allRows, stageFile } from "./data-file.js";
import type { DeltaTable } from "./delta-table.js";
import { withFiles, withFilesScan } from "./scan.js";
import { type StagedFile, Staging } from "./staging.js";
import type { TableFile } from "./types.js";
import { KEY_COLUMNS, ORDER_COLUMNS, SHARED_PARTITION, type UpsertWriter } from "./upsert.js";
import { stageVectors } from "./vectors.js";

export type Compaction =
  | { readonly kind: "compacted"; readonly files: number; readonly rows: number; readonly version: number }
  /** Another commit took a source away; nothing was changed. */
  | { readonly kind: "overtaken" };

/** Merges files of an append-only table into one, clustered by tenant. */
export function compactAppended(
  table: DeltaTable,
  connection: DuckDBConnection,
  sources: readonly TableFile[],
  orderBy: readonly string[],
): Promise<Compaction> {
  return Staging.run(table, async (staging): Promise<Compaction> => {
    const snapshot = table.snapshot;
    const file = await withFilesScan(table, snapshot, sources, {}, (rows) => {
      const sql = `SELECT * FROM (${rows}) ORDER BY ${orderBy.join(", ")}`;
      return stageFile(staging, connection, sql, { dataChange: false });
    });
    await staging.publish([file]);
    const now = Date.now();
    const result = await staging.commit({
      operation: "OPTIMIZE",
      actions: [...sources.map(({ add }) => ({ remove: removeOf(add, now, false) })), { add: file.add }],
      expect: new Map(),
      basedOn: snapshot.version,
      serializable: false,
    });
    if (result.kind === "conflict") return { kind: "overtaken" };
    return { kind: "compacted", files: sources.length, rows: file.rows, version: result.version };
  });
}

/**
 * Merges files of an upsert table into one, clustered by tenant, beside ingestion: rows that are masked while the new
 * file is written are masked in it at the commit.
 */
export function compactUpserted(
  writer: UpsertWriter,
  connection: DuckDBConnection,
  sources: readonly TableFile[],
): Promise<Compaction> {
  return Staging.run(writer.table, async (staging) => {
    const { table } = writer;
    const tombstones = sources[0]!.tombstones;
    const staged = tombstones
      ? await stageTombstones(staging, connection, sources)
      : await stageLive(staging, connection, sources);
    await staging.publish([staged]);
    // Reading the new file's keys takes a while; it is done before upserts are kept waiting.
    const relocation = tombstones ? undefined : await writer.locator.prepareMove(staged, connection);
    return writer.exclusively(async (): Promise<Compaction> => {
      const snapshot = table.snapshot;
      const live = new Map(snapshot.files.map((file) => [file.path, file]));
      const current = sources.map(({ path }) => live.get(path));
      if (!current.every((file) => file !== undefined)) return { kind: "overtaken" };
      const masked = tombstones
        ? allRows(staged)
        : await maskedMeanwhile(table, connection, sources, current, staged);
      const born = staged.rows === 0 ? [] : [{ add: staged.add, masked }];
      const now = Date.now();
      const commit = await staging.commit({
        operation: "OPTIMIZE",
        actions: [
          ...current.map(({ add }) => ({ remove: removeOf(add, now, false) })),
          ...(await stageVectors(staging, new Map(), born)),
        ],
        expect: new Map(),
        basedOn: snapshot.version,
        serializable: true,
      });
      if (commit.kind === "conflict") return { kind: "overtaken" };
      writer.locator.applied({
        from: snapshot.version,
        version: commit.version,
        ...(tombstones ? {} : { moved: { relocation, sources } }),
      });
      return { kind: "compacted", files: sources.length, rows: staged.rows, version: commit.version };
    });
  });
}

function stageLive(
  staging: Staging,
  connection: DuckDBConnection,
  sources: readonly TableFile[],
): Promise<StagedFile> {
  const { table } = staging;
  const { columns, partitionColumns } = table.snapshot;
  const stored = columns.map(({ name }) => name).filter((name) => !partitionColumns.includes(name));
  return withFilesScan(table, table.snapshot, sources, { columns: stored }, (rows) =>
    stageFile(staging, connection, `SELECT * FROM (${rows}) ORDER BY tenant_id, entity_id`, {
      partition: SHARED_PARTITION,
      dataChange: false,
    }),
  );
}

/** Of an entity's tombstones only the greatest counts. */
function stageTombstones(
  staging: Staging,
  connection: DuckDBConnection,
  sources: readonly TableFile[],
): Promise<StagedFile> {
  return withFiles(staging.table, sources, (paths) =>
    stageFile(
      staging,
      connection,
      `SELECT ${[...KEY_COLUMNS, ...ORDER_COLUMNS].join(", ")}
       FROM read_parquet([${paths.map(literal).join(", ")}], hive_partitioning=false)
       QUALIFY row_number() OVER (
         PARTITION BY tenant_id, entity_id
         ORDER BY _tributary_version DESC, _tributary_operation = 3 DESC,
           _tributary_hash < 0 DESC, _tributary_hash DESC,
           _tributary_occurred_at DESC NULLS LAST, _tributary_operation DESC) = 1
       ORDER BY tenant_id, entity_id`,
      { partition: SHARED_PARTITION, tombstones: true, dataChange: false },
    ),
  );
}

/** Rows of the new file whose originals were masked after the sources were read. */
async function maskedMeanwhile(
  table: DeltaTable,
  connection: DuckDBConnection,
  sources: readonly TableFile[],
  current: readonly TableFile[],
  staged: StagedFile,
): Promise<Uint32Array> {
  const rows: number[] = [];
  for (const [index, source] of sources.entries()) {
    const before = await table.mask(source);
    const after = await table.mask(current[index]!);
    if (after === undefined || after.count === (before?.count ?? 0)) continue;
    const fresh = [...after.toRows()].filter((row) => before?.has(row) !== true);
    const keys = [`${table.root}/${source.path}`, staged.key];
    const found = await table.store.withLocal(keys, ([before, merged]) =>
      connection.runAndReadAll(
        `SELECT n.file_row_number
         FROM read_parquet(${literal(before!)}, file_row_number=true, hive_partitioning=false) o
         JOIN read_parquet(${literal(merged!)}, file_row_number=true, hive_partitioning=false) n
           ON n.entity_id = o.entity_id AND n.tenant_id = o.tenant_id
         WHERE o.file_row_number IN (${fresh.join(", ")})`,
      ),
    );
    const numbers = (found.getColumns()[0] ?? []) as bigint[];
    assert(numbers.length === fresh.length, "a masked row is not in the new file");
    rows.push(...numbers.map(Number));
  }
  return Uint32Array.from(rows).sort();
}
