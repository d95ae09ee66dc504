import { cpSync, rmSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect } from "vitest";
import { rowsOf } from "../../services/base/duckdb.js";
import type { FileOps } from "../../services/base/files.js";
import type { IngestContext } from "../../services/ingest/context.js";
import { DeadLetterBox } from "../../services/ingest/dead-letter-box.js";
import type { EventBatch } from "../../services/ingest/event-batch.js";
import { Lane } from "../../services/ingest/lane.js";
import { rawRoot } from "../../services/ingest/raw-table.js";
import { FileStore } from "../../services/storage/file-store.js";
import { commitKey } from "../../services/table/actions.js";
import { compactAppended, compactUpserted } from "../../services/table/compact.js";
import { locateVector } from "../../services/table/deletion-vector.js";
import { readCommit } from "../../services/table/delta-log.js";
import { DeltaTable } from "../../services/table/delta-table.js";
import { type Progress, progressAlong } from "../../services/table/progress.js";
import { withScan } from "../../services/table/scan.js";
import { Sweep } from "../../services/table/sweep.js";
import { FAULTS, FaultFiles, type FileFault, filesBelow, makeAside } from "./fault-files.js";
import {
  expectedThings,
  Lake,
  liveRows,
  Random,
  randomEvents,
  type TestEvent,
  TestStream,
  THING,
  THINGS_SQL,
  temporaryFolder,
  unsyncedFiles,
} from "./lake.js";

/** Another model of the same table with the same rows: what it is rebuilt for. */
const CHANGED_SQL = `${THINGS_SQL} and true`;
const MODEL = "t.things";
const CHECKPOINT_EVERY = 4;
/** A model that takes longer for so little will never be in step. */
const PATIENCE_MS = 30_000;
/** More than one fault makes fail. */
const TRIES = 8;

export const PHASES = ["landing", "compaction", "log checkpoint", "rebuild"] as const;
export type Phase = (typeof PHASES)[number];

interface Case {
  readonly phase: Phase;
  readonly fault: FileFault;
  /** Number of the file operation. */
  readonly at: number;
  readonly seed: number;
}

const told = (one: Case) => `${one.phase}, ${one.fault} at operation ${one.at}, seed ${one.seed}`;

/**
 * Faults below the object store, one a case: a lake is copied, something is done to it, one file operation meets a fault,
 * the process goes on or is gone, the lake is opened again and landed on. Nothing may be lost, doubled, brought back
 * or left lying about.
 */
export class FaultLake {
  private readonly template = temporaryFolder();
  private readonly stream = new TestStream();
  private before: readonly TestEvent[] = [];
  private beforePositions: readonly string[] = [];
  private beforeProgress: Progress = new Map();
  private cases = 0;

  private constructor(
    private readonly now: Lake,
    private readonly changed: Lake,
    private readonly seed: number,
  ) {}

  static async create(seed: number): Promise<FaultLake> {
    const now = await Lake.create({ checkpointEvery: CHECKPOINT_EVERY });
    const changed = await Lake.create({ models: { things: CHANGED_SQL }, checkpointEvery: CHECKPOINT_EVERY });
    const made = new FaultLake(now, changed, seed);
    const random = new Random(seed);
    const { lane, close } = await made.process(made.template, now, unsyncedFiles);
    for (let i = 0; i < 5; i++) {
      await lane.land(made.stream.batch(randomEvents(random, 8)));
      await settled(lane);
    }
    made.beforeProgress = lane.rawProgress();
    await close();
    made.before = [...made.stream.events];
    made.beforePositions = [...made.stream.positions];
    return made;
  }

  async close(): Promise<void> {
    await this.now.close();
    await this.changed.close();
    rmSync(this.template, { recursive: true, force: true });
  }

  /**
   * What ingest is to one entity type, on a folder and through these files. What fails is tried again, as its supervisor
   * does with a process and a process with a lane.
   */
  private async process(folder: string, lake: Lake, files: FileOps) {
    const staging = join(folder, "staging");
    const store = await again(() => {
      // As a process does when it starts.
      rmSync(staging, { recursive: true, force: true });
      return FileStore.open({ folder: join(folder, "lake"), staging, files });
    });
    const { duck, tableOptions, planner, log } = lake.context;
    const deadLetters = new DeadLetterBox(store, duck, tableOptions, planner, log);
    const context: IngestContext = { ...lake.context, store, deadLetters };
    const lane = await again(() => Lane.open(context, THING, () => undefined));
    return { lane, store, context, close: () => lane.close() };
  }

