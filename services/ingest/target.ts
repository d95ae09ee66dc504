import { setTimeout as sleep } from "node:timers/promises";
import type { DuckDBConnection } from "@duckdb/node-api";
import { TributaryError } from "../base/errors.js";
import { Envelope } from "../contracts/envelope.js";
import type { BoundModel } from "../models/bind.js";
import { DeltaTable } from "../table/delta-table.js";
import { aheadOf, type Progress, progressAlong, progressOf, type Track } from "../table/progress.js";
import type { UpsertWriter } from "../table/upsert.js";
import { bury } from "./burial.js";
import { CatchUp, type CatchUpOptions } from "./catch-up.js";
import type { IngestContext } from "./context.js";
import type { EventBatch } from "./event-batch.js";
import { type Taking, takeIn } from "./intake.js";
import type { Poison } from "./model-failure.js";
import { slicesOf } from "./payloads.js";
import { Rebuild } from "./rebuild.js";
import { Refiner } from "./refine.js";
import { AHEAD, isOf, refinedRoot, refinedSpec } from "./refined-table.js";
import { givesWayTo, type SideTable, SideTables } from "./side-tables.js";
import { tellStep } from "./tracing.js";

/** Slices of a live batch that are taken in at once; what is beyond them is for the catch-up, which raw never waits for. */
const LIVE_SLICES = 2;

/** How often a worker looks whether another one has built a table anew. */
const REBUILD_LOOK_MS = 1_000;

/** One model and its refined table, as its lane sees them. */
export class Target {
  private constructor(
    private readonly context: IngestContext,
    readonly model: BoundModel,
    private readonly connection: DuckDBConnection,
    private readonly refiner: Refiner,
    private upserts: UpsertWriter,
  ) {}

  static async open(context: IngestContext, model: BoundModel): Promise<Target> {
    const { duck, registry } = context;
    const connection = await duck.connect();
    try {
      const refiner = new Refiner(connection, registry, model, context.config.ingest.modelTimeoutMs);
      await refiner.prepare();
      const spec = await refinedSpec(connection, model);
      const table = await DeltaTable.openOrCreate(
        context.store,
        refinedRoot(model),
        duck,
        context.tableOptions,
        spec,
      );
      return new Target(context, model, connection, refiner, context.writerFor(table, model.entityType));
    } catch (error) {
      connection.closeSync();
      throw error;
    }
  }

  get writer(): UpsertWriter {
    return this.upserts;
  }

  get table(): DeltaTable {
    return this.upserts.table;
  }

  /** The table was made by another model's SQL or descriptor: it serves queries until its successor is built. */
  get outdated(): boolean {
    return !isOf(this.table.snapshot, this.model);
  }

  /** Where the table stands, on every stream. */
  get progress(): Progress {
    return progressOf(this.table.snapshot);
  }

  /**
   * Whether the table has taken in all that raw has along our tracks and these, so that a live batch of them is the next
   * for it too.
   */
  inStep(raw: Progress, along: ReadonlySet<Track> = new Set()): boolean {
    if (this.outdated) return false;
    const own = this.progress;
    const isLevel = (track: Track) => own.get(track) === raw.get(track);
    return (
      [...along].every(isLevel) && [...raw.keys()].every((track) => isLevel(track) || !this.isOurs(track))
    );
  }

  private isOurs(track: Track): boolean {
    return this.context.ours.has(this.model.name, track);
  }

  /**
   * Takes in a live batch. `landed` tells whether raw has it; without it nothing is committed. Afterwards the table
   * may not be in step: another writer was here, or the batch is too heavy to be waited for.
   */
  async refine(batch: EventBatch, landed: Promise<boolean>): Promise<void> {
    const { stream } = batch;
    let from = this.progress;
    const fresh = batch.afterProgress(from);
    if (fresh.count === 0) return;
    let slices = 0;
    for await (const slice of slicesOf(fresh, this.context.decoding)) {
      if (slices++ === LIVE_SLICES) return;
      const to = progressAlong(stream, slice.events.reached());
      const taken = await takeIn(this.refiner, this.upserts, slice, {
        from,
        to,
        slots: this.context.ours.slots,
        landed,
        suspects: this.context.suspects,
        setAside: (events, poison) => bury(this.context, this.model, events, poison),
      });
      if (taken.kind !== "taken") return;
      tellStep(this.context, "tributary.refine", slice.events, { model: this.model.name });
      from = new Map([...from, ...to]);
    }
  }

