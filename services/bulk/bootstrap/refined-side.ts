import { rename, rm } from "node:fs/promises";
import type { IngestContext } from "../../ingest/context.js";
import { isOf, refinedRoot, refinedSpec } from "../../ingest/refined-table.js";
import type { BoundModel } from "../../models/bind.js";
import { BulkUpserts, type Written } from "../../table/bulk-upsert.js";
import type { WrittenFile } from "../../table/data-file.js";
import { DeltaTable } from "../../table/delta-table.js";
import { EntityKeys } from "../../table/entity-keys.js";
import { progressOf, type Track } from "../../table/progress.js";
import type { Chunk, ChunkModel, ModelChunk } from "../chunks/chunk-protocol.js";

type Context = Pick<IngestContext, "store" | "duck" | "tableOptions" | "models" | "offerRun">;

export interface Taken {
  /** Of the tables that have the chunk, from 0 to 1. */
  readonly share: number;
  /** Tables that had all chunks before and lack this one: its model fails on it, or live traffic left no gap for it. */
  readonly left: number;
}

/**
 * The tables that are made of what a job lands, as far as its chunks can be put into them beside raw: each chunk is,
 * right after raw has it, where the table has all chunks before. A table that lacks one (a model that fails, or whose
 * table is another's yet; a kill in between) has to catch up from raw.
 */
export class RefinedSide {
  private constructor(private readonly tables: readonly (readonly [BoundModel, BulkUpserts])[]) {}

  static async open(context: Context, entityType: string): Promise<RefinedSide> {
    const { store, duck, tableOptions, models, offerRun } = context;
    const tables: (readonly [BoundModel, BulkUpserts])[] = [];
    for (const model of models.filter((one) => one.entityType === entityType)) {
      const spec = await duck.with((connection) => refinedSpec(connection, model));
      const table = await DeltaTable.openOrCreate(store, refinedRoot(model), duck, tableOptions, spec);
      tables.push([model, new BulkUpserts(table, new EntityKeys(entityType), offerRun)]);
    }
    return new RefinedSide(tables);
  }

  /** What a chunk's process is to make. */
  get models(): Omit<ChunkModel, "out" | "tombstones">[] {
    return this.tables.map(([{ name, sql, columns }]) => ({ name, sql, columns }));
  }

  /** Takes in a chunk that moved raw along the track. */
  async take(
    chunk: Chunk,
    wanted: readonly ChunkModel[],
    track: Track,
    from: string | undefined,
    to: string,
  ): Promise<Taken> {
    let taken = 0;
    let left = 0;
    const { models = [], ranges = [], receivedAt } = chunk.refined ?? {};
    for (const [model, upserts] of this.tables) {
      const { out, tombstones } = wanted.find(({ name }) => name === model.name)!;
      const { snapshot } = upserts.table;
      if (progressOf(snapshot).get(track) !== from || !isOf(snapshot, model)) continue;
      const made = chunk.file.rows === 0 ? NOTHING : models.find(({ name }) => name === model.name);
      if (made === undefined) {
        left++;
        continue;
      }
      const result = await upserts.add({
        rows: written(made.rows, out),
        tombstones: made.tombstones && written(made.tombstones, tombstones),
        ranges,
        from: from === undefined ? new Map() : new Map([[track, from]]),
        to: new Map([[track, to]]),
        newest: receivedAt,
        fits: (table) => isOf(table, model),
      });
      if (result.kind === "committed") taken++;
      else {
        left++;
        await upserts.table.refresh();
      }
    }
    return { share: this.tables.length === 0 ? 0 : taken / this.tables.length, left };
  }

  /** Takes in what others have done to the tables. */
  async refresh(): Promise<void> {
    for (const [, { table }] of this.tables) await table.refresh();
  }

  async settled(): Promise<void> {
    for (const [, { table }] of this.tables) await table.settled();
  }
}

const NOTHING: Pick<ModelChunk, "rows" | "tombstones"> = {
  rows: { rows: 0, bytes: 0, statistics: {} },
  tombstones: undefined,
};

const written = (file: WrittenFile, path: string): Written => ({
  file,
  move: (localPath) => (file.rows === 0 ? rm(path, { force: true }) : rename(path, localPath)),
});