  /** File operations of a phase that meets no fault. */
  async operationsOf(phase: Phase): Promise<number> {
    return (await this.play({ phase, fault: "EIO", at: Number.POSITIVE_INFINITY, seed: this.seed }))
      .operations;
  }

  /** Runs a case; rejects when it ends badly. `struck`: the fault came about. */
  async run(one: Case): Promise<{ struck: boolean }> {
    try {
      return await this.play(one);
    } catch (error) {
      throw new Error(told(one), { cause: error });
    }
  }

  private async play(one: Case): Promise<{ struck: boolean; operations: number }> {
    const { phase, fault, at, seed } = one;
    const random = new Random(seed * 7919 + at * 31 + FAULTS.indexOf(fault));
    const folder = join(this.template, `case-${this.cases++}`);
    cpSync(join(this.template, "lake"), join(folder, "lake"), { recursive: true });
    const stream = this.stream;
    const batches = [0, 1].map(() => {
      const events = randomEvents(random, 6);
      const from = stream.positions.length;
      return { events, batch: stream.batch(events), positions: stream.positions.slice(from) };
    });
    const lake = phase === "rebuild" ? this.changed : this.now;
    const files = new FaultFiles(await makeAside(join(folder, "aside")));
    const landed = new Map(this.beforeProgress);
    let operations = 0;
    const survives = fault !== "kill" && fault !== "power loss";
    try {
      const first = await this.process(folder, phase === "rebuild" ? this.now : lake, files);
      await settled(first.lane);
      await checkpointed(first.lane);
      // A process that has committed before: its first commit syncs more folders than the later ones, and would hide it
      // when one of these lacked a sync. What is opened anew for a rebuild has not.
      for (const { root } of tablesOf(first.lane)) {
        await first.store.putIfAbsent(commitKey(root, 0), Buffer.alloc(0));
      }
      files.arm(at, fault);
      let { lane, close, store } = first;
      const gone = () => files.victim !== undefined && !survives;
      // Resolves when the process does no more by itself.
      const goOn = async () => {
        const { batch } = batches[0]!;
        await this.work(phase, lane, lake.context, batch).then(
          () => {
            if (phase !== "landing") return;
            for (const [track, position] of progressAlong(batch.stream, batch.reached()))
              landed.set(track, position);
          },
          (error: unknown) => {
            if (files.victim === undefined || reopened) throw error;
          },
        );
        await settled(lane, gone);
        await checkpointed(lane);
      };
      let reopened = false;
      let closed = false;
      const end = async () => {
        if (!closed) await close();
        closed = true;
      };
      if (phase === "rebuild") {
        await close();
        closed = true;
        const second = await this.process(folder, lake, files).catch((error: unknown) => {
          if (!gone()) throw error;
        });
        if (second !== undefined) {
          ({ lane, close, store } = second);
          closed = false;
        }
      }
      if (!closed) await goOn();
      operations = files.count;
      files.disarm();
      // Half of those that live on do so in the same process; the rest are started anew.
      if (survives && files.victim !== undefined && random.chance(0.5)) {
        await lane.reopen();
        reopened = true;
        await goOn();
        const tables = tablesOf(lane);
        await end();
        // What could not be deleted goes with the next occasion.
        for (const table of tables) await table.discard([]);
        const left = phase === "rebuild" ? [] : await orphans(store, tables);
        // A vector that was replaced was named; it is for the sweep.
        const replaced = await vectorsOf(store, tables);
        expect(
          left.filter((key) => !replaced.has(key)),
          `left lying about (${files.victim})`,
        ).toEqual([]);
        // One that could not be deleted goes when the process is started anew.
        const spared = /^unlink .*\/staging\//.test(files.victim) ? 1 : 0;
        const staged = await filesBelow(join(folder, "staging"));
        expect(staged.length, `left in staging (${files.victim}): ${staged}`).toBeLessThanOrEqual(spared);
      }
      files.kill();
      await end();
      if (fault === "power loss") await files.losePower(join(folder, "lake"), random);
      await this.verify(folder, lake, batches, landed, files.victim);
    } finally {
      rmSync(folder, { recursive: true, force: true });
    }
    return { struck: files.victim !== undefined, operations };
  }

  /** What a phase does to a lane whose models are in step, or, to rebuild, will be. */
  private async work(phase: Phase, lane: Lane, context: IngestContext, batch: EventBatch): Promise<void> {
    if (phase === "landing") await lane.land(batch);
    else if (phase === "compaction") await compact(lane, context);
    else if (phase === "log checkpoint") {
      for (const table of tablesOf(lane)) await table.checkpoint();
    }
  }

