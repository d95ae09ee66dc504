import type { DuckDBConnection } from "@duckdb/node-api";
import { TributaryError } from "../base/errors.js";
import type { BoundModel } from "../models/bind.js";
import { type Action, removeOf } from "../table/actions.js";
import { definition } from "../table/definition.js";
import { DeltaTable } from "../table/delta-table.js";
import { advancePositions, type Positions, positionsOf } from "../table/progress.js";
import { rebased } from "../table/rebase.js";
import type { UpsertWriter } from "../table/upsert.js";
import type { IngestContext } from "./context.js";
import { EventBatch } from "./event-batch.js";
import { ModelFailure, type Poison, Refiner } from "./refine.js";
import { FINGERPRINT, refinedRoot, refinedSpec } from "./refined-table.js";
import { replayRaw } from "./replay.js";

/** Events a catch-up step upserts at once. */
const REPLAY_BATCH = 20_000;

/** One model and its refined table. */
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
    const refiner = new Refiner(connection, registry, model);
    await refiner.prepare();
    const spec = await refinedSpec(connection, model);
    const table = await DeltaTable.openOrCreate(
      context.store,
      refinedRoot(model),
      duck,
      context.tableOptions,
      spec,
    );
    return new Target(context, model, connection, refiner, context.writerFor(table));
  }

  get writer(): UpsertWriter {
    return this.upserts;
  }

  get table(): DeltaTable {
    return this.upserts.table;
  }

  /** The table was made by another model's SQL or descriptor: it serves queries until its successor is built. */
  get outdated(): boolean {
    return this.table.snapshot.properties.get(FINGERPRINT) !== this.model.fingerprint;
  }

  get positions(): Positions {
    return positionsOf(this.table.snapshot, this.context.stream);
  }

  /** Whether the table has taken in all that raw has, so that the next live batch is the next for it too. */
  inStep(raw: Positions): boolean {
    if (this.outdated) return false;
    const own = this.positions;
    return [...raw].every(([partition, position]) => own.get(partition) === position);
  }

  /** Takes in a live batch. `landed` tells whether raw has it; without it nothing is committed. */
  async refine(batch: EventBatch, landed: Promise<boolean>): Promise<void> {
    const from = this.positions;
    const fresh = batch.after(from);
    await this.take(this.upserts, fresh, from, fresh.reached(), landed);
  }

  /** Brings the table to where raw stands now, reading raw alone; rebuilds it first when it is outdated. */
  async catchUp(raw: DeltaTable): Promise<void> {
    await this.table.refresh();
    if (this.outdated) return this.rebuild(raw);
    await this.replay(this.upserts, raw);
  }

  private async replay(writer: UpsertWriter, raw: DeltaTable): Promise<void> {
    const { stream, duck } = this.context;
    const snapshot = await raw.refresh();
    const from = positionsOf(writer.table.snapshot, stream);
    const to = new Map(
      [...positionsOf(snapshot, stream)].filter(([p, position]) => position > (from.get(p) ?? "")),
    );
    if (to.size === 0) return;
    await duck.with(async (connection) => {
      const batches = replayRaw(raw, snapshot, connection, this.model.entityType, stream, from, REPLAY_BATCH);
      // Positions move with the last batch alone: raw is read in no order, and an upsert may be repeated.
      for await (const batch of batches)
        await this.take(writer, batch, from, new Map(), Promise.resolve(true));
    });
    await this.take(writer, new EventBatch(this.model.entityType), from, to, Promise.resolve(true));
  }

  /**
   * Builds the table anew from raw, beside the old one and inside its folder, then takes the new files over in one
   * commit: queries see the old table or the new one, never a mixture.
   */
  private async rebuild(raw: DeltaTable): Promise<void> {
    const { duck, store, log, tableOptions } = this.context;
    const folder = `rebuilt-${this.model.fingerprint.slice(0, 12)}`;
    const spec = await refinedSpec(this.connection, this.model);
    const side = await DeltaTable.openOrCreate(
      store,
      `${this.table.root}/${folder}`,
      duck,
      tableOptions,
      spec,
    );
    log.info({ model: this.model.name }, "rebuilding from raw");
    const writer = this.context.writerFor(side);
    await this.replay(writer, raw);
    for (;;) {
      const old = await this.table.refresh();
      const built = side.snapshot;
      const now = Date.now();
      const { stream } = this.context;
      const before = positionsOf(old, stream);
      const after = positionsOf(built, stream);
      const moved = new Map([...after].filter(([partition, position]) => before.get(partition) !== position));
      const progress = advancePositions(stream, new Map(), moved);
      const expect = new Map<string, string | undefined>(
        advancePositions(stream, new Map(), before).actions.map(domainOf),
      );
      for (const { domainMetadata } of progress.actions) {
        if (!expect.has(domainMetadata!.domain)) expect.set(domainMetadata!.domain, undefined);
      }
      const actions: Action[] = [
        ...definition(spec, this.table.id),
        ...old.files.map((file) => ({ remove: removeOf(file.add, now, true) })),
        ...built.files.map((file) => ({ add: rebased(file.add, folder) })),
        ...progress.actions,
      ];
      const result = await this.table.commit({
        operation: "REPLACE TABLE",
        actions,
        expect,
        basedOn: old.version,
        serializable: true,
      });
      if (result.kind === "committed") break;
    }
    this.upserts = this.context.writerFor(this.table);
    // The files are the main table's now; a log that names them too would only mislead. Newest first, one by one: what
    // a crash leaves is an older version of the side table, from which a later rebuild of this model could go on.
    const leftovers: string[] = [];
    for await (const { key } of store.list(`${side.root}/_delta_log/`)) leftovers.push(key);
    for (const key of leftovers.reverse()) await store.delete([key]);
    log.info({ model: this.model.name }, "rebuilt");
  }

  /** Upserts a batch, setting poison events aside, until it is committed or `landed` says no. */
  private async take(
    writer: UpsertWriter,
    events: EventBatch,
    from: Positions,
    to: Positions,
    landed: Promise<boolean>,
  ): Promise<void> {
    let batch = events;
    for (;;) {
      const winners = this.refiner.winners(batch);
      const { stream } = this.context;
      try {
        const result = await writer.upsert(
          this.refiner.upsertBatch(winners, { stream, from, to, ready: landed, newest: batch.newest() }),
        );
        if (result.kind === "conflict") {
          // Another writer was here: its rows are read with the next catch-up.
          await writer.table.refresh();
          throw new TributaryError(
            "TRB-STORE-FAILED",
            `${this.model.name}: another writer (${result.reason})`,
          );
        }
        return;
      } catch (error) {
        if (!(error instanceof ModelFailure)) throw error;
        if (!(await landed)) return;
        const poison = await this.refiner.findPoison(winners, error);
        if (poison.length === 0) throw error;
        await this.bury(batch, poison);
        const events = new Set(poison.map(({ event }) => event));
        batch = batch.filter((i) => !events.has(i));
      }
    }
  }

  private async bury(batch: EventBatch, poison: readonly Poison[]): Promise<void> {
    await this.context.deadLetters.add(
      poison.map(({ event, code, reason }) => ({
        model: this.model.name,
        code,
        reason,
        stream: this.context.stream,
        partition: batch.partitions[event]!,
        position: batch.positions[event]!,
        receivedAt: batch.receivedAt[event]!,
        event: batch.event(event),
      })),
    );
    this.context.metrics.deadLetters.inc({ model: this.model.name }, poison.length);
  }

  /**
   * Applies stored events again without moving positions: redrive of dead letters. Those that the model can digest
   * are in the table when this resolves; the others are returned.
   */
  async reapply(events: EventBatch): Promise<Poison[]> {
    const failed: Poison[] = [];
    // Indices into `events` of what is still in the batch.
    let left = Array.from({ length: events.count }, (_, i) => i);
    for (;;) {
      await this.table.refresh();
      const kept = new Set(left);
      const winners = this.refiner.winners(events.filter((i) => kept.has(i)));
      try {
        const result = await this.upserts.upsert(
          this.refiner.upsertBatch(winners, {
            stream: this.context.stream,
            from: this.positions,
            to: new Map(),
            ready: Promise.resolve(true),
            newest: undefined,
          }),
        );
        if (result.kind === "committed") return failed;
      } catch (error) {
        if (!(error instanceof ModelFailure)) throw error;
        const poison = await this.refiner.findPoison(winners, error);
        if (poison.length === 0) throw error;
        failed.push(...poison.map((one) => ({ ...one, event: left[one.event]! })));
        const gone = new Set(poison.map(({ event }) => left[event]!));
        left = left.filter((i) => !gone.has(i));
      }
    }
  }

  close(): void {
    this.connection.closeSync();
  }
}

const domainOf = ({ domainMetadata }: Action): [string, string] => [
  domainMetadata!.domain,
  domainMetadata!.configuration,
];
