import { INTEGER, LIST, listValue } from "@duckdb/node-api";
import { AssertionFailure } from "../base/errors.js";
import { Turns } from "../base/turns.js";
import type { Action, AddAction } from "./actions.js";
import type { CommitResult } from "./commit-request.js";
import { allRows, stageFile } from "./data-file.js";
import type { DeltaTable } from "./delta-table.js";
import type { EntityKeys } from "./entity-keys.js";
import { EntityLocator } from "./locator.js";
import type { MadeRuns } from "./made-runs.js";
import type { Mask } from "./mask.js";
import { SLOT, WORDS } from "./order.js";
import { advance, type Progress } from "./progress.js";
import { maskReplaced } from "./replaced.js";
import type { RowSource } from "./row-source.js";
import { EVERY_SLOT, holds, isEvery, type Slots, spanned } from "./slot-ranges.js";
import { type StagedFile, Staging } from "./staging.js";
import type { Standing } from "./standing.js";
import type { TableFile, TableSnapshot } from "./types.js";
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
  /** The slots whose entities are this writer's to change; all when absent. Others' are right too, but dearer. */
  readonly slots?: Slots;
  /** Whether the table as it is now is the one that the batch was made for; if not, the batch is given up. */
  readonly fits?: (table: TableSnapshot) => boolean;
  /** Rows of events that are in the table already are made again: its model may not have made them so. */
  readonly again?: boolean;
  /** Awaited before the commit; false gives the batch up (what it builds on did not come to be). */
  readonly ready: Promise<boolean>;
}

export interface UpsertOutcome {
  readonly live: number;
  readonly tombstones: number;
  /** Records that lost against what the table had. */
  readonly lost: number;
  readonly touchedFiles: number;
  /** Commits of other writers that came first and were settled key by key. */
  readonly overtaken: number;
}

/** After so many other writers that came first, a batch is given back: something is wrong, or the table is too busy. */
export const MOST_OVERTAKEN = 100;

export type UpsertResult =
  | (UpsertOutcome & { readonly kind: "committed"; readonly version: number })
  | { readonly kind: "given-up" }
  | Extract<CommitResult, { kind: "conflict" }>;

/**
 * Last-write-wins upserts into one table, at the cost of min(changed keys, files touched): look up, write winners as
 * a new file, mask what they replace, commit both with the positions. One writer object per table and process.
 *
 * Of several processes that write a table, one that is overtaken does not begin again: it compares its keys with those
 * that others have put in since, masks what of its own has lost, and commits what it has staged.
 */
export class UpsertWriter {
  private readonly turns = new Turns();

  constructor(
    readonly table: DeltaTable,
    readonly locator: EntityLocator,
    /** Makes the key words of the records that it is given. */
    readonly keys: EntityKeys,
    /** Told how each batch ended. */
    private readonly ended: (result: UpsertResult) => void = () => undefined,
  ) {}

  static for(
    table: DeltaTable,
    indexBytes: number,
    keys: EntityKeys,
    ended?: (result: UpsertResult) => void,
    made?: MadeRuns,
  ): UpsertWriter {
    return new UpsertWriter(table, new EntityLocator(table, indexBytes, keys, made), keys, ended);
  }