  private async verify(
    folder: string,
    lake: Lake,
    batches: readonly { events: TestEvent[]; batch: EventBatch; positions: string[] }[],
    landed: Progress,
    victim: string | undefined,
  ): Promise<void> {
    const { lane, store, context, close } = await this.process(folder, lake, unsyncedFiles);
    try {
      // Positions move with the rows, which are counted below.
      const reached = lane.rawProgress();
      for (const [track, position] of landed) {
        expect((reached.get(track) ?? "") >= position, `what was landed is there (${victim})`).toBe(true);
      }
      // The stream hands out again what it was not told to forget.
      for (const { batch } of batches) await lane.land(batch);
      await settled(lane);
      const expected = [...this.beforePositions, ...batches.flatMap((one) => one.positions)].sort();
      expect(await positions(context, store), `each once (${victim})`).toEqual(expected);
      const events = [...this.before, ...batches.flatMap((one) => one.events)];
      const target = lane.targets[0]!;
      const columns = target.model.columns.map(({ name }) => name);
      const tables = [lane.raw, target.table];
      for (const table of tables) {
        const sweep = new Sweep(table);
        await sweep.run(-60_000);
        await sweep.run(-60_000, Date.now() + table.retentionMs + 60_000);
      }
      expect(await orphans(store, tables), `swept (${victim})`).toEqual([]);
      const rows = await context.duck.with((connection) => liveRows(connection, target.table, columns));
      expect(rows, `rows (${victim})`).toEqual(expectedThings(events));
    } finally {
      await close();
    }
  }
}

/** Waits until every model of the lane is in step, without pauses; `giveUp` ends it. */
async function settled(lane: Lane, giveUp: () => boolean = () => false): Promise<void> {
  const end = performance.now() + PATIENCE_MS;
  while (lane.behind && !giveUp()) {
    if (performance.now() > end) throw new Error("a model does not get in step with raw");
    lane.seat(MODEL)?.hurry();
    await sleep(1);
  }
}

async function again<T>(work: () => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await work();
    } catch (error) {
      if (tries === TRIES) throw error;
    }
  }
}

/** Waits until no log checkpoint is being written. */
async function checkpointed(lane: Lane): Promise<void> {
  for (const table of tablesOf(lane)) await table.settled();
}

const tablesOf = (lane: Lane) => [lane.raw, ...lane.targets.map(({ table }) => table)];

async function compact(lane: Lane, { duck }: IngestContext): Promise<void> {
  await duck.with(async (connection) => {
    const order = ["tenant_id", "partition", "position"];
    await compactAppended(lane.raw, connection, lane.raw.snapshot.files, order);
    for (const { table, writer } of lane.targets) {
      for (const tombstones of [false, true]) {
        const sources = table.snapshot.files.filter((file) => file.tombstones === tombstones);
        if (sources.length > 0) await compactUpserted(writer, connection, sources);
      }
    }
  });
}

async function positions(context: IngestContext, store: FileStore): Promise<string[]> {
  const raw = await DeltaTable.open(store, rawRoot(THING), context.duck, context.tableOptions);
  const columns = ["stream", "partition", "position"];
  const rows = await withScan(raw!, raw!.snapshot, { columns }, (sql) =>
    context.duck.with((connection) => rowsOf(connection, sql)),
  );
  return rows.map((row) => row.join("/")).sort();
}

/** Vector files that some commit of the tables has named. */
async function vectorsOf(store: FileStore, tables: readonly DeltaTable[]): Promise<Set<string>> {
  const keys = new Set<string>();
  for (const { root, snapshot } of tables) {
    for (let version = 0; version <= snapshot.version; version++) {
      for (const { add } of (await readCommit(store, root, version)) ?? []) {
        const vectors = add?.deletionVector === undefined ? undefined : locateVector(add.deletionVector);
        if (vectors !== undefined && "path" in vectors) keys.add(`${root}/${vectors.path}`);
      }
    }
  }
  return keys;
}

/** Data and vector files that no table names. */
async function orphans(store: FileStore, tables: readonly DeltaTable[]): Promise<string[]> {
  const keys: string[] = [];
  for (const table of tables) {
    const named = await table.named();
    for await (const { key } of store.list(`${table.root}/`)) {
      if (!key.includes("_delta_log/") && !named.has(key.slice(table.root.length + 1))) keys.push(key);
    }
  }
  return keys;
}
