import { randomUUID } from "node:crypto";
import type { DuckDBConnection } from "@duckdb/node-api";
import { literal } from "../base/duckdb.js";
import type { AddAction } from "./actions.js";
import { allRows, stageWritten, type WrittenFile } from "./data-file.js";
import type { DeltaTable } from "./delta-table.js";
import type { EntityKeys } from "./entity-keys.js";
import { FileOrdinals } from "./file-ordinals.js";
import { KeyIndex } from "./key-index.js";
import { FileRanges, KeyRanges, type TenantRange } from "./key-ranges.js";
import { KeyRun, RUN_ROWS } from "./key-run.js";
import { joinKeys, type ScannedFile, scanKeys, scanned } from "./key-scan.js";
import { MANY_ROWS } from "./large-files.js";
import type { FileRun } from "./made-runs.js";
import type { Mask } from "./mask.js";
import { FLAGS, outranks, ROW, WORDS } from "./order.js";
import { advance, type Progress } from "./progress.js";
import { maskReplaced } from "./replaced.js";
import { withFiles } from "./scan.js";
import { EVERY_SLOT } from "./slot-ranges.js";
import { type StagedFile, Staging } from "./staging.js";
import { Standing } from "./standing.js";
import { filesOf, type TableFile, type TableSnapshot } from "./types.js";
import { MOST_OVERTAKEN, SHARED_PARTITION, type UpsertResult } from "./upsert.js";
import { stageVectors } from "./vectors.js";

/** Looks at what has come since the one before, before a commit is tried. */
const MOST_ROUNDS = 5;
/** Files of fewer rows, as live batches bring them, are read at once, without a look for which keys they hold. */
const FEW_ROWS = 10_000;

/** Rows of a table that were written elsewhere: as files in the order of keys, in which each key stands once. */
export interface BulkUpsert {
  readonly rows: Written;
  readonly tombstones: Written | undefined;
  /** Of all the keys. */
  readonly ranges: readonly TenantRange[];
  readonly from: Progress;
  readonly to: Progress;
  /** When the newest of the rows was received, in ms since the epoch; undefined without rows. */
  readonly newest: number | undefined;
  /** As of `Upsert`. */
  readonly fits: (table: TableSnapshot) => boolean;
}

export interface Written {
  readonly file: WrittenFile;
  /** Puts the file where staged ones are. */
  move(localPath: string): Promise<void>;
}

/**
 * Last-write-wins upserts of so many rows at once that an index would be in the way: their keys are compared with those
 * of the files alone that can hold them. Where no file has a row or a tombstone of their tenants, or none between their
 * keys, nothing is looked up. What came between is asked for again at the commit, of the files that are new since.
 */
export class BulkUpserts {
  private readonly ranges: FileRanges;
  /** Of the table, behind this object's last commit. */
  private version: number;

  constructor(
    readonly table: DeltaTable,
    private readonly keys: EntityKeys,
    /** Who else writes the table is told of keys that are about to come into it. Resolves once that is done. */
    private readonly offerRun?: (run: FileRun) => Promise<void>,
    private readonly manyRows = MANY_ROWS,
  ) {
    this.ranges = new FileRanges(table);
    this.version = table.snapshot.version;
  }

  /** Results as of `UpsertWriter.upsert`; on a conflict nothing has changed. */
  add(upsert: BulkUpsert): Promise<UpsertResult> {
    return Staging.run(this.table, (staging) =>
      this.table.duck.with((connection) => this.apply(upsert, staging, connection)),
    );
  }

  /** Offers the keys of a file before it is in the table: whoever reads it then has what is found in it at hand. */
  private async offer(look: Look, own: Own, snapshot: TableSnapshot): Promise<void> {
    const { add, rows } = own.rows;
    if (this.offerRun === undefined || rows < this.manyRows || rows > RUN_ROWS) return;
    const { table, keys } = this;
    const standing = await look.known(snapshot);
    // One that has lost altogether does not come into the table.
    if (lostRows(own.rows, (ord) => standing.isBeatenBy(ord)).length === rows) return;
    const { records } = standing;
    const run = KeyRun.make(table.store.staging, records, rows, (tenant) => keys.nameOf(tenant));
    if (run !== undefined)
      await this.offerRun({ ...run, root: table.root, file: decodeURIComponent(add.path) });
  }

