import { setTimeout as sleep } from "node:timers/promises";
import type { DuckDBConnection } from "@duckdb/node-api";
import type { DeltaTable } from "./delta-table.js";
import type { EntityKeys } from "./entity-keys.js";
import type { FileOrdinals } from "./file-ordinals.js";
import { KeyRun, RUN_ROWS } from "./key-run.js";
import { joinKeys, scanKeys, scanned } from "./key-scan.js";
import type { MadeRuns } from "./made-runs.js";
import { FLAGS, OPERATION_MASK, outranks, ROW, TENANT, WORDS } from "./order.js";
import type { Standing } from "./standing.js";
import { filesOf, type TableFile, type TableSnapshot } from "./types.js";

/** A file of so many rows is not read while a batch waits: a bulk job brings such files one after the other. */
export const MANY_ROWS = 50_000;

/** Blocks of a run that an index takes over at once, half a millisecond; the rest in between is ten times as long. */
const TOGETHER = 8;
const REST_MS = 10;

/** An index that takes in the records of a file. */
export interface Sink {
  put(record: Uint32Array): void;
  /** Whether all that was put in is in the index, and it holds the same entities as before. */
  stands(): boolean;
}

export interface LargeFilesHost {
  /** Undefined when there is no room for the file's records. */
  sinkFor(file: TableFile): Sink | undefined;
  numbers(): FileOrdinals;
}

/**
 * Large files of a table whose entities its index does not hold. Their keys are read in the background, file by file,
 * into the index or into runs on disk; until then a batch's keys are joined with a file's, which takes longer but keeps
 * nobody waiting for all of the file.
 */
export class LargeFiles {
  /** By path; none while they are still to be read. */
  private readonly runs = new Map<string, readonly KeyRun[] | undefined>();
  /** Those whose runs their writers have made: the index may take the records over, where it has room. */
  private readonly given = new Set<string>();
  /** Those that the index holds by now, as long as what took them in stands. */
  private readonly taken = new Map<string, Sink>();
  private reading: Promise<void> | undefined;
  private closed = false;

  constructor(
    private readonly table: DeltaTable,
    private readonly keys: EntityKeys,
    private readonly host: LargeFilesHost,
    private readonly made: MadeRuns | undefined,
  ) {}

  has(path: string): boolean {
    return this.runs.has(path);
  }

  add(path: string): void {
    if (!this.runs.has(path)) this.runs.set(path, undefined);
  }

  /** Undefined while they are still to be read. */
  private runsOf(path: string): readonly KeyRun[] | undefined {
    const known = this.runs.get(path);
    if (known !== undefined) return known;
    const made = this.made?.take(this.table.root, path, this.keys);
    if (made === undefined) return undefined;
    this.runs.set(path, [made]);
    this.given.add(path);
    return [made];
  }

  drop(path: string): void {
    for (const run of this.runs.get(path) ?? []) run.close();
    this.runs.delete(path);
    this.given.delete(path);
    this.taken.delete(path);
  }

  /**
   * Leaves to the index what it holds by now. Before a look for a batch begins, and never while one goes on: what the
   * index was asked for before it held a file would be found nowhere.
   */
  handOver(): void {
    for (const [path, sink] of this.taken) if (sink.stands()) this.drop(path);
    this.taken.clear();
  }

  /** Forgets those that are gone. */
  keep(snapshot: TableSnapshot): void {
    if (this.runs.size === 0) return;
    const live = filesOf(snapshot);
    for (const path of this.runs.keys()) if (!live.has(path)) this.drop(path);
  }

  /**
   * Brings in what these files hold of a batch's entities. `keys` as of `EntityLocator.locate`. What stands already is
   * kept where it is as great.
   */
  async look(
    standing: Standing,
    snapshot: TableSnapshot,
    connection: DuckDBConnection,
    keys: string,
  ): Promise<void> {
    if (this.runs.size === 0 || standing.count === 0) return;
    const live = filesOf(snapshot);
    const offer = (record: Uint32Array, at: number, ord: number, flags: number) => {
      if (standing.knows(ord) && !outranks(record, at, flags, standing.found, ord * WORDS)) return;
      standing.set(ord, record, at);
      standing.found[ord * WORDS + FLAGS] = flags;
    };
    const numbers = this.host.numbers();
    const byTenant = tenantsOf(standing);
    const waiting: TableFile[] = [];
    for (const path of [...this.runs.keys()]) {
      const file = live.get(path);
      if (file === undefined) continue;
      const runs = this.runsOf(path);
      if (runs === undefined) {
        waiting.push(file);
        continue;
      }
      const { place, mask } = await scanned(this.table, file, numbers.flagsOf(path, file.tombstones));
      const seek = (run: KeyRun, ord: number) => {
        const at = run.find(standing.records, ord * WORDS);
        if (at < 0 || mask?.has(run.records[at + ROW]!) === true) return;
        offer(run.records, at, ord, place | (run.flagsAt(at) & OPERATION_MASK));
      };
      for (const run of runs) {
        if (run.tenants === undefined) {
          for (let ord = 0; ord < standing.count; ord++) seek(run, ord);
        } else {
          for (const tenant of run.tenants) for (const ord of byTenant.get(tenant) ?? []) seek(run, ord);
        }
      }
    }
    if (waiting.length === 0) return;
    const places = await Promise.all(
      waiting.map((file) => scanned(this.table, file, numbers.flagsOf(file.path, file.tombstones))),
    );
    await joinKeys(this.table, connection, keys, places, (record, ord) =>
      offer(record, 0, ord, record[FLAGS]!),
    );
  }

