import { INTEGER, LIST, listValue } from "@duckdb/node-api";
import { AssertionFailure, assert } from "../base/errors.js";
import { Turns } from "../base/turns.js";
import { allRows, stageFile } from "./data-file.js";
import type { CommitResult, DeltaTable } from "./delta-table.js";
import type { EntityKeys } from "./entity-keys.js";
import { EntityLocator } from "./locator.js";
import { Mask } from "./mask.js";
import { compareOrder, FILE_SHIFT, FLAGS, ROW, TOMBSTONE_BIT, WORDS } from "./order.js";
import { advance, newestReceived, type Progress } from "./progress.js";
import type { RowSource } from "./row-source.js";
import { type StagedFile, Staging } from "./staging.js";
import type { TableFile } from "./types.js";
import { stageVectors } from "./vectors.js";

export const SHARED_PARTITION = "~shared";
/** Where an entity's row stands in the order of writes; kept with the row so that a rebuilt index settles ties alike. */
export const ORDER_COLUMNS = [
  "_tributary_version",
  "_tributary_operation",
  "_tributary_hash",
  "_tributary_occurred_at",
] as const;
export const KEY_COLUMNS = ["tenant_id", "entity_id"] as const;

export interface Upsert {
  readonly source: RowSource;
  readonly from: Progress;
  /** Tracks that the batch moves; none when it is not the last of its range. */
  readonly to: Progress;
  /** When the newest event of the batch was received, in ms since the epoch; undefined when it has none. */
  readonly newest: number | undefined;
  /** Awaited before the commit; false gives the batch up (what it builds on did not come to be). */
  readonly ready: Promise<boolean>;
}

export interface UpsertOutcome {
  readonly live: number;
  readonly tombstones: number;
  /** Records that lost against what the table had. */
  readonly lost: number;
  readonly touchedFiles: number;
}

export type UpsertResult =
  | (UpsertOutcome & { readonly kind: "committed"; readonly version: number })
  | { readonly kind: "given-up" }
  | Extract<CommitResult, { kind: "conflict" }>;

/**
 * Last-write-wins upserts into one table, at the cost of min(changed keys, files touched): look up, write winners as
 * a new file, mask what they replace, commit both with the positions. One writer object per table and process.
 */
export class UpsertWriter {
  private readonly turns = new Turns();

  constructor(
    readonly table: DeltaTable,
    readonly locator: EntityLocator,
    /** Makes the key words of the records that it is given. */
    readonly keys: EntityKeys,
  ) {}

  static for(table: DeltaTable, indexBytes: number, keys: EntityKeys): UpsertWriter {
    return new UpsertWriter(table, new EntityLocator(table, indexBytes, keys), keys);
  }

  /**
   * Batches are applied one after the other. On a conflict nothing has changed; refresh, and come with the rest.
   * Errors of the source, the model's among them, come through.
   */
  upsert(upsert: Upsert): Promise<UpsertResult> {
    return this.exclusively(async () => {
      try {
        return await Staging.run(this.table, (staging) => this.apply(upsert, staging));
      } catch (error) {
        // The index may be what is wrong.
        if (error instanceof AssertionFailure) this.locator.forget();
        throw error;
      }
    });
  }

  /** Keeps upserts out while `work` changes which file holds which row (compaction's commit). */
  exclusively<T>(work: () => Promise<T>): Promise<T> {
    return this.turns.run(work);
  }

  private async apply({ source, from, to, newest, ready }: Upsert, staging: Staging): Promise<UpsertResult> {
    const { records } = source;
    const basedOn = this.table.snapshot.version;
    const { standing, survivors, staged } = await this.stageFrom(source, staging);
    const masked = await this.maskReplaced(standing, survivors);
    const vectors = await stageVectors(
      staging,
      masked,
      // Born fully masked: every reader skips the tombstones, the index rebuild reads them.
      staged.tombstones === undefined
        ? []
        : [{ add: staged.tombstones.add, masked: allRows(staged.tombstones) }],
    );
    await staging.publish([staged.rows, staged.tombstones].filter((file) => file !== undefined));
    if (!(await ready)) return { kind: "given-up" };
    const progress = advance(from, to);
    const result = await staging.commit({
      operation: "MERGE",
      actions: [
        ...(staged.rows === undefined ? [] : [{ add: staged.rows.add }]),
        ...vectors,
        ...progress.actions,
        ...newestReceived(this.table.snapshot, newest),
      ],
      expect: progress.expect,
      basedOn,
      serializable: true,
    });
    if (result.kind === "conflict") return result;
    this.rememberMasks(masked);
    const placed = [
      { file: staged.rows, ords: staged.liveOrds, tombstones: false },
      { file: staged.tombstones, ords: staged.tombstoneOrds, tombstones: true },
    ];
    this.locator.applied({
      from: basedOn,
      version: result.version,
      gone: [...masked].flatMap(([file, mask]) => (mask.count === file.rows ? [file.path] : [])),
      placed: placed.flatMap(({ file, ords, tombstones }) =>
        file === undefined ? [] : [{ records, ords, path: file.add.path, tombstones }],
      ),
    });
    return {
      kind: "committed",
      version: result.version,
      live: staged.liveOrds.length,
      tombstones: staged.tombstoneOrds.length,
      lost: records.length / WORDS - survivors.length,
      touchedFiles: masked.size,
    };
  }

