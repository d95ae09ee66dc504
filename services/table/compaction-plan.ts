import type { DuckDBConnection } from "@duckdb/node-api";
import { isOutOfMemory } from "../base/engine-error.js";
import { decodedBytes } from "./decoded-size.js";
import type { DeltaTable } from "./delta-table.js";
import { layoutFor, layoutOf } from "./layout.js";
import { EVERY_SLOT, isWithin, type Slots } from "./slot-ranges.js";
import type { TableFile, TableSnapshot } from "./types.js";

const MiB = 1024 * 1024;
/** Files are merged with files of their own size class, so that a row is rewritten a few times in its life, not often. */
const TIERS = [1 * MiB, 8 * MiB, 64 * MiB, 512 * MiB];
/** A file with more masked rows than this costs readers more than its rewrite costs us. */
const MAX_MASKED_SHARE = 0.5;
/** What took more memory than there was is counted as so many times the budget. */
const MORE = 1.5;

/** As much of a file that several writers mask is masked before it is divided between them. */
const MAX_CROSSING_SHARE = 0.1;

/**
 * Files worth merging, of one kind and size class, that one piece of the layout holds; or files that cross several, to
 * be divided. Undefined when the table is in good shape.
 */
export function planCompaction(
  snapshot: Pick<TableSnapshot, "files">,
  afterFiles: number,
  fits: (file: TableFile, together: number) => boolean = () => true,
  layout: readonly Slots[] = [EVERY_SLOT],
): TableFile[] | undefined {
  for (const { files, crossing } of groupsOf(snapshot.files, layout)) {
    const plan = planGroup(files, afterFiles, fits);
    if (plan !== undefined) return plan;
    if (!crossing) continue;
    const masked = files.filter((file) => masks(file, MAX_CROSSING_SHARE) && fits(file, 1));
    if (masked.length > 0) return masked;
  }
  return undefined;
}

interface Group {
  readonly files: readonly TableFile[];
  /** They lie in several pieces of the layout. */
  readonly crossing: boolean;
}

function groupsOf(files: readonly TableFile[], layout: readonly Slots[]): Group[] {
  const groups: Group[] = [];
  for (const partition of new Set(files.map((file) => file.partition))) {
    const own = files.filter((file) => file.partition === partition);
    const pieces = layoutFor(layout, partition, own);
    const crossing = own.filter(({ slots }) => !pieces.some((piece) => isWithin(slots, piece)));
    for (const piece of pieces) {
      groups.push({ files: own.filter(({ slots }) => isWithin(slots, piece)), crossing: false });
    }
    groups.push({ files: crossing, crossing: true });
  }
  return groups;
}

const masks = (file: TableFile, share: number): boolean =>
  !file.tombstones && file.maskedRows > file.rows * share;

function planGroup(
  group: readonly TableFile[],
  afterFiles: number,
  fits: (file: TableFile, together: number) => boolean,
): TableFile[] | undefined {
  for (const tombstones of [false, true]) {
    const files = group.filter((file) => file.tombstones === tombstones && fits(file, 1));
    for (const [tier, limit] of TIERS.entries()) {
      const least = tier === 0 ? 0 : TIERS[tier - 1]!;
      const same = files.filter((file) => file.bytes >= least && file.bytes < limit && fits(file, 2));
      if (same.length >= afterFiles) return same;
    }
    if (tombstones) continue;
    const holes = files.filter((file) => masks(file, MAX_MASKED_SHARE));
    if (holes.length * 4 >= afterFiles) return holes;
  }
  return undefined;
}

/**
 * Chooses what a compaction takes in: no more than `budgetBytes` of decoded rows, since the engine holds them several
 * times over. Files that are too large for a second one beside them are left alone.
 */
export class CompactionPlanner {
  /** Decoded bytes of files that were looked at, by path; more where memory did not suffice for them. */
  private readonly sizes = new WeakMap<DeltaTable, Map<string, number>>();

  constructor(
    private readonly budgetBytes: number,
    private readonly afterFiles: number,
  ) {}

  private sizesOf(table: DeltaTable): Map<string, number> {
    let sizes = this.sizes.get(table);
    if (sizes === undefined) {
      sizes = new Map();
      this.sizes.set(table, sizes);
    }
    return sizes;
  }

  private candidates(table: DeltaTable): TableFile[] | undefined {
    const sizes = this.sizesOf(table);
    return planCompaction(
      table.snapshot,
      this.afterFiles,
      ({ path }, together) => (sizes.get(path) ?? 0) * together <= this.budgetBytes,
      layoutOf(table),
    );
  }

  /** Whether there is something to merge, as far as is known without a look into the files. */
  wants(table: DeltaTable): boolean {
    return this.candidates(table) !== undefined;
  }

  /** What to merge next; undefined when nothing is worth it. Errors: the engine's, of files that are not there. */
  async plan(table: DeltaTable, connection: DuckDBConnection): Promise<TableFile[] | undefined> {
    const sizes = this.sizesOf(table);
    const live = new Set(table.snapshot.files.map(({ path }) => path));
    for (const path of sizes.keys()) if (!live.has(path)) sizes.delete(path);
    for (;;) {
      const files = this.candidates(table);
      const unknown = files?.filter(({ path }) => !sizes.has(path)) ?? [];
      if (files === undefined || unknown.length === 0) return files && this.cut(files, sizes);
      const bytes = await decodedBytes(table, connection, unknown);
      for (const [i, { path }] of unknown.entries()) sizes.set(path, bytes[i]!);
    }
  }

  private cut(files: readonly TableFile[], sizes: ReadonlyMap<string, number>): TableFile[] {
    let sum = 0;
    return files.filter(({ path }) => {
      const bytes = sizes.get(path)!;
      if (sum + bytes > this.budgetBytes) return false;
      sum += bytes;
      return true;
    });
  }

  /**
   * Merges what is worth it by `merge`; undefined when nothing is. Where the engine has no memory for these files it
   * rejects as `merge` does, and takes fewer of them the next time, at last none.
   */
  async compact<T>(
    table: DeltaTable,
    connection: DuckDBConnection,
    merge: (files: readonly TableFile[]) => Promise<T>,
  ): Promise<T | undefined> {
    const files = await this.plan(table, connection);
    if (files === undefined) return undefined;
    try {
      return await merge(files);
    } catch (error) {
      if (isOutOfMemory(error)) {
        const sizes = this.sizesOf(table);
        const sum = files.reduce((bytes, { path }) => bytes + sizes.get(path)!, 0);
        const factor = (MORE * this.budgetBytes) / sum;
        for (const { path } of files) sizes.set(path, sizes.get(path)! * factor);
      }
      throw error;
    }
  }
}
