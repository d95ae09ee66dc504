import type { DuckDBConnection } from "@duckdb/node-api";
import { TributaryError } from "../../base/errors.js";
import { bury, type Originals } from "../../ingest/burial.js";
import { CatchUp, type CatchUpOptions, type Portion } from "../../ingest/catch-up.js";
import type { IngestContext } from "../../ingest/context.js";
import type { EventBatch } from "../../ingest/event-batch.js";
import { takeIn } from "../../ingest/intake.js";
import type { Poison } from "../../ingest/model-failure.js";
import { slicesOf } from "../../ingest/payloads.js";
import { Refiner } from "../../ingest/refine.js";
import { isOf, refinedSpec } from "../../ingest/refined-table.js";
import { readRange, type Selection } from "../../ingest/replay.js";
import { type SideTable, SideTables } from "../../ingest/side-tables.js";
import type { BoundModel } from "../../models/bind.js";
import type { CommitResult } from "../../table/commit-request.js";
import type { DeltaTable } from "../../table/delta-table.js";
import { type Progress, progressOf } from "../../table/progress.js";
import { replaceTable } from "../../table/replace.js";
import { TenantReplacement } from "../../table/replace-tenant.js";
import { MOST_OVERTAKEN, type UpsertWriter } from "../../table/upsert.js";
import { hasEnded, type ReplayJob } from "../jobs/job.js";
import type { JobHost, RunJob } from "../jobs/job-run.js";
import { JobStore } from "../jobs/job-store.js";
import { Comparison, type Difference } from "./comparison.js";
import { modelOf, planOf, type ReplayPlan, replayTables, selectionOf } from "./replay-plan.js";
import {
  putReplayReport,
  putSetAside,
  type ReplayReport,
  type SetAside,
  setAsideBy,
} from "./replay-report.js";

/** Keys that a report names. */
const SHOWN = 1000;
/** So many differing entities are looked at again, where the table has moved meanwhile. */
const CONFIRMED = 200_000;
const LOOKS = 3;
/** Places of events that are set aside, told of each reason. */
const PLACES = 20;
const BATCH = { events: 20_000 } as const;
const NOWHERE: Progress = new Map();

/**
 * Runs raw's events into a model again, in a table beside the one that is served, and tells how the two differ; then the
 * one takes the other's place, or one tenant's rows do, in one commit, or nothing does. What is beside stays until the
 * job is done: a run that was killed is gone on with. Errors: TRB-REPLAY-ORDER, TRB-REPLAY-BUSY, TRB-REPLAY-OVERTAKEN,
 * TRB-REPLAY-CROWDED, TRB-REPLAY-PAYLOADS; as `replayTables`; those of tables and of models.
 */
export const runReplay: RunJob<ReplayJob> = async (context, order, host) => {
  const connection = await context.duck.connect();
  try {
    const replay = await Replay.open(context, order, host, connection);
    return await replay.run();
  } catch (error) {
    if (host.signal.aborted) return false;
    throw error;
  } finally {
    connection.closeSync();
  }
};

class Replay {
  private readonly aside = new Map<string, SetAside>();
  private events = 0;
  private bytes = 0;

  private constructor(
    private readonly context: IngestContext,
    private readonly order: ReplayJob,
    private readonly host: JobHost,
    private readonly connection: DuckDBConnection,
    private readonly selection: Selection,
    private readonly refiner: Refiner,
    private readonly raw: DeltaTable,
    /** What is served. */
    private readonly table: DeltaTable,
    private readonly sides: SideTables,
  ) {}

  static async open(
    context: IngestContext,
    order: ReplayJob,
    host: JobHost,
    connection: DuckDBConnection,
  ): Promise<Replay> {
    const selection = selectionOf(order);
    const model = modelOf(context.models, order);
    const { raw, table } = await replayTables(context, model);
    const { registry, config } = context;
    const refiner = new Refiner(connection, registry, model, config.ingest.modelTimeoutMs);
    await refiner.prepare();
    const sides = new SideTables(context, table, model, connection);
    return new Replay(context, order, host, connection, selection, refiner, raw, table, sides);
  }

  private get model(): BoundModel {
    return this.refiner.model;
  }

