import type { DuckDBConnection } from "@duckdb/node-api";
import { identifier, literal } from "../base/duckdb.js";
import { assert } from "../base/errors.js";
import { removeOf } from "./actions.js";
import type { Relocation } from "./applied.js";
import { withPieces } from "./compact-split.js";
import { allRows, stageFile } from "./data-file.js";
import type { DeltaTable } from "./delta-table.js";
import { layoutFor, layoutOf, piecesOf } from "./layout.js";
import { MaskedMeanwhile } from "./masked-meanwhile.js";
import { withFiles, withFilesScan } from "./scan.js";
import type { Slots } from "./slot-ranges.js";
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
    requireAll(sources, [file]);
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

/** So often a compaction that upserts of other writers came before begins its commit anew. */
const MOST_OVERTAKEN = 20;

/**
 * Merges files of an upsert table, clustered by tenant, beside upserts of any process: rows that are masked while the
 * new file is written are masked in it at the commit. Where the sources cross what the table's present writers claim,
 * there is a new file for each of these.
 */
export function compactUpserted(
  writer: UpsertWriter,
  connection: DuckDBConnection,
  sources: readonly TableFile[],
): Promise<Compaction> {
  return Staging.run(writer.table, async (staging) => {
    const { table } = writer;
    const tombstones = sources[0]!.tombstones;
    const layout = layoutFor(layoutOf(table), sources[0]!.partition, table.snapshot.files);
    const pieces = piecesOf(layout, sources);
    const made = await (tombstones ? stageTombstones : stageLive)(
      staging,
      writer,
      connection,
      sources,
      pieces,
    );
    if (!tombstones) requireAll(sources, made);
    const staged = made.filter(({ rows }) => rows > 0);
    await staging.publish(staged);
    // Reading the new files' keys takes a while; it is done before upserts are kept waiting.
    const relocations: (Relocation | undefined)[] = [];
    if (!tombstones) {
      for (const file of staged) relocations.push(await writer.locator.prepareMove(file, connection));
    }
    const meanwhile = await MaskedMeanwhile.since(table, connection, sources, tombstones ? [] : staged);
    /** Undefined when upserts of another process came between. */
    const commit = async (): Promise<Compaction | undefined> => {
      const basedOn = table.snapshot.version;
      const current = await meanwhile.look();
      if (current === undefined) return { kind: "overtaken" };
      const born = tombstones
        ? staged.map((file) => ({ add: file.add, masked: allRows(file) }))
        : meanwhile.born;
      const now = Date.now();
      const result = await staging.commit({
        operation: "OPTIMIZE",
        actions: [
          ...current.map(({ add }) => ({ remove: removeOf(add, now, false) })),
          ...(await stageVectors(staging, new Map(), born)),
        ],
        expect: new Map(),
        basedOn,
        // It adds nothing that was not there: all that can come between is a change of its sources.
        serializable: false,
      });
      if (result.kind === "conflict") return result.reason === "file" ? undefined : { kind: "overtaken" };
      writer.locator.applied({ version: result.version, moved: { relocations, sources } });
      const rows = staged.reduce((sum, file) => sum + file.rows, 0);
      return { kind: "compacted", files: sources.length, rows, version: result.version };
    };
    for (let overtaken = 0; overtaken <= MOST_OVERTAKEN; overtaken++) {
      // Most of what came meanwhile is taken in beside upserts of this process, which then wait for little.
      if ((await meanwhile.look()) === undefined) break;
      const result = await writer.exclusively(commit);
      if (result !== undefined) return result;
    }
    return { kind: "overtaken" };
  });
}

/** Whatever the engine and we make of it, a row that is not in the new files must not go with the old ones. */
function requireAll(sources: readonly TableFile[], made: readonly StagedFile[]): void {
  const live = sources.reduce((sum, { rows, maskedRows }) => sum + rows - maskedRows, 0);
  const rows = made.reduce((sum, file) => sum + file.rows, 0);
  assert(rows === live, `a compaction made ${rows} rows of ${live}`);
}

/** Writes a file for each piece; `write` makes one of SQL for its rows. */
function staged(
  { table }: Staging,
  { keys }: UpsertWriter,
  connection: DuckDBConnection,
  sources: readonly TableFile[],
  pieces: readonly Slots[],
  columns: readonly string[],
  write: (rows: string, slots: Slots) => Promise<StagedFile>,
): Promise<StagedFile[]> {
  return withPieces(table, connection, keys, sources, pieces, async (sql) => {
    const files: StagedFile[] = [];
    for (const [piece, slots] of pieces.entries()) files.push(await write(sql(piece, columns), slots));
    return files;
  });
}

function stageLive(
  staging: Staging,
  writer: UpsertWriter,
  connection: DuckDBConnection,
  sources: readonly TableFile[],
  pieces: readonly Slots[],
): Promise<StagedFile[]> {
  const { table } = staging;
  const { columns, partitionColumns } = table.snapshot;
  const stored = columns.map(({ name }) => name).filter((name) => !partitionColumns.includes(name));
  const write = (rows: string, slots: Slots) =>
    stageFile(staging, connection, `SELECT * FROM (${rows}) ORDER BY tenant_id, entity_id`, {
      partition: SHARED_PARTITION,
      dataChange: false,
      slots,
    });
  if (pieces.length > 1) {
    return staged(staging, writer, connection, sources, pieces, stored.map(identifier), write);
  }
  return withFilesScan(table, table.snapshot, sources, { columns: stored }, async (rows) => [
    await write(rows, pieces[0]!),
  ]);
}

/** Of an entity's tombstones only the greatest counts. */
function stageTombstones(
  staging: Staging,
  writer: UpsertWriter,
  connection: DuckDBConnection,
  sources: readonly TableFile[],
  pieces: readonly Slots[],
): Promise<StagedFile[]> {
  const columns = [...KEY_COLUMNS, ...ORDER_COLUMNS];
  const write = (rows: string, slots: Slots) =>
    stageFile(
      staging,
      connection,
      `SELECT * FROM (${rows})
       QUALIFY row_number() OVER (
         PARTITION BY tenant_id, entity_id
         ORDER BY _tributary_version DESC, _tributary_operation = 3 DESC,
           _tributary_hash < 0 DESC, _tributary_hash DESC,
           _tributary_occurred_at DESC NULLS LAST, _tributary_operation DESC) = 1
       ORDER BY tenant_id, entity_id`,
      { partition: SHARED_PARTITION, tombstones: true, dataChange: false, slots },
    );
  if (pieces.length > 1) return staged(staging, writer, connection, sources, pieces, columns, write);
  return withFiles(staging.table, sources, async (paths) => [
    await write(
      `SELECT ${columns.join(", ")} FROM read_parquet([${paths.map(literal).join(", ")}], hive_partitioning=false)`,
      pieces[0]!,
    ),
  ]);
}
