import type { DuckDBConnection } from "@duckdb/node-api";
import { assert } from "../base/errors.js";
import type { Applied, Placement, Relocation } from "./applied.js";
import { FEW_KEYS, hasMany, keysIn, slotsAt } from "./batch-slots.js";
import type { Change } from "./changes.js";
import type { DeltaTable } from "./delta-table.js";
import { EntityIndex } from "./entity-index.js";
import type { EntityKeys } from "./entity-keys.js";
import { FileOrdinals } from "./file-ordinals.js";
import { joinKeys, scanKeys, scanned } from "./key-scan.js";
import { LargeFiles, MANY_ROWS, type Sink } from "./large-files.js";
import type { MadeRuns } from "./made-runs.js";
import { FLAGS, isLevelRow, OPERATION_MASK, outranks, ROW, SLOT, TOMBSTONE_BIT, WORDS } from "./order.js";
import { EVERY_SLOT, holds, isEvery, isWithin, overlaps, type Slots, union, without } from "./slot-ranges.js";
import type { StagedFile } from "./staging.js";
import { Standing } from "./standing.js";
import { filesOf, type TableFile, type TableSnapshot } from "./types.js";

/** What is not claimed any more is kept for so many batches. */
const LINGER = 16;
/** So many files must be gone before the index is searched for records that still name them. */
const MANY_DEAD = 4096;

/** Of the index's memory, what large files may fill: the rest is for what comes in batch by batch. */
const LARGE_SHARE = 1 / 2;

/**
 * Finds the standing record (row or tombstone) of entities: in the key index where it fits its memory budget, else by
 * a semi-join of the batch's keys with the table's key columns; those of large files where LargeFiles has them. The
 * index holds the entities of the slots that its writer claims. It follows the table change by change, whoever made
 * them; its cost is that of the change.
 */
export class EntityLocator {
  private index: EntityIndex | undefined;
  /** Slots whose entities the index holds. */
  private covered: Slots = [];
  /** Version up to which the index has taken in all changes. */
  private version = -1;
  /** Later versions that it has taken in: commits of this process's own. */
  private readonly own = new Set<number>();
  private files = new FileOrdinals();
  /** Batches in a row that claimed less than is covered. */
  private wide = 0;
  /** How many times the index was read from nothing. */
  loads = 0;
  /** Files whose entities the index does not hold, whatever their slots. */
  private readonly large: LargeFiles;

  constructor(
    private readonly table: DeltaTable,
    private readonly budgetBytes: number,
    private readonly keys: EntityKeys,
    made?: MadeRuns,
    private readonly manyRows = MANY_ROWS,
  ) {
    const host = { sinkFor: (file: TableFile) => this.sinkFor(file), numbers: () => this.files };
    this.large = new LargeFiles(table, keys, host, made);
  }

  /** Drops the index; the next batch reads the table again. */
  forget(): void {
    this.index = undefined;
    this.covered = [];
    this.own.clear();
    this.files = new FileOrdinals();
  }

  /** Takes in a commit of this process's own, which need not be read back. */
  applied({ version, gone = [], placed = [], moved }: Applied): void {
    if (this.index === undefined || version <= this.version) return;
    // With sources that the index has not seen yet, as with new files that were not read, it is taken in as another's:
    // what the sources said is in the new files alone.
    if (moved !== undefined && (this.version !== version - 1 || !this.move(moved.relocations, moved.sources)))
      return;
    for (const path of gone) this.kill(path);
    for (const placement of placed) this.place(placement);
    this.own.add(version);
    this.settleVersions();
    this.keepWithinBudget();
  }

  /** Where the records of a large file go, as long as they fit. */
  private sinkFor({ path, rows, tombstones }: TableFile): Sink | undefined {
    const { index, covered } = this;
    if (index === undefined) return undefined;
    if (EntityIndex.bytesFor(index.size + rows) > this.budgetBytes * LARGE_SHARE) return undefined;
    const place = this.files.flagsOf(path, tombstones);
    const stands = () => this.index === index && this.covered === covered;
    return {
      stands,
      put: (record) => {
        if (!stands() || !holds(covered, record[SLOT]!)) return;
        record[FLAGS] = place | (record[FLAGS]! & OPERATION_MASK);
        const at = index.find(record, 0);
        const isDead = at >= 0 && this.files.isDead(index.records[at + FLAGS]!);
        // Read as of a while ago: of rows that are equal the one stands that has come since.
        if (at < 0 || isDead || !isLevelRow(index.records, at, record, 0)) this.offer(index, record);
      },
    };
  }

