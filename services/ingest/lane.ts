import type { DuckDBConnection } from "@duckdb/node-api";
import { hasCode, TributaryError } from "../base/errors.js";
import { Turns } from "../base/turns.js";
import { within } from "../base/within.js";
import { append } from "../table/append.js";
import { DeltaTable } from "../table/delta-table.js";
import { type Progress, positionsOf, progressAlong, progressOf, type Track } from "../table/progress.js";
import { requireLanded, type SameBy } from "./already-landed.js";
import type { IngestContext } from "./context.js";
import type { EventBatch } from "./event-batch.js";
import { ModelSeat } from "./model-seat.js";
import { keepPayloads } from "./payloads.js";
import { rawRoot, rawSpec } from "./raw-table.js";
import { RawWriter } from "./raw-writer.js";
import type { Target } from "./target.js";
import { tellStep } from "./tracing.js";

/** How long landing waits for models that open beside their raw table. */
const OPEN_PATIENCE_MS = 2_000;

/**
 * One entity type: its raw table, and the models that read it. Batches land one after the other: raw first, then
 * every model that is in step; a model that is not catches up from raw by itself and never holds the others up.
 */
export class Lane {
  private readonly turns = new Turns();
  private readonly stopping = new AbortController();
  private readonly seats: readonly ModelSeat[];
  /** A batch has failed: it comes first again, or raw would have a gap. */
  private failed = false;
  /** Log checkpoints of raw's earlier table objects. */
  private settling: Promise<unknown> = Promise.resolve();

  private constructor(
    private readonly context: IngestContext,
    readonly entityType: string,
    private table: DeltaTable,
    private readonly connection: DuckDBConnection,
    private readonly writer: RawWriter,
    readonly fatal: (error: unknown) => void,
  ) {
    this.seats = context.models
      .filter((model) => model.entityType === entityType)
      .map((model) => new ModelSeat(context, model, this));
  }

  /**
   * Resolves when raw is open; models open beside it. `fatal` is told of a model's error that only a new process helps
   * against. Errors: what opening a table throws.
   */
  static async open(
    context: IngestContext,
    entityType: string,
    fatal: (error: unknown) => void,
  ): Promise<Lane> {
    const table = await openRaw(context, entityType);
    const connection = await context.duck.connect();
    const lane = new Lane(context, entityType, table, connection, new RawWriter(connection), fatal);
    for (const seat of lane.seats) seat.check(lane.rawProgress());
    return lane;
  }

  /**
   * Resolves when the models have had their first try to get in step, or their time: one that misses the first batch
   * has to catch up behind live traffic for as long as that is dense.
   */
  async modelsTried(): Promise<void> {
    await within(OPEN_PATIENCE_MS, Promise.all(this.seats.map(({ firstTry }) => firstTry)));
  }

  get raw(): DeltaTable {
    return this.table;
  }

  /** The models whose tables are open. */
  get targets(): readonly Target[] {
    return this.seats.map(({ target }) => target).filter((target) => target !== undefined);
  }

  /** Names of its tables. */
  get tables(): readonly string[] {
    return [`raw/${this.entityType}`, ...this.seats.map(({ model }) => model.name)];
  }

  rawProgress(): Progress {
    return progressOf(this.table.snapshot);
  }

  private rawPositions(stream: string): Map<string, string> {
    return positionsOf(this.table.snapshot, stream);
  }

  /** Reads raw's log from scratch: what is in memory may be what is wrong. */
  reopen(): Promise<void> {
    return this.exclusively(async () => {
      this.use(await openRaw(this.context, this.entityType));
    });
  }

  /** Takes in what others have done to the tables. */
  look(): Promise<void> {
    return this.exclusively(async () => {
      // Before raw: then what others have made of it is never ahead of it here.
      await Promise.all(this.targets.map(({ table }) => table.refresh()));
      await this.table.refresh();
      const raw = this.rawProgress();
      for (const seat of this.seats) seat.check(raw);
    });
  }

  private use(table: DeltaTable): void {
    this.settling = Promise.all([this.settling, this.table.settled()]);
    this.table = table;
    this.failed = false;
  }

  /** Runs `work` while raw takes nothing, then reads its log from scratch. */
  repaired<T>(work: () => Promise<T>): Promise<T> {
    return this.exclusively(async () => {
      const result = await work();
      // Where something was left to be mended, the next landing fails and tells of it.
      this.failed = true;
      await openRaw(this.context, this.entityType).then(
        (table) => this.use(table),
        () => undefined,
      );
      return result;
    });
  }

