import { expect, vi } from "vitest";
import type { Duck } from "../../services/base/duckdb.js";
import type { ObjectStore } from "../../services/storage/object-store.js";
import { compactUpserted } from "../../services/table/compact.js";
import { planCompaction } from "../../services/table/compaction-plan.js";
import { layoutOf } from "../../services/table/layout.js";
import { type FileRun, MadeRuns } from "../../services/table/made-runs.js";
import { progressOf } from "../../services/table/progress.js";
import { TenantReplacement } from "../../services/table/replace-tenant.js";
import type { Slots } from "../../services/table/slot-ranges.js";
import { Sweep } from "../../services/table/sweep.js";
import type { TableFile } from "../../services/table/types.js";
import { verifyTable } from "../../services/table/verify.js";
import { overriding } from "./faulty-store.js";
import { Random } from "./lake.js";
import { claimOf, expectedRows, TableWriter, type Write } from "./table-writers.js";
import { TurnScheduler } from "./turn-scheduler.js";

const HOUR_MS = 3600 * 1000;
const TENANTS = ["acme", "b.x-9"];
const IDS = Array.from({ length: 7 }, (_, i) => `e${i}`);

const AMPLE = 1 << 26;

/** What a round has met, so that a test can tell that it met anything. */
export interface RoundReport {
  steps: number;
  kills: number;
  jumps: number;
  overtaken: number;
  compactions: number;
  bulk: number;
  /** Runs of keys that somebody was told of. */
  offered: number;
  /** Times that a tenant's rows were replaced by the same. */
  replaced: number;
  swept: number;
  /** Upserts that were given back to be done anew, by reason. */
  conflicts: Map<string, number>;
  /** An error of a process that slept for so long that its files are gone. */
  errors: number;
}

/**
 * A round of several writers, compactions and sweeps of one table, interleaved step by step as the seed decides. They
 * are killed and replaced, frozen for hours, given other slots, and two may hold one partition of the stream. In the end
 * the table must be what the writes say.
 */
export async function writersRound(
  seed: number,
  store: ObjectStore,
  duck: Duck,
  root: string,
): Promise<RoundReport> {
  const random = new Random(seed);
  const report: RoundReport = {
    steps: 0,
    kills: 0,
    jumps: 0,
    overtaken: 0,
    compactions: 0,
    bulk: 0,
    offered: 0,
    replaced: 0,
    swept: 0,
    conflicts: new Map(),
    errors: 0,
  };
  vi.useFakeTimers({ toFake: ["Date"] });
  const opened: TableWriter[] = [];
  try {
    const round = new Round(random, dated(store), duck, root, report, opened);
    await round.run();
  } finally {
    vi.useRealTimers();
    for (const { connection, writer } of opened) {
      // One that was killed in the middle of a look never ends it.
      void writer.close();
      connection.closeSync();
    }
  }
  return report;
}

/** The store with its objects' times by the clock of the test. */
function dated(inner: ObjectStore): ObjectStore {
  const times = new Map<string, number>();
  return overriding(inner, {
    put: (key, bytes) => {
      times.set(key, Date.now());
      return inner.put(key, bytes);
    },
    adopt: (files) => {
      for (const { key } of files) times.set(key, Date.now());
      return inner.adopt(files);
    },
    async *list(prefix, startAfter) {
      for await (const object of inner.list(prefix, startAfter))
        yield { ...object, modifiedAt: times.get(object.key) ?? object.modifiedAt };
    },
  });
}

interface Partition {
  readonly track: string;
  readonly batches: readonly (readonly Write[])[];
}

class Round {
  private readonly partitions: Partition[];
  private readonly indexBytes: number;
  /** Files of so many are read in the background, into the index or, where it is small, into runs. */
  private readonly manyRows: number | undefined;
  private readonly claims: "none" | "fixed" | "moving";
  private readonly jumps: number;
  /** How much comes in files that are written first. */
  private readonly bulk: number;
  /** How often a tenant's rows are made anew beside the table, and put in their place. */
  private readonly replaced: number;
  private readonly scheduler: TurnScheduler;
  private kills: number;
  private actors = 0;
  private sides = 0;
  private readonly madeRuns: MadeRuns[] = [];
  private readonly late: (() => void)[] = [];
  private readonly failures: unknown[] = [];
  private readonly reached = new Map<string, number>();
  /** `alive`: no file that it may have to read is gone. */
  private readonly ended: { readonly writer: TableWriter; readonly alive: boolean }[] = [];