  private kill(path: string): void {
    this.files.kill(path);
    this.large.drop(path);
  }

  /** Resolves when all large files have been read. */
  settled(): Promise<void> {
    return this.large.settled();
  }

  /** Nothing is looked up any more. */
  close(): Promise<void> {
    return this.large.close();
  }

  private settleVersions(): void {
    while (this.own.delete(this.version + 1)) this.version++;
  }

  private keepWithinBudget(): void {
    if (this.index !== undefined && this.index.bytes > this.budgetBytes) this.forget();
  }

  get indexedKeys(): number | undefined {
    return this.index?.size;
  }

  /** Path of the file that FLAGS of a standing row name. */
  fileOf(flags: number): string {
    const path = this.files.pathOf(flags);
    assert(path !== undefined, "a record names a file that is gone");
    return path;
  }

  /** What the index holds: a record, and the path of its file, undefined for a tombstone. */
  *entries(): Generator<{ readonly record: Uint32Array; readonly path: string | undefined }> {
    if (this.index === undefined) return;
    for (const record of this.index.all()) {
      const flags = record[FLAGS]!;
      if (!this.files.isDead(flags))
        yield { record, path: (flags & TOMBSTONE_BIT) === 0 ? this.files.pathOf(flags) : undefined };
    }
  }

  /**
   * Where the entities of a batch stand as of the table's snapshot. `keys` is a relation of `connection` with columns
   * ord, tenant_id and entity_id, a row per record; it is read only for what the index does not cover. `claimed`: the
   * slots whose entities are this writer's to change; the index is brought to hold these.
   */
  async locate(
    records: Uint32Array,
    connection: DuckDBConnection,
    keys: string,
    claimed: Slots = EVERY_SLOT,
  ): Promise<Standing> {
    const { snapshot } = this.table;
    this.large.handOver();
    await this.bringTo(snapshot, hasMany(records, claimed) ? EVERY_SLOT : claimed, connection);
    this.large.keep(snapshot);
    this.large.read();
    const standing = new Standing(records, snapshot);
    const { index } = this;
    if (index === undefined) {
      for (let ord = 0; ord < standing.count; ord++) standing.apart.push(ord);
    } else {
      const all = isEvery(this.covered);
      for (let ord = 0; ord < standing.count; ord++) {
        if (all || holds(this.covered, records[ord * WORDS + SLOT]!)) this.look(index, standing, ord);
        else standing.apart.push(ord);
      }
    }
    if (standing.apart.length > 0) await this.semiJoin(standing, connection, keys);
    await this.large.look(standing, snapshot, connection, keys);
    return standing;
  }

  private look(index: EntityIndex, standing: Standing, ord: number): void {
    const at = index.find(standing.records, ord * WORDS);
    if (at < 0 || this.files.isDead(index.records[at + FLAGS]!)) standing.clear(ord);
    else standing.set(ord, index.records, at);
  }

  /**
   * Brings what `locate` found to the table's present snapshot, by the changes since alone. False when that cannot be
   * done: then all is to be looked up anew. `keys` as of `locate`.
   */
  async relocate(standing: Standing, connection: DuckDBConnection, keys: string): Promise<boolean> {
    const { snapshot } = this.table;
    const changes = this.table.changes(standing.snapshot.version, snapshot.version);
    if (changes?.every(({ drops, replaced }) => !drops && !replaced) !== true) return false;
    if (this.index !== undefined && this.version !== standing.snapshot.version) return false;
    const had = this.index !== undefined;
    await this.takeIn(changes, snapshot, connection, standing);
    this.keepWithinBudget();
    // What was found is told by numbers of files that went with the index.
    if (had && this.index === undefined) return false;
    this.large.keep(snapshot);
    if (standing.apart.length < standing.count) {
      if (this.index === undefined) return false;
      const apart = new Set(standing.apart);
      for (let ord = 0; ord < standing.count; ord++) {
        if (!apart.has(ord)) this.look(this.index, standing, ord);
      }
    }
    for (const ord of standing.apart) {
      if (standing.knows(ord) && this.files.isDead(standing.found[ord * WORDS + FLAGS]!)) standing.clear(ord);
    }
    await this.large.look(standing, snapshot, connection, keys);
    standing.snapshot = snapshot;
    return true;
  }