  private async apply(
    upsert: BulkUpsert,
    staging: Staging,
    connection: DuckDBConnection,
  ): Promise<UpsertResult> {
    const { table, ranges } = this;
    const own = await stage(upsert, staging);
    await staging.publish(own.files);
    const progress = advance(upsert.from, upsert.to);
    const keys = new KeyRanges(upsert.ranges);
    const look = new Look(table, connection, this.keys, own, ranges, keys);
    let snapshot = await table.refresh();
    await look.at(snapshot);
    // Where nobody else is at work nobody would ask for it.
    if (snapshot.version > this.version) await this.offer(look, own, snapshot);
    for (let overtaken = 0; ; overtaken++) {
      // What comes while one looks is little, and looked at in less time: what is left comes between here and the commit.
      for (let rounds = 0; rounds < MOST_ROUNDS; rounds++) {
        await look.at(snapshot);
        const { version } = snapshot;
        snapshot = await table.refresh();
        if (snapshot.version === version) break;
        if (!isStepBeyond(table, version, snapshot.version)) return { kind: "conflict", reason: "version" };
      }
      await look.at(snapshot);
      const { standing } = look;
      const wins = (ord: number) => standing?.isBeatenBy(ord) ?? true;
      const masked = await look.replaced();
      const born: { add: AddAction; masked: Uint32Array }[] = [];
      const lost = lostRows(own.rows, wins);
      const live = own.rows.rows - lost.length;
      if (live > 0) born.push({ add: own.rows.add, masked: lost });
      let tombstones = 0;
      for (let ord = own.rows.rows; ord < own.count; ord++) if (wins(ord)) tombstones++;
      if (own.tombstones !== undefined && tombstones > 0)
        born.push({ add: own.tombstones.add, masked: allRows(own.tombstones) });
      const vectors = await stageVectors(staging, masked, born);
      if (!upsert.fits(snapshot)) return { kind: "given-up" };
      const result = await staging.commit({
        operation: "MERGE",
        actions: [...vectors, ...progress.actions],
        expect: progress.expect,
        basedOn: snapshot.version,
        serializable: true,
        slots: EVERY_SLOT,
        newest: upsert.newest,
      });
      if (result.kind === "committed") {
        for (const { add } of born) ranges.tell(decodeURIComponent(add.path), keys);
        const lostCount = own.count - live - tombstones;
        const { version } = result;
        this.version = version;
        return {
          kind: "committed",
          version,
          live,
          tombstones,
          lost: lostCount,
          touchedFiles: masked.size,
          overtaken,
        };
      }
      const settles = result.reason === "version" || result.reason === "file";
      if (!settles || overtaken === MOST_OVERTAKEN) return result;
      const { version } = snapshot;
      ({ snapshot } = table);
      if (!isStepBeyond(table, version, snapshot.version)) return result;
    }
  }
}

/** Whether what was known of the table at `version` can be brought to `upTo` by the files that are new since. */
const isStepBeyond = (table: DeltaTable, version: number, upTo: number): boolean =>
  table.changes(version, upTo)?.every(({ drops, replaced }) => !drops && !replaced) === true;

const lostRows = ({ rows }: StagedFile, wins: (ord: number) => boolean): Uint32Array => {
  const lost: number[] = [];
  for (let row = 0; row < rows; row++) if (!wins(row)) lost.push(row);
  return Uint32Array.from(lost);
};

/** Records are numbered through: rows in the order of their file, then tombstones in that of theirs. */
interface Own {
  readonly rows: StagedFile;
  readonly tombstones: StagedFile | undefined;
  readonly files: readonly StagedFile[];
  readonly count: number;
}

async function stage({ rows, tombstones }: BulkUpsert, staging: Staging): Promise<Own> {
  const one = (written: Written, options: { readonly tombstones?: boolean }) =>
    stageWritten(staging, { partition: SHARED_PARTITION, ...options }, async (localPath) => {
      await written.move(localPath);
      return written.file;
    });
  const own = await one(rows, {});
  const buried = tombstones === undefined ? undefined : await one(tombstones, { tombstones: true });
  const files = [own, buried].filter((file) => file !== undefined && file.rows > 0) as StagedFile[];
  return { rows: own, tombstones: buried, files, count: own.rows + (buried?.rows ?? 0) };
}

/** What stands of the keys of staged files, as far as it was looked for. */
class Look {
  /** Undefined while nothing had to be looked for. */
  standing: Standing | undefined;
  /** Of the snapshot that it is true of. */
  private version = -1;
  private seen: ReadonlySet<string> = new Set();
  private readonly files = new FileOrdinals();
  private readonly name = `bulk_keys_${randomUUID().replaceAll("-", "")}`;
  private index: KeyIndex | undefined;

  constructor(
    private readonly table: DeltaTable,
    private readonly connection: DuckDBConnection,
    private readonly keys: EntityKeys,
    private readonly own: Own,
    private readonly ranges: FileRanges,
    private readonly held: KeyRanges,
  ) {}