  constructor(
    private readonly random: Random,
    private readonly store: ObjectStore,
    private readonly duck: Duck,
    private readonly root: string,
    private readonly report: RoundReport,
    private readonly opened: TableWriter[],
  ) {
    this.partitions = Array.from({ length: 2 + random.below(2) }, (_, i) => ({
      track: `s.${i}`,
      batches: Array.from({ length: 4 + random.below(4) }, () => this.batch()),
    }));
    this.indexBytes = random.chance(0.25) ? random.pick([0, 2000]) : AMPLE;
    this.manyRows = random.pick([undefined, 1, 3]);
    this.claims = random.pick(["none", "fixed", "moving"]);
    this.jumps = random.chance(0.5) ? 0.02 : 0;
    this.kills = random.below(4);
    this.bulk = random.pick([0, 0.3, 0.7]);
    this.replaced = this.jumps > 0 ? 0 : random.pick([0, 0.2, 0.5]);
    this.scheduler = new TurnScheduler(random, () => this.beforeStep());
  }

  private batch(): Write[] {
    const { random } = this;
    return Array.from({ length: 1 + random.below(5) }, () => ({
      tenant: random.pick(TENANTS),
      id: random.pick(IDS),
      version: 1 + random.below(5),
      operation: 1 + random.below(3),
      content: BigInt(random.below(6)),
    })).map((write) => (write.operation === 3 ? { ...write, content: 0n } : write));
  }

  private beforeStep(): boolean {
    const { random, report } = this;
    if (random.chance(this.jumps)) {
      report.jumps++;
      vi.setSystemTime(Date.now() + (1 + random.below(20)) * HOUR_MS);
    }
    if (this.kills === 0 || !random.chance(0.01)) return false;
    this.kills--;
    report.kills++;
    return true;
  }

  async run(): Promise<void> {
    const { random, partitions } = this;
    // Made before, so that its makers are no part of the round.
    await this.open(this.store);
    for (const [i] of partitions.entries()) this.start(i);
    // A partition that two processes believe to be theirs.
    if (random.chance(0.5)) this.start(0);
    await this.scheduler.run();
    this.report.steps = this.scheduler.steps;
    if (this.failures.length > 0) throw this.failures[0];
    await this.expectSound();
  }

  private async open(store: ObjectStore): Promise<TableWriter> {
    const { indexBytes, manyRows, random, report } = this;
    const madeRuns = new MadeRuns();
    this.madeRuns.push(madeRuns);
    const offerRun = async (run: FileRun) => {
      // Somebody is told, at once or when the file is in the table, or nobody is.
      const to = random.pick([undefined, ...this.madeRuns]);
      if (to === undefined) return;
      report.offered++;
      if (random.chance(0.7)) to.offer(run);
      else this.late.push(() => to.offer(run));
    };
    const more = { madeRuns, offerRun, ...(manyRows === undefined ? {} : { manyRows }) };
    const options = { checkpointEvery: 6, indexBytes, ...more };
    const writer = await TableWriter.open(store, this.duck, this.root, options);
    this.opened.push(writer);
    return writer;
  }

  /** A process that lands one partition; whoever dies is replaced. */
  private start(partition: number): void {
    const name = `writer ${this.actors++} of ${partition}`;
    void this.scheduler
      .start(name, this.store, (store) => this.write(store, partition))
      .then(
        (ended) => {
          if (ended === undefined) this.start(partition);
        },
        (error: unknown) => this.failures.push(error),
      );
  }

  private async write(store: ObjectStore, partition: number): Promise<true> {
    for (;;) {
      const writer = await this.open(store);
      try {
        while (await this.step(writer, partition, store));
        this.ended.push({ writer, alive: this.jumps === 0 });
        return true;
      } catch (error) {
        // It has slept for so long that files of its snapshot are gone; it opens the table anew.
        if (this.report.jumps === 0) throw error;
        this.report.errors++;
        if (this.report.errors > 50) throw error;
      }
    }
  }

