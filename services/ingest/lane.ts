import { setTimeout as sleep } from "node:timers/promises";
import type { DuckDBConnection } from "@duckdb/node-api";
import { TributaryError } from "../base/errors.js";
import { Turns } from "../base/turns.js";
import { Feed } from "../columns/feed.js";
import { append } from "../table/append.js";
import { DeltaTable } from "../table/delta-table.js";
import { positionsOf } from "../table/progress.js";
import type { IngestContext } from "./context.js";
import type { EventBatch } from "./event-batch.js";
import { RAW_BOUNDS, RawRows, rawRoot, rawSpec } from "./raw-table.js";
import { Target } from "./target.js";

let feeds = 0;
const RETRY_MS = 250;
const MAX_RETRY_MS = 10_000;

/**
 * One entity type: its raw table, and the models that read it. Batches land one after the other: raw first, then
 * every model that is in step; a model that is not catches up from raw by itself and never holds the others up.
 */
export class Lane {
  private readonly turns = new Turns();
  private readonly catchingUp = new Set<Target>();
  private readonly stopping = new AbortController();
  private readonly catchUps = new Set<Promise<void>>();

  private constructor(
    private readonly context: IngestContext,
    readonly entityType: string,
    readonly raw: DeltaTable,
    private readonly connection: DuckDBConnection,
    private readonly rows: RawRows,
    private readonly feed: Feed,
    readonly targets: readonly Target[],
  ) {}

  static async open(context: IngestContext, entityType: string): Promise<Lane> {
    const { store, duck, tableOptions } = context;
    const raw = await DeltaTable.openOrCreate(
      store,
      rawRoot(entityType),
      duck,
      tableOptions,
      rawSpec(entityType),
    );
    const connection = await duck.connect();
    const rows = new RawRows();
    const feed = Feed.register(connection, `tributary_raw_${++feeds}`, rows.columns);
    const targets = await Promise.all(
      context.models
        .filter((model) => model.entityType === entityType)
        .map((model) => Target.open(context, model)),
    );
    const lane = new Lane(context, entityType, raw, connection, rows, feed, targets);
    for (const target of targets) if (!target.inStep(lane.rawPositions())) lane.startCatchUp(target);
    return lane;
  }

  private rawPositions(): Map<string, string> {
    return positionsOf(this.raw.snapshot, this.context.stream);
  }

  /** Resolves when every event of the batch is in raw, and in the models that are in step. Retries until then. */
  land(batch: EventBatch): Promise<void> {
    return this.exclusively(async () => {
      // After a batch that was given up a later one must not land: raw would have a gap.
      this.stopping.signal.throwIfAborted();
      for (let wait = RETRY_MS, failed = false; ; wait = Math.min(wait * 2, MAX_RETRY_MS)) {
        try {
          if (failed) await this.raw.refresh();
          return await this.landOnce(batch.after(this.rawPositions()));
        } catch (error) {
          failed = true;
          if (this.stopping.signal.aborted) throw error;
          this.context.log.error({ err: error, entityType: this.entityType }, "landing failed; trying again");
          await sleep(wait, undefined, { signal: this.stopping.signal });
        }
      }
    });
  }

  private async landOnce(batch: EventBatch): Promise<void> {
    if (batch.count > 0) await this.landAndRefine(batch);
    // Also after an empty batch: the commit of a first try may have happened and its models been told otherwise.
    const raw = this.rawPositions();
    for (const target of this.targets) if (!target.inStep(raw)) this.startCatchUp(target);
  }

  private async landAndRefine(batch: EventBatch): Promise<void> {
    const before = this.rawPositions();
    const ready = this.targets.filter((target) => !this.catchingUp.has(target) && target.inStep(before));
    const landed = this.landRaw(batch, before);
    // Models run while raw is written; their commits wait for raw's.
    const gate = landed.then(
      () => true,
      () => false,
    );
    const refined = ready.map((target) =>
      target.refine(batch, gate).catch((error: unknown) => {
        this.context.log.error(
          { err: error, model: target.model.name },
          "refining failed; catching up from raw",
        );
      }),
    );
    // A model that is still at it would be in the way of the next try.
    await Promise.allSettled([landed, ...refined]);
    await landed;
    this.context.metrics.events.inc(batch.count);
  }

  private async landRaw(batch: EventBatch, from: Map<string, string>): Promise<void> {
    this.feed.use(this.rows.source(batch, this.context.stream));
    const result = await append(this.raw, this.connection, `SELECT * FROM ${this.feed.name}()`, {
      stream: this.context.stream,
      from,
      to: batch.reached(),
      boundedColumns: RAW_BOUNDS,
    });
    this.feed.clear();
    if (result.kind === "conflict") {
      // Another worker has landed some of it: the rest is tried again beyond the new positions.
      throw new TributaryError(
        "TRB-STORE-FAILED",
        `${this.entityType}: another writer landed events (${result.reason})`,
      );
    }
    this.context.metrics.commits.inc({ layer: "raw" });
  }

  /** Brings a model in step with raw beside live traffic; only the last step keeps live batches waiting. */
  private startCatchUp(target: Target): void {
    if (this.catchingUp.has(target) || this.stopping.signal.aborted) return;
    this.catchingUp.add(target);
    this.context.metrics.behind.set({ model: target.model.name }, 1);
    const task = this.catchUp(target).finally(() => this.catchUps.delete(task));
    this.catchUps.add(task);
  }

  private async catchUp(target: Target): Promise<void> {
    for (let wait = RETRY_MS; !this.stopping.signal.aborted; wait = Math.min(wait * 2, MAX_RETRY_MS)) {
      try {
        await target.catchUp(this.raw);
        await this.exclusively(async () => {
          await target.catchUp(this.raw);
          this.catchingUp.delete(target);
        });
        this.context.metrics.behind.set({ model: target.model.name }, 0);
        return;
      } catch (error) {
        if (this.stopping.signal.aborted) return;
        this.context.log.error({ err: error, model: target.model.name }, "catching up failed; trying again");
        await sleep(wait, undefined, { signal: this.stopping.signal }).catch(() => undefined);
      }
    }
  }

  /** True while a model of this lane is not in step with raw. */
  get behind(): boolean {
    return this.catchingUp.size > 0;
  }

  /** Runs `work` between batches. */
  exclusively<T>(work: () => Promise<T>): Promise<T> {
    return this.turns.run(work);
  }

  /** Lets the running batch finish and gives up retries and catch-ups. */
  async close(): Promise<void> {
    this.stopping.abort();
    await Promise.allSettled([this.turns.settled(), ...this.catchUps]);
    for (const target of this.targets) target.close();
    this.connection.closeSync();
  }
}