  /** All that the source is needed for: who survives, and files of their rows and tombstones that nothing names yet. */
  private async stageFrom(source: RowSource, staging: Staging) {
    const { records, connection } = source;
    try {
      const keys = records.length === 0 ? "" : await source.keys();
      const standing = await this.locator.locate(records, connection, keys);
      const survivors: number[] = [];
      for (let at = 0; at < records.length; at += WORDS) {
        const before = standing.offsets[at / WORDS]!;
        if (before < 0 || compareOrder(records, at, standing.records, before) > 0) survivors.push(at / WORDS);
      }
      const staged = survivors.length === 0 ? none : await this.stage(staging, source, keys, survivors);
      return { standing, survivors, staged };
    } finally {
      await source.release();
    }
  }

  private async stage(
    staging: Staging,
    source: RowSource,
    keys: string,
    survivors: readonly number[],
  ): Promise<Staged> {
    const { connection } = source;
    const { relation, ords: liveOrds, failure } = await source.rows(survivors);
    const columns = this.table.snapshot.columns.filter(
      ({ name }) => !this.table.snapshot.partitionColumns.includes(name),
    );
    const rows =
      liveOrds.length === 0
        ? undefined
        : await stageFile(
            staging,
            connection,
            `SELECT ${columns.map(({ name }) => `"${name}"`).join(", ")} FROM ${relation}`,
            { partition: SHARED_PARTITION },
          ).catch((error: unknown) => {
            throw failure?.(error) ?? error;
          });
    const live = new Set(liveOrds);
    const tombstoneOrds = survivors.filter((ord) => !live.has(ord));
    if (tombstoneOrds.length === 0) return { rows, liveOrds, tombstones: undefined, tombstoneOrds };
    await connection.run(
      "CREATE OR REPLACE TEMP TABLE upsert_tombstones AS SELECT unnest($1) AS ord",
      [listValue(tombstoneOrds)],
      [LIST(INTEGER)],
    );
    const tombstones = await stageFile(
      staging,
      connection,
      `SELECT ${[...KEY_COLUMNS, ...ORDER_COLUMNS].join(", ")}
       FROM ${keys} JOIN upsert_tombstones USING (ord) ORDER BY tenant_id, entity_id`,
      { partition: SHARED_PARTITION, tombstones: true },
    );
    return { rows, liveOrds, tombstones, tombstoneOrds };
  }

  /** New masks of the files whose rows the survivors replace. */
  private async maskReplaced(
    standing: { records: Uint32Array; offsets: Int32Array },
    survivors: readonly number[],
  ): Promise<Map<TableFile, Mask>> {
    const files = new Map(this.table.snapshot.files.map((file) => [file.path, file]));
    const masked = new Map<TableFile, Mask>();
    for (const ord of survivors) {
      const at = standing.offsets[ord]!;
      if (at < 0) continue;
      const flags = standing.records[at + FLAGS]!;
      if ((flags & TOMBSTONE_BIT) !== 0) continue;
      const file = files.get(this.locator.fileOf(flags >>> FILE_SHIFT));
      assert(file !== undefined, "the index names a file that is not live");
      let mask = masked.get(file);
      if (mask === undefined) {
        mask = (await this.table.mask(file))?.copy() ?? Mask.none(file.rows);
        masked.set(file, mask);
      }
      assert(mask.set(standing.records[at + ROW]!), "the index names a row that is masked already");
    }
    return masked;
  }

  private rememberMasks(masked: ReadonlyMap<TableFile, Mask>): void {
    const live = new Map(this.table.snapshot.files.map((file) => [file.path, file]));
    for (const [{ path }, mask] of masked) {
      const file = live.get(path);
      if (file !== undefined) this.table.rememberMask(file, mask);
    }
  }
}

interface Staged {
  readonly rows: StagedFile | undefined;
  /** Ordinals of the file's rows, in their order. */
  readonly liveOrds: readonly number[];
  readonly tombstones: StagedFile | undefined;
  readonly tombstoneOrds: readonly number[];
}

const none: Staged = { rows: undefined, liveOrds: [], tombstones: undefined, tombstoneOrds: [] };