  private async step(writer: TableWriter, partition: number, store: ObjectStore): Promise<boolean> {
    const { random, report } = this;
    const { track, batches } = this.partitions[partition]!;
    const from = progressOf(await writer.table.refresh());
    const next = Number(from.get(track) ?? 0);
    // Of two that hold a partition the slower one takes nothing back.
    expect(next).toBeGreaterThanOrEqual(this.reached.get(track) ?? 0);
    this.reached.set(track, next);
    if (next === batches.length) return false;
    const to = new Map([[track, String(next + 1)]]);
    const inBulk = random.chance(this.bulk);
    const result = inBulk
      ? await writer.bulk(batches[next]!, { from, to })
      : await writer.upsert(batches[next]!, { from, to, ...this.claim(partition) });
    for (const offer of this.late.splice(0)) offer();
    if (inBulk && result.kind === "committed") report.bulk++;
    if (result.kind === "committed") report.overtaken += result.overtaken;
    if (result.kind === "conflict")
      report.conflicts.set(result.reason, (report.conflicts.get(result.reason) ?? 0) + 1);
    if (random.chance(0.3)) await this.compact(writer);
    if (random.chance(this.replaced)) await this.replaceTenant(writer, store);
    if (random.chance(0.15)) report.swept += await new Sweep(writer.table).run();
    return true;
  }

  private async replaceTenant({ table }: TableWriter, store: ObjectStore): Promise<void> {
    const { random, duck, root, report, opened, partitions } = this;
    const tenant = random.pick(TENANTS);
    const folder = `side-${this.sides++}`;
    const side = await TableWriter.open(store, duck, `${root}/${folder}`, { checkpointEvery: 6 });
    opened.push(side);
    const taken = new Map<string, number>();
    await TenantReplacement.run(table, tenant, async (replacement) => {
      for (let tries = 0; tries < 10; tries++) {
        const progress = progressOf(await table.refresh());
        for (const { track, batches } of partitions) {
          const end = Number(progress.get(track) ?? 0);
          for (const batch of batches.slice(taken.get(track) ?? 0, end)) {
            const own = batch.filter((write) => write.tenant === tenant);
            if (own.length > 0) await side.upsert(own);
          }
          taken.set(track, end);
        }
        const { kind } = await replacement.commit(side.table, folder, { actions: [], expect: new Map() });
        if (kind !== "committed") continue;
        report.replaced++;
        return;
      }
    });
  }

  private claim(partition: number): { slots?: Slots } {
    const { random, partitions } = this;
    if (this.claims === "none") return {};
    if (this.claims === "moving" && random.chance(0.3)) {
      const count = 1 + random.below(4);
      return { slots: claimOf(random.below(count), count) };
    }
    return { slots: claimOf(partition, partitions.length) };
  }

  private async compact({ writer, connection, table }: TableWriter): Promise<void> {
    const { random } = this;
    const { files } = table.snapshot;
    let sources: readonly TableFile[] | undefined = planCompaction(
      table.snapshot,
      2,
      undefined,
      layoutOf(table),
    );
    if (sources === undefined || random.chance(0.5)) {
      const tombstones = random.chance(0.3);
      sources = random.shuffle(files.filter((file) => file.tombstones === tombstones)).slice(0, 4);
    }
    if (sources.length === 0) return;
    const { kind } = await compactUpserted(writer, connection, sources);
    if (kind === "compacted") this.report.compactions++;
  }

  private async expectSound(): Promise<void> {
    const fresh = await this.open(this.store);
    const writes = this.partitions.flatMap(({ batches }) => batches.flat());
    expect(await fresh.rows()).toEqual(expectedRows(writes));
    expect((await verifyTable(fresh.table)).problems).toEqual([]);
    const reached = progressOf(fresh.table.snapshot);
    for (const { track, batches } of this.partitions) expect(reached.get(track)).toBe(String(batches.length));
    await fresh.table.settled();
    for (const { writer, alive } of this.ended) {
      if (alive && this.indexBytes === AMPLE) expect(await writer.checkIndex()).toEqual([]);
      await writer.table.settled();
    }
  }
}