  /**
   * Resolves when every event of the batch is in raw, and in the models that are in step. One try: when it rejects,
   * the batch may have landed all the same; nothing lands until `reopen`, and then it must come first.
   */
  land(batch: EventBatch): Promise<void> {
    return this.exclusively(async () => {
      this.requireSound();
      this.failed = true;
      await this.landAll(batch, "moment");
    });
  }

  /**
   * As `land`, of events that lie elsewhere until they have landed, and that may be made again there: the entity, not the
   * moment, tells whether raw has them. Errors: TRB-STREAM-CORRUPT, upon which others land as before.
   */
  landBeside(batch: EventBatch): Promise<void> {
    return this.exclusively(async () => {
      this.requireSound();
      this.failed = true;
      try {
        await this.landAll(batch, "entity");
      } catch (error) {
        // Found before anything is written: raw has no gap that the batch must fill first.
        if (hasCode(error, "TRB-STREAM-CORRUPT")) this.failed = false;
        throw error;
      }
    });
  }

  private requireSound(): void {
    this.stopping.signal.throwIfAborted();
    if (this.failed)
      throw new TributaryError("TRB-STORE-FAILED", `${this.entityType}: a batch before this failed`);
  }

  private async landAll(batch: EventBatch, sameBy: SameBy): Promise<void> {
    let rest = await this.fresh(batch, sameBy);
    while (rest.count > 0 && !(await this.landAndRefine(rest))) {
      // Another worker has landed some of it.
      await this.table.refresh();
      rest = await this.fresh(batch, sameBy);
    }
    // Also after an empty batch: the commit of a first try may have happened and its models been told otherwise.
    const raw = this.rawProgress();
    for (const seat of this.seats) seat.check(raw);
    this.failed = false;
  }

  /** The events that raw lacks. Errors: TRB-STREAM-CORRUPT when it has others in the place of the rest. */
  private async fresh(batch: EventBatch, sameBy: SameBy): Promise<EventBatch> {
    const positions = this.rawPositions(batch.stream);
    const fresh = batch.after(positions);
    if (fresh.count < batch.count) {
      const { connection, entityType, table } = this;
      const view = { table, snapshot: table.snapshot, connection, entityType };
      await requireLanded(view, batch, positions, sameBy);
    }
    return fresh;
  }

  /** False when another worker was faster; nothing was changed then. */
  private async landAndRefine(batch: EventBatch): Promise<boolean> {
    await keepPayloads(batch, this.context.decoding.offloaded);
    const before = this.rawProgress();
    const along: ReadonlySet<Track> = new Set(progressAlong(batch.stream, batch.reached()).keys());
    const ready = this.seats.filter((seat) => seat.takes(before, along));
    const landed = this.landRaw(batch);
    // Models run while raw is written; their commits wait for raw's.
    const gate = landed.catch(() => false);
    const refined = ready.map((seat) => seat.refine(batch, gate));
    // A model that is still at it would be in the way of the next try.
    await Promise.allSettled([landed, ...refined]);
    if (!(await landed)) return false;
    this.context.metrics.events.inc(batch.count);
    return true;
  }

  private async landRaw(batch: EventBatch): Promise<boolean> {
    const result = await append(this.table, batch.stream, this.rawPositions(batch.stream), async (path) => ({
      file: await this.writer.write(batch, path),
      to: batch.reached(),
    }));
    if (result.kind === "conflict") {
      this.context.metrics.conflicts.inc({ layer: "raw" });
      return false;
    }
    this.context.metrics.commits.inc({ layer: "raw" });
    tellStep(this.context, "tributary.land", batch, { table: this.table.root });
    return true;
  }

  /** True while a model of this lane is not in step with raw. */
  get behind(): boolean {
    return this.seats.some((seat) => seat.behind);
  }

  /** The seat of a model of this lane. */
  seat(model: string): ModelSeat | undefined {
    return this.seats.find((seat) => seat.model.name === model);
  }

  /** Runs `work` between batches. */
  exclusively<T>(work: () => Promise<T>): Promise<T> {
    return this.turns.run(work);
  }

  /** Lets the running batch finish and gives up catch-ups; nothing writes the tables any more when it resolves. */
  async close(): Promise<void> {
    this.stopping.abort();
    await Promise.allSettled([this.turns.settled(), ...this.seats.map((seat) => seat.close())]);
    await Promise.all([this.settling, this.table.settled()]);
    this.connection.closeSync();
  }
}

const openRaw = ({ store, duck, tableOptions }: IngestContext, entityType: string): Promise<DeltaTable> =>
  DeltaTable.openOrCreate(store, rawRoot(entityType), duck, tableOptions, rawSpec(entityType));