  /** Makes the index hold the claimed slots as of the snapshot, where that fits its budget. */
  private async bringTo(
    snapshot: TableSnapshot,
    claimed: Slots,
    connection: DuckDBConnection,
  ): Promise<void> {
    if (this.index !== undefined && this.version !== snapshot.version) {
      const changes = this.table.changes(this.version, snapshot.version);
      if (snapshot.version < this.version || changes?.every(({ replaced }) => !replaced) !== true)
        this.forget();
      else await this.takeIn(changes, snapshot, connection);
    }
    this.keepWithinBudget();
    if (this.index === undefined) {
      this.forget();
      const fits = () => EntityIndex.bytesFor(keysIn(this.small(snapshot), claimed)) <= this.budgetBytes;
      if (!fits()) {
        for (const { path, rows } of snapshot.files) if (rows >= this.manyRows) this.large.add(path);
        if (!fits()) return;
      }
      this.loads++;
    }
    this.wide = isWithin(this.covered, claimed) ? 0 : this.wide + 1;
    // What a single batch was about may come back: it was read at some cost.
    if (this.wide > LINGER) this.drop(without(this.covered, claimed));
    const more = without(claimed, this.covered);
    // Counted before they are read, or memory would have to hold them first.
    const bytes = () => EntityIndex.bytesFor((this.index?.size ?? 0) + keysIn(this.small(snapshot), more));
    if (this.index === undefined || (more.length > 0 && bytes() <= this.budgetBytes))
      await this.load(snapshot, more, connection);
    this.version = snapshot.version;
  }

  /** Files that the index, or a semi-join, is for. */
  private small({ files }: TableSnapshot): readonly TableFile[] {
    return files.filter(({ path }) => !this.large.has(path));
  }

  /** Reads the entities of slots that the index lacks. */
  private async load(snapshot: TableSnapshot, slots: Slots, connection: DuckDBConnection): Promise<void> {
    const index = this.index ?? new EntityIndex();
    const files = this.small(snapshot).filter((file) => overlaps(file.slots, slots));
    await this.scan(connection, files, (record) => {
      if (holds(slots, record[SLOT]!)) this.offer(index, record);
    });
    this.index = index;
    this.covered = union(this.covered, slots);
    this.keepWithinBudget();
  }

  private drop(slots: Slots): void {
    const { index } = this;
    if (index === undefined) return;
    index.retain((records, at) => !holds(slots, records[at + SLOT]!));
    this.covered = without(this.covered, slots);
  }

  /** Takes changes into the index, and into what has been looked up apart from it. */
  private async takeIn(
    changes: readonly Change[],
    snapshot: TableSnapshot,
    connection: DuckDBConnection,
    standing?: Standing,
  ): Promise<void> {
    const { index, covered } = this;
    const foreign = changes.filter(({ version }) => !this.own.has(version));
    for (const { removed } of foreign) for (const path of removed) this.kill(path);
    const apart = standing?.apart ?? [];
    const wanted = index === undefined || apart.length > 0 ? EVERY_SLOT : covered;
    const live = filesOf(snapshot);
    const added = foreign
      .flatMap((change) => change.added.map(({ path }) => live.get(path)))
      .filter((file) => file !== undefined && overlaps(file.slots, wanted)) as TableFile[];
    for (const { path, rows } of added) if (rows >= this.manyRows) this.large.add(path);
    const small = added.filter(({ path }) => !this.large.has(path));
    await this.scan(connection, small, (record) => {
      if (index !== undefined && holds(covered, record[SLOT]!)) {
        this.offer(index, record);
        return;
      }
      const ord = apart.length === 0 ? undefined : standing!.apartOf(record);
      if (ord === undefined) return;
      const at = ord * WORDS;
      const { found } = standing!;
      if (!standing!.knows(ord) || this.isPassed(found, at, record)) standing!.set(ord, record, 0);
    });
    if (index === undefined) return;
    this.version = snapshot.version;
    for (const version of this.own) if (version <= this.version) this.own.delete(version);
    this.buryDead(index);
  }