  async run(): Promise<boolean> {
    const { context, host, order, raw, sides, table } = this;
    // An earlier run ended behind its commit.
    if (sides.hasTaken(order.id)) return true;
    host.tell({ phase: "checking" });
    const plan = planOf(raw.snapshot, this.selection);
    host.tell({ files: plan.files, bytes: plan.bytes, rowsLanded: plan.rows });
    const jobs = new JobStore(context.store);
    const isOver = (id: string) =>
      jobs.get(id).then(
        ({ state }) => hasEnded(state),
        () => true,
      );
    const { id, tenant } = order;
    const side = await sides.begin({ id, isOver, ...(tenant === undefined ? {} : { tenant }) });
    for (const one of side.isNew ? [] : await setAsideBy(context.store, id))
      this.aside.set(`${one.code} ${one.reason}`, one);
    host.tell({ phase: "refining" });
    try {
      const writer = context.writerFor(side.table, this.model.entityType);
      const catchUp = new CatchUp(context, this.refiner, writer, raw, this.optionsFor(writer, plan));
      const difference = await this.compare(side, catchUp);
      const compared = table.snapshot.version;
      // Before the commit: behind it nothing is looked at again.
      await putReplayReport(context.store, this.report(plan, difference, compared));
      await this.requirePayloads(side);
      await this.act(side, catchUp);
      if (order.action === "compare" || this.isPartial) await sides.drop(side);
      host.tell({ bytesDone: plan.bytes, rowsRefined: this.events });
    } finally {
      await side.table.settled();
      await table.settled();
    }
    await sides.clean();
    return true;
  }

  /** The side table is of some of its tenants' events. */
  private get isPartial(): boolean {
    return this.selection.range !== undefined;
  }

  private optionsFor(writer: UpsertWriter, plan: ReplayPlan): CatchUpOptions {
    const { host, sides, selection, order } = this;
    return {
      express: false,
      isOurs: () => true,
      signal: host.signal,
      only: selection,
      between: async (read: Portion) => {
        this.events += read.rows;
        this.bytes += read.bytes;
        const share = plan.rows === 0 ? 0 : Math.min(1, this.events / plan.rows);
        host.tell({ rowsRefined: this.events, bytesDone: Math.floor(share * plan.bytes) });
        await host.pace(read);
        await sides.compact(writer);
      },
      setAside: (events, poison, originals) =>
        this.setAside(events, poison, order.action !== "compare", originals),
    };
  }

  /** Events that no row comes of are told of; where their rows go they become dead letters, to be redriven. */
  private async setAside(
    events: EventBatch,
    poison: readonly Poison[],
    buried: boolean,
    originals?: Originals,
  ): Promise<void> {
    for (const { event, code, reason } of poison) {
      const key = `${code} ${reason}`;
      const { events: count, places } = this.aside.get(key) ?? { events: 0, places: [] };
      const place = {
        stream: events.stream,
        partition: events.partitions[event]!,
        position: events.positions[event]!,
      };
      const more = places.length < PLACES ? [...places, place] : places;
      this.aside.set(key, { code, reason, events: count + 1, places: more });
    }
    await putSetAside(this.context.store, this.order.id, [...this.aside.values()]);
    if (buried) await bury(this.context, this.model, events, poison, originals);
  }

  /** Brings the side table to where the served one stands: neither is ahead of the other. Resolves to that. */
  private async level(catchUp: CatchUp): Promise<Progress> {
    const goal = progressOf(await this.table.refresh());
    await catchUp.run(goal);
    return goal;
  }

  private async compare(side: SideTable, catchUp: CatchUp): Promise<Difference> {
    const { table } = this;
    // What takes long first; what has come meanwhile is little.
    await this.level(catchUp);
    await this.level(catchUp);
    const { tenant } = this.selection;
    return this.context.duck.with(async (connection) => {
      const options = { partial: this.isPartial, ...(tenant === undefined ? {} : { tenant }) };
      const comparison = new Comparison(connection, options);
      await comparison.look(table, side.table);
      // A table that was just catching up may have been ahead of its positions.
      for (let look = 1; look < LOOKS; look++) {
        this.host.signal.throwIfAborted();
        const differing = await comparison.differing();
        if (differing === 0 || differing > CONFIRMED) break;
        const { version } = table.snapshot;
        await this.level(catchUp);
        if (table.snapshot.version === version) break;
        await comparison.lookAgain(table, side.table);
      }
      return comparison.difference(table, side.table, SHOWN);
    });
  }

  /** A table must not lose rows because their payloads have been lost, unless somebody says so. */
  private async requirePayloads(side: SideTable): Promise<void> {
    const { action, incomplete } = this.order;
    if (action === "compare" || incomplete) return;
    const lost = [...this.aside.values()].filter(({ code }) => NO_PAYLOAD.has(code));
    const events = lost.reduce((sum, one) => sum + one.events, 0);
    if (events === 0) return;
    // Who resumes the job has put them back: events that were passed by are run only by one that begins anew.
    await this.sides.drop(side);
    throw new TributaryError("TRB-REPLAY-PAYLOADS", `${events} events have no payload any more`);
  }