  /**
   * Brings the table to where raw stands now, reading raw alone; rebuilds it first when it is outdated. `signal` makes
   * it give up; `between` as of CatchUpOptions. Errors: TRB-TABLE-CORRUPT when it is ahead of raw, TRB-MODEL-SUPERSEDED while another worker has a newer model of it.
   */
  async catchUp(raw: DeltaTable, signal: AbortSignal, between?: CatchUpOptions["between"]): Promise<void> {
    await this.table.refresh();
    const rebuild = new Rebuild(this.context, this.table, this.refiner, this.connection, signal);
    const { crew } = this.context;
    while (this.outdated) {
      if (givesWayTo(this.table.snapshot, this.model.fingerprint, crew)) {
        throw new TributaryError("TRB-MODEL-SUPERSEDED");
      }
      if (crew.tends(this.model.name)) {
        await rebuild.run(raw);
        await this.upserts.close();
        this.upserts = this.context.writerFor(this.table, this.model.entityType);
      } else {
        await sleep(REBUILD_LOOK_MS, undefined, { signal, ref: false });
        await this.table.refresh();
      }
    }
    if (crew.tends(this.model.name)) await rebuild.clean();
    const ahead = aheadOf(this.progress, progressOf(await raw.refresh()));
    // To build it anew unasked might take the last copy of what raw has lost.
    if (ahead.length > 0) throw new TributaryError("TRB-TABLE-CORRUPT", AHEAD);
    const options = {
      express: true,
      signal,
      isOurs: (track: Track) => this.isOurs(track),
      ...(between === undefined ? {} : { between }),
    };
    await new CatchUp(this.context, this.refiner, this.upserts, raw, options).run();
  }

  /**
   * Applies stored events again without moving positions: redrive of dead letters. Those that the model can digest
   * are in the table when this resolves, and in what is built beside it and may have passed them by; the others are
   * returned, as indices into `events`. Errors: TRB-MODEL-INVALID when the table is another model's, or is going to be.
   */
  async reapply(events: EventBatch): Promise<Poison[]> {
    const sides = new SideTables(this.context, this.table, this.model, this.connection);
    for (;;) {
      const { replacedAt } = await this.table.refresh();
      const side = sides.underWay();
      // Before the commit to the table itself: who takes the other one over looks at it once more behind that.
      const beside =
        side === undefined ? [] : await this.applyBeside(await sides.open(side.folder), side, events);
      const failed = await this.apply(this.upserts, events);
      const now = await this.table.refresh();
      if (now.replacedAt === replacedAt && sides.underWay()?.folder === side?.folder)
        return [...new Map([...beside, ...failed].map((one) => [one.event, one])).values()];
    }
  }

  private async applyBeside(
    table: DeltaTable,
    { tenant }: Pick<SideTable, "tenant">,
    events: EventBatch,
  ): Promise<Poison[]> {
    const writer = this.context.writerFor(table, this.model.entityType);
    try {
      return await this.apply(writer, events, tenant);
    } finally {
      await writer.close();
      await table.settled();
    }
  }

  /** Of one tenant alone where that is given. */
  private async apply(writer: UpsertWriter, events: EventBatch, tenant?: string): Promise<Poison[]> {
    const failed = new Map<number, Poison>();
    const taking: Taking = {
      from: NOWHERE,
      to: NOWHERE,
      landed: Promise.resolve(true),
      setAside: async (some, poison) => {
        for (const one of poison) {
          const event = events.bytes.findIndex(
            (bytes, i) => bytes === some.bytes[one.event] && events.starts[i] === some.starts[one.event],
          );
          failed.set(event, { ...one, event });
        }
      },
    };
    const envelope = new Envelope();
    const isOf = (i: number) => {
      events.read(i, envelope);
      return envelope.tenantId() === tenant;
    };
    const own = tenant === undefined ? events : events.filter(isOf);
    for (let done = false; !done; ) {
      done = true;
      await writer.table.refresh();
      for await (const slice of slicesOf(own, this.context.decoding)) {
        const taken = await takeIn(this.refiner, writer, slice, taking);
        // Nothing is in, and what the other model makes of the events is its own.
        if (taken.kind === "given-up") throw changed(this.model.name);
        // Another writer was here. An upsert may be repeated.
        if (taken.kind === "conflict") done = false;
      }
    }
    return [...failed.values()];
  }

  /** Resolves when no log checkpoint is being written any more, and nothing read. */
  async close(): Promise<void> {
    await this.upserts.close();
    this.connection.closeSync();
    await this.table.settled();
  }
}

const NOWHERE: Progress = new Map();

/** For who would apply events to a table that another model has made, or is going to. */
export const changed = (name: string): TributaryError =>
  new TributaryError("TRB-MODEL-INVALID", `${name}: the model has changed; ingest rebuilds its table first`);