  /** Where a record of a live row or of a tombstone comes in, in whatever order they are read. */
  private offer(index: EntityIndex, record: Uint32Array): void {
    const at = index.find(record, 0);
    if (at < 0 || this.isPassed(index.records, at, record)) index.put(record, 0);
  }

  /** Whether what was known at `at` stands no longer: it has lost, or its file is gone and its row is in another. */
  private isPassed(known: Uint32Array, at: number, record: Uint32Array): boolean {
    return this.files.isDead(known[at + FLAGS]!) || outranks(record, 0, record[FLAGS]!, known, at);
  }

  /** Frees the numbers of files that are gone, once there are so many that a pass over the index is paid for. */
  private buryDead(index: EntityIndex): void {
    if (this.files.deadCount < Math.max(MANY_DEAD, index.size / 64)) return;
    index.retain((records, at) => !this.files.isDead(records[at + FLAGS]!));
    this.files.reuse();
  }

  private place({ records, ords, path, tombstones }: Placement): void {
    const index = this.index!;
    const flags = this.files.flagsOf(decodeURIComponent(path), tombstones);
    const record = new Uint32Array(WORDS);
    for (const [row, ord] of ords.entries()) {
      if (ord === undefined) continue;
      record.set(records.subarray(ord * WORDS, (ord + 1) * WORDS));
      if (!holds(this.covered, record[SLOT]!)) continue;
      record[FLAGS] = flags | (record[FLAGS]! & OPERATION_MASK);
      record[ROW] = row;
      index.put(record, 0);
    }
  }

  /** Reads the records of a file that is not yet part of the table. Undefined without an index. */
  async prepareMove(file: StagedFile, connection: DuckDBConnection): Promise<Relocation | undefined> {
    if (this.index === undefined) return undefined;
    const records = new Uint32Array(file.rows * WORDS);
    let at = 0;
    const path = decodeURIComponent(file.add.path);
    const whole = { path, rows: file.rows, bytes: file.add.size, place: 0, mask: undefined };
    await scanKeys(this.table, connection, this.keys, [whole], (record) => {
      records.set(record, at);
      at += WORDS;
    });
    return { path, records };
  }

  /** False when the new files were not read: then they come in as another writer's would. */
  private move(relocations: readonly (Relocation | undefined)[], sources: readonly TableFile[]): boolean {
    const index = this.index!;
    if (!relocations.every((relocation) => relocation !== undefined)) return false;
    const paths = sources.map(({ path }) => path);
    if (paths.some((path) => this.large.has(path))) return false;
    const isFrom = this.files.areOf(paths);
    for (const { path, records } of relocations) {
      const place = this.files.flagsOf(path, false);
      for (let at = 0; at < records.length; at += WORDS) {
        records[at + FLAGS] = place | (records[at + FLAGS]! & OPERATION_MASK);
        index.move(records, at, isFrom);
      }
    }
    for (const path of paths) this.kill(path);
    return true;
  }

  private async scan(
    connection: DuckDBConnection,
    files: readonly TableFile[],
    use: (record: Uint32Array) => void,
  ): Promise<void> {
    const places = await Promise.all(
      files.map((file) => scanned(this.table, file, this.files.flagsOf(file.path, file.tombstones))),
    );
    await scanKeys(this.table, connection, this.keys, places, use);
  }

  private async semiJoin(standing: Standing, connection: DuckDBConnection, keys: string): Promise<void> {
    const { apart, records, snapshot } = standing;
    const few = apart.length > FEW_KEYS ? undefined : apart;
    const slots = few === undefined ? EVERY_SLOT : slotsAt(records, few);
    const files = this.small(snapshot).filter((file) => overlaps(file.slots, slots));
    if (files.length === 0) return;
    const wanted = few === undefined ? keys : `(SELECT * FROM ${keys} WHERE ord IN (${few.join(", ")}))`;
    const isApart = new Uint8Array(standing.count);
    for (const ord of apart) isApart[ord] = 1;
    const places = await Promise.all(
      files.map((file) => scanned(this.table, file, this.files.flagsOf(file.path, file.tombstones))),
    );
    await joinKeys(this.table, connection, wanted, places, (record, ord) => {
      if (isApart[ord] === 0) return;
      if (!standing.knows(ord) || outranks(record, 0, record[FLAGS]!, standing.found, ord * WORDS))
        standing.set(ord, record, 0);
    });
  }
}