  /** Takes in the files that are new in the snapshot, those of them that can hold one of the keys. */
  async at(snapshot: TableSnapshot): Promise<void> {
    if (snapshot.version === this.version) return;
    const live = filesOf(snapshot);
    const near = snapshot.files.filter(
      (file) => !this.seen.has(file.path) && this.ranges.mayMeet(file, this.held),
    );
    // What stood in a file that is gone stands in a new one, or something greater does.
    for (const path of this.seen) if (!live.has(path)) this.files.kill(path);
    this.seen = new Set(live.keys());
    this.ranges.keep(live);
    const small = near.filter(({ rows }) => rows < FEW_ROWS);
    const large = near.filter(({ rows }) => rows >= FEW_ROWS);
    await this.takeIn(small, await this.ranges.meeting(this.connection, large, this.held), snapshot);
    this.version = snapshot.version;
    if (this.standing === undefined) return;
    for (let ord = 0; ord < this.own.count; ord++)
      if (this.standing.knows(ord) && this.isDead(ord)) this.standing.clear(ord);
    this.standing.snapshot = snapshot;
  }

  private async takeIn(
    small: readonly TableFile[],
    large: readonly TableFile[],
    snapshot: TableSnapshot,
  ): Promise<void> {
    if (small.length + large.length === 0) return;
    const standing = await this.known(snapshot);
    const { table, connection } = this;
    const offer = (record: Uint32Array, ord: number) => {
      const at = ord * WORDS;
      if (!standing.knows(ord) || this.isDead(ord) || outranks(record, 0, record[FLAGS]!, standing.found, at))
        standing.set(ord, record, 0);
    };
    const placed = (files: readonly TableFile[]) =>
      Promise.all(files.map((file) => scanned(table, file, this.files.flagsOf(file.path, file.tombstones))));
    if (large.length > 0) await joinKeys(table, connection, this.name, await placed(large), offer);
    if (small.length === 0) return;
    const index = this.indexed(standing);
    await scanKeys(table, connection, this.keys, await placed(small), (record) => {
      const at = index.find(record, 0);
      if (at >= 0) offer(record, index.records[at + ROW]!);
    });
  }

  async known(snapshot: TableSnapshot): Promise<Standing> {
    this.standing ??= await this.records(snapshot);
    return this.standing;
  }

  /** Where each key stands among the records. */
  private indexed({ records, count }: Standing): KeyIndex {
    if (this.index === undefined) {
      this.index = new KeyIndex(count);
      for (let ord = 0; ord < count; ord++) this.index.put(records, ord * WORDS);
    }
    return this.index;
  }

  private isDead(ord: number): boolean {
    return this.files.isDead(this.standing!.found[ord * WORDS + FLAGS]!);
  }

  /** Reads the keys back, for a relation to join with and for their places in the order of writes. */
  private async records(snapshot: TableSnapshot): Promise<Standing> {
    const { own, table, connection } = this;
    const records = new Uint32Array(own.count * WORDS);
    const parts: string[] = [];
    await withFiles(table, own.files.map(scannable), async (paths) => {
      for (const [at, file] of own.files.entries()) {
        const first = file === own.rows ? 0 : own.rows.rows;
        parts.push(
          `SELECT (file_row_number + ${first})::INTEGER AS ord, tenant_id, entity_id
           FROM read_parquet(${literal(paths[at]!)}, file_row_number=true, hive_partitioning=false)`,
        );
      }
      await connection.run(`CREATE TEMP TABLE ${this.name} AS ${parts.join(" UNION ALL ")}`);
    });
    for (const file of own.files) {
      const first = file === own.rows ? 0 : own.rows.rows;
      await scanKeys(table, connection, this.keys, [scannable(file)], (record) => {
        const ord = first + record[ROW]!;
        records.set(record, ord * WORDS);
        records[ord * WORDS + ROW] = ord;
      });
    }
    return new Standing(records, snapshot);
  }

  async replaced(): Promise<Map<TableFile, Mask>> {
    const { standing } = this;
    if (standing === undefined) return new Map();
    const wins: number[] = [];
    for (let ord = 0; ord < standing.count; ord++) if (standing.isBeatenBy(ord)) wins.push(ord);
    return maskReplaced(this.table, standing, wins, (flags) => this.files.pathOf(flags) ?? "");
  }
}

const scannable = ({ add, rows }: StagedFile): ScannedFile => ({
  path: decodeURIComponent(add.path),
  rows,
  bytes: add.size,
  place: 0,
  mask: undefined,
});