  private async act(side: SideTable, catchUp: CatchUp): Promise<void> {
    const { action } = this.order;
    if (action === "swap") await this.swap(side, catchUp);
    else if (action === "repair" && this.isPartial) await this.again();
    else if (action === "repair") await this.repair(side, catchUp, this.selection.tenant!);
  }

  /** Both take the side table's files over at the very place where the served one stands, or try again. */
  private async swap(side: SideTable, catchUp: CatchUp): Promise<void> {
    const { table } = this;
    const spec = await refinedSpec(this.connection, this.model);
    await this.untilFirst(catchUp, () =>
      replaceTable(table, side.table, side.folder, spec, this.takenOver(side)),
    );
  }

  private repair(side: SideTable, catchUp: CatchUp, tenant: string): Promise<void> {
    const { table } = this;
    return TenantReplacement.run(table, tenant, (replacement) =>
      this.untilFirst(catchUp, async () => {
        if (!isOf(table.snapshot, this.model)) throw new TributaryError("TRB-REPLAY-OVERTAKEN");
        return replacement.commit(side.table, side.folder, this.takenOver(side));
      }),
    );
  }

  /** Both tables are at one place before each try. Errors: TRB-REPLAY-CROWDED; the job is tried again after a pause. */
  private async untilFirst(catchUp: CatchUp, commit: () => Promise<CommitResult>): Promise<void> {
    for (let tries = 0; tries < MOST_OVERTAKEN; tries++) {
      await this.level(catchUp);
      if ((await commit()).kind === "committed") return;
    }
    throw new TributaryError("TRB-REPLAY-CROWDED");
  }

  private takenOver(side: SideTable) {
    const also = this.sides.takenOver(side);
    if (also === undefined) throw new TributaryError("TRB-REPLAY-OVERTAKEN");
    return also;
  }

  /** Runs the selected events into the served table itself: each upsert leaves it right, whatever comes beside it. */
  private async again(): Promise<void> {
    const { context, raw, refiner, table, host } = this;
    const { entityType } = this.model;
    const writer = context.writerFor(table, entityType);
    const goal = progressOf(await table.refresh());
    const snapshot = await raw.refresh();
    await context.duck.with(async (connection) => {
      const view = { table: raw, snapshot, connection, entityType, only: this.selection };
      const limits = { ...BATCH, bytes: context.decoding.sliceBytes };
      await readRange(view, NOWHERE, goal, limits, async (batch) => {
        await host.pace({ rows: batch.count, bytes: batch.byteCount });
        for (let done = false; !done; ) {
          host.signal.throwIfAborted();
          done = await this.takeAgain(batch, writer, refiner);
        }
        return true;
      });
    });
  }

  /** False when another writer was here. */
  private async takeAgain(batch: EventBatch, writer: UpsertWriter, refiner: Refiner): Promise<boolean> {
    await this.table.refresh();
    for await (const slice of slicesOf(batch, this.context.decoding)) {
      const { kind } = await takeIn(refiner, writer, slice, {
        from: NOWHERE,
        to: NOWHERE,
        again: true,
        landed: Promise.resolve(true),
        suspects: this.context.suspects,
        // They were told of, and buried, when they were run beside.
        setAside: async () => undefined,
      });
      if (kind === "given-up") throw new TributaryError("TRB-REPLAY-OVERTAKEN");
      if (kind === "conflict") return false;
    }
    return true;
  }

  private report(plan: ReplayPlan, difference: Difference, version: number): ReplayReport {
    const { id: job, model, tenant, from, until, action } = this.order;
    return {
      job,
      model,
      ...(tenant === undefined ? {} : { tenant }),
      ...(from === undefined ? {} : { from }),
      ...(until === undefined ? {} : { until }),
      action,
      plan,
      events: this.events,
      setAside: [...this.aside.values()],
      difference,
      version,
      comparedAt: new Date().toISOString(),
    };
  }
}

/** Why there is no payload: no fault of the model, and perhaps none of the payload's for ever. */
const NO_PAYLOAD: ReadonlySet<string> = new Set(["TRB-EVENT-PAYLOAD-MISSING", "TRB-EVENT-PAYLOAD-CORRUPT"]);