  /** Goes on reading. Not while a batch is being settled, which the files of others have already kept waiting. */
  read(): void {
    if (this.reading !== undefined || this.closed || this.next() === undefined) return;
    this.reading = this.readAll()
      // What is amiss with a file is told to who needs it; what passes is tried again with the next batch.
      .catch(() => undefined)
      .finally(() => {
        this.reading = undefined;
      });
  }

  private next(): string | undefined {
    for (const path of this.runs.keys())
      if (!this.taken.has(path) && this.runsOf(path) === undefined) return path;
    for (const path of this.given) return path;
    return undefined;
  }

  private async readAll(): Promise<void> {
    for (let path = this.next(); path !== undefined && !this.closed; path = this.next()) {
      const file = filesOf(this.table.snapshot).get(path);
      if (file === undefined) this.drop(path);
      else await this.readOne(file);
    }
  }

  private async readOne(file: TableFile): Promise<void> {
    const { path } = file;
    const sink = this.host.sinkFor(file);
    const isWanted = () => !this.closed && this.runs.has(path);
    if (sink !== undefined) {
      const put = (record: Uint32Array) => {
        if (isWanted()) sink.put(record);
      };
      const all = await (this.given.has(path) ? this.takeOver(file, put) : this.scan(file, put));
      // Else it is read again.
      if (!all || !isWanted() || !sink.stands()) return;
      this.given.delete(path);
      this.taken.set(path, sink);
      return;
    }
    if (this.given.delete(path)) return;
    const runs: KeyRun[] = [];
    const records = new Uint32Array(Math.min(RUN_ROWS, file.rows) * WORDS);
    let count = 0;
    const cut = () => {
      if (count > 0) runs.push(KeyRun.of(this.table.store.staging, records, count));
      count = 0;
    };
    try {
      await this.scan(file, (record) => {
        records.set(record, count++ * WORDS);
        if (count === RUN_ROWS) cut();
      });
      cut();
    } catch (error) {
      for (const run of runs) run.close();
      throw error;
    }
    // Meanwhile its writer may have told of one.
    if (isWanted() && this.runsOf(path) === undefined) this.runs.set(path, runs);
    else for (const run of runs) run.close();
  }

  private scan(file: TableFile, use: (record: Uint32Array) => void): Promise<boolean> {
    const { table, keys } = this;
    return table.duck.with(async (connection) => {
      // Which file it is they are told when they are found.
      const place = await scanned(table, file, 0);
      await scanKeys(table, connection, keys, [place], use);
      return true;
    });
  }

  /**
   * Reads a run beside batches that are not to feel it: what they ask for meanwhile is found in it. Resolves to whether
   * all was read.
   */
  private async takeOver(file: TableFile, put: (record: Uint32Array) => void): Promise<boolean> {
    const runs = this.runs.get(file.path) ?? [];
    const { mask } = await scanned(this.table, file, 0);
    const record = new Uint32Array(WORDS);
    for (const run of runs) {
      for (let name = 0; name < run.blocks; name++) {
        if (name % TOGETHER === TOGETHER - 1) await sleep(REST_MS);
        // Else it has been dropped, and closed.
        if (this.closed || this.runs.get(file.path) !== runs) return false;
        const rows = run.read(name);
        for (let at = 0; at < rows * WORDS; at += WORDS) {
          for (let word = 0; word < WORDS; word++) record[word] = run.records[at + word]!;
          if (mask?.has(record[ROW]!) !== true) put(record);
        }
      }
    }
    return true;
  }

  /** Resolves when all have been read that can be. */
  async settled(): Promise<void> {
    this.read();
    await this.reading;
  }

  async close(): Promise<void> {
    this.closed = true;
    await this.reading;
    for (const path of [...this.runs.keys()]) this.drop(path);
  }
}

/** The records of each tenant. */
function tenantsOf({ records, count }: Standing): ReadonlyMap<number, readonly number[]> {
  const byTenant = new Map<number, number[]>();
  for (let ord = 0; ord < count; ord++) {
    const tenant = records[ord * WORDS + TENANT]!;
    const own = byTenant.get(tenant);
    if (own === undefined) byTenant.set(tenant, [ord]);
    else own.push(ord);
  }
  return byTenant;
}