  /**
   * Batches are applied one after the other. On a conflict nothing has changed; refresh, and come with the rest.
   * Errors of the source, the model's among them, come through.
   */
  upsert(upsert: Upsert): Promise<UpsertResult> {
    return this.exclusively(async () => {
      try {
        const result = await Staging.run(this.table, (staging) => this.apply(upsert, staging));
        this.ended(result);
        return result;
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

  /** Once nothing is upserted any more. */
  close(): Promise<void> {
    return this.locator.close();
  }

  private async apply(upsert: Upsert, staging: Staging): Promise<UpsertResult> {
    const { source, from, to, newest, ready } = upsert;
    const { standing, staged, slots, keys } = await this.stageFrom(upsert, staging);
    const progress = advance(from, to);
    let published = false;
    for (let overtaken = 0; ; overtaken++) {
      const outcome = await this.outcomeOf(standing, staged);
      const { masked } = outcome;
      const files = published ? [] : [staged.rows, staged.tombstones].filter((file) => file !== undefined);
      // Side by side: on a remote store each takes the time of a request.
      const [vectors] = await Promise.all([
        stageVectors(staging, masked, outcome.born),
        staging.publish(files),
      ]);
      published = true;
      if (!(await ready)) return { kind: "given-up" };
      if (upsert.fits?.(standing.snapshot) === false) return { kind: "given-up" };
      const result = await staging.commit({
        operation: "MERGE",
        actions: [...vectors, ...progress.actions],
        expect: progress.expect,
        basedOn: standing.snapshot.version,
        serializable: true,
        slots,
        newest,
      });
      if (result.kind === "committed") {
        this.committed(result.version, standing, staged, outcome, vectors);
        return {
          kind: "committed",
          version: result.version,
          live: outcome.live,
          tombstones: outcome.tombstones,
          lost: standing.count - outcome.live - outcome.tombstones,
          touchedFiles: masked.size,
          overtaken,
        };
      }
      const settles = result.reason === "version" || result.reason === "file";
      if (!settles || overtaken === MOST_OVERTAKEN) return result;
      if (!(await this.locator.relocate(standing, source.connection, keys))) return result;
    }
  }

  /** All that the source is needed for: who survives, and files of their rows and tombstones that nothing names yet. */
  private async stageFrom({ source, slots: claimed = EVERY_SLOT, again = false }: Upsert, staging: Staging) {
    const { records, connection } = source;
    try {
      const keys = records.length === 0 ? "" : await source.keys();
      const standing = await this.locator.locate(records, connection, keys, claimed);
      standing.again = again;
      const slots = slotsOf(records, claimed);
      const survivors: number[] = [];
      for (let ord = 0; ord < standing.count; ord++) if (standing.isBeatenBy(ord)) survivors.push(ord);
      const staged =
        survivors.length === 0 ? none : await this.stage(staging, source, keys, survivors, slots);
      return { standing, staged, slots, keys };
    } finally {
      await source.release();
    }
  }

  private async stage(
    staging: Staging,
    source: RowSource,
    keys: string,
    survivors: readonly number[],
    slots: Slots,
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
            { partition: SHARED_PARTITION, slots },
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
      { partition: SHARED_PARTITION, tombstones: true, slots },
    );
    return { rows, liveOrds, tombstones, tombstoneOrds };
  }

  /** What of the staged files is still to be told, after what stands now: others may have been here since. */
  private async outcomeOf(standing: Standing, staged: Staged): Promise<Outcome> {
    const { liveOrds, tombstoneOrds, rows, tombstones } = staged;
    const wins = (ord: number) => standing.isBeatenBy(ord);
    const lostRows: number[] = [];
    for (const [row, ord] of liveOrds.entries()) if (!wins(ord)) lostRows.push(row);
    const winningTombstones = tombstoneOrds.filter(wins).length;
    const born: { add: AddAction; masked: Uint32Array }[] = [];
    const live = liveOrds.length - lostRows.length;
    if (rows !== undefined && live > 0) born.push({ add: rows.add, masked: Uint32Array.from(lostRows) });
    // Born fully masked: every reader skips the tombstones, the index rebuild reads them.
    if (tombstones !== undefined && winningTombstones > 0)
      born.push({ add: tombstones.add, masked: allRows(tombstones) });
    const winners = [...liveOrds, ...tombstoneOrds].filter(wins);
    const masked = await maskReplaced(this.table, standing, winners, (flags) => this.locator.fileOf(flags));
    return { born, masked, live, tombstones: winningTombstones };
  }

  /** Tells index and masks of a commit, so that nothing of it is read back. */
  private committed(
    version: number,
    standing: Standing,
    staged: Staged,
    { masked, born }: Outcome,
    vectors: readonly Action[],
  ): void {
    // By the commit's own vectors: while its answer was lost others may have laid newer ones over the same files.
    const own = new Map(vectors.flatMap(({ add }) => (add === undefined ? [] : [[add.path, add]])));
    for (const [{ path, add }, mask] of masked) {
      const vector = own.get(add.path)?.deletionVector;
      if (vector !== undefined) this.table.rememberMask(path, vector, mask);
    }
    const named = new Set(born.map(({ add }) => add.path));
    const placed = [
      { file: staged.rows, ords: staged.liveOrds, tombstones: false },
      { file: staged.tombstones, ords: staged.tombstoneOrds, tombstones: true },
    ];
    this.locator.applied({
      version,
      gone: [...masked].flatMap(([file, mask]) => (mask.count === file.rows ? [file.path] : [])),
      placed: placed.flatMap(({ file, ords, tombstones }) =>
        file === undefined || !named.has(file.add.path)
          ? []
          : [
              {
                records: standing.records,
                ords: ords.map((ord) => (standing.isBeatenBy(ord) ? ord : undefined)),
                path: file.add.path,
                tombstones,
              },
            ],
      ),
    });
  }
}

/** The slots that a batch can be about. */
function slotsOf(records: Uint32Array, claimed: Slots): Slots {
  if (isEvery(claimed)) return claimed;
  const strays: number[] = [];
  for (let at = SLOT; at < records.length; at += WORDS)
    if (!holds(claimed, records[at]!)) strays.push(records[at]!);
  return spanned(claimed, strays);
}

interface Outcome {
  /** Staged files, and their rows that are masked from the start. */
  readonly born: readonly { readonly add: AddAction; readonly masked: Uint32Array }[];
  readonly masked: ReadonlyMap<TableFile, Mask>;
  /** Rows and tombstones that win. */
  readonly live: number;
  readonly tombstones: number;
}

interface Staged {
  readonly rows: StagedFile | undefined;
  /** Ordinals of the file's rows, in their order. */
  readonly liveOrds: readonly number[];
  readonly tombstones: StagedFile | undefined;
  readonly tombstoneOrds: readonly number[];
}

const none: Staged = { rows: undefined, liveOrds: [], tombstones: undefined, tombstoneOrds: [] };
