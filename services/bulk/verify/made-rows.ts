import type { DuckDBConnection } from "@duckdb/node-api";
import type { IngestContext } from "../../ingest/context.js";
import type { EventBatch } from "../../ingest/event-batch.js";
import { ModelFailure } from "../../ingest/model-failure.js";
import { partOf, type Slice, slicesOf } from "../../ingest/payloads.js";
import { Refiner } from "../../ingest/refine.js";
import { type RawView, readRange } from "../../ingest/replay.js";
import { type Winners, winnersOf } from "../../ingest/winners.js";
import type { BoundModel } from "../../models/bind.js";
import { EntityKeys } from "../../table/entity-keys.js";
import type { Progress } from "../../table/progress.js";
import {
  columnHashes,
  type DigestColumn,
  keyed,
  madeColumns,
  rankOf,
  rowHash,
} from "../chunks/row-digests.js";

/** Events that the model is run on at once, and rows that wait to be handed on. */
const BATCH_EVENTS = 20_000;
const ROWS = 120_000;

/** What a model makes of events, read from raw: rows as `madeSql` has them. */
export class MadeRows {
  private readonly keys: EntityKeys;
  private waiting = 0;

  private constructor(
    private readonly context: Pick<IngestContext, "decoding">,
    private readonly connection: DuckDBConnection,
    private readonly refiner: Refiner,
    private readonly columns: readonly DigestColumn[],
  ) {
    this.keys = new EntityKeys(refiner.model.entityType);
  }

  /** Of events that stand in raw up to `to`, along its tracks. Each relation that `take` is given stays until it resolves. */
  static async each(
    context: Pick<IngestContext, "duck" | "registry" | "config" | "decoding">,
    model: BoundModel,
    columns: readonly DigestColumn[],
    view: RawView,
    to: Progress,
    take: (connection: DuckDBConnection, relation: string) => Promise<void>,
    onBatch: (batch: EventBatch) => Promise<void>,
  ): Promise<void> {
    await context.duck.with(async (connection) => {
      const refiner = new Refiner(connection, context.registry, model, context.config.ingest.modelTimeoutMs);
      await refiner.prepare();
      const made = new MadeRows(context, connection, refiner, columns);
      await made.begin();
      const limits = { events: BATCH_EVENTS, bytes: context.decoding.sliceBytes };
      await readRange(view, new Map(), to, limits, async (batch) => {
        await onBatch(batch);
        await made.take(batch);
        if (made.waiting >= ROWS) await made.hand(take);
        return true;
      });
      await made.hand(take);
    });
  }

  private async begin(): Promise<void> {
    await this.connection.run(`CREATE TEMP TABLE made_rows (${madeColumns(this.columns)})`);
  }

  private async hand(take: (connection: DuckDBConnection, relation: string) => Promise<void>): Promise<void> {
    if (this.waiting === 0) return;
    await take(this.connection, "made_rows");
    // Of a table that is only emptied the engine keeps the memory.
    await this.connection.run("DROP TABLE made_rows");
    await this.begin();
    this.waiting = 0;
  }

  private async take(batch: EventBatch): Promise<void> {
    for await (const slice of slicesOf(batch, this.context.decoding)) {
      await this.run(slice);
      slice.release();
      this.waiting += slice.events.count;
    }
  }

  /** As ingest takes a slice in: without the events that the model cannot digest. */
  private async run(slice: Slice): Promise<void> {
    const winners = winnersOf(slice, this.keys);
    try {
      await this.add(winners, "rows");
    } catch (error) {
      if (!(error instanceof ModelFailure)) throw error;
      const poison = new Set((await this.refiner.findPoison(slice, error)).map(({ event }) => event));
      if (poison.size === 0) throw error;
      await this.add(
        winnersOf(
          partOf(slice, (i) => poison.has(i)),
          this.keys,
        ),
        "broken",
      );
      const rest = partOf(slice, (i) => !poison.has(i));
      if (rest.events.count > 0) await this.run(rest);
    }
  }

  private async add(winners: Winners, what: "rows" | "broken"): Promise<void> {
    const source = this.refiner.source(winners);
    const keys = await source.keys();
    const nothing = ["r", ...this.columns.map((_, at) => `h${at}`)].map((name) => `NULL::UBIGINT AS ${name}`);
    let rows = `SELECT NULL::INTEGER AS ord, ${nothing.join(", ")}`;
    if (what === "rows") {
      const { relation } = await source.rows(winners.events.map((_, ord) => ord));
      rows = `SELECT ord, ${rowHash(this.columns)} AS r${columnHashes(this.columns)} FROM ${keyed(relation)}`;
    }
    const names = this.columns.map((_, at) => `, r.h${at}`).join("");
    await this.connection.run(
      `INSERT INTO made_rows
       SELECT k.tenant_id, k.entity_id, ${rankOf("k")}, r.ord IS NOT NULL, ${what === "broken"}, r.r${names}
       FROM ${keys} k LEFT JOIN (${rows}) r ON r.ord = k.ord`,
    );
  }
}
