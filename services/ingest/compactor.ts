import type { DuckDBConnection } from "@duckdb/node-api";
import { type Compaction, compactAppended, compactUpserted } from "../table/compact.js";
import type { DeltaTable } from "../table/delta-table.js";
import type { TableFile } from "../table/types.js";
import type { IngestContext } from "./context.js";
import type { Lane } from "./lane.js";
import { Sweeper } from "./sweeper.js";
import { type Outcome, TurnQueue } from "./turn-queue.js";

/**
 * Keeps file counts bounded beside ingestion: one compaction at a time over all lanes, so that it never takes more
 * than one core, and every table in its turn, so that a hot one starves none.
 */
export class Compactor {
  private readonly queue = new TurnQueue();
  private readonly sweeper: Sweeper;

  constructor(private readonly context: IngestContext) {
    this.sweeper = new Sweeper(context, this.queue);
  }

  /** Puts those tables of the lane into the queue that want a compaction, or to be swept. */
  consider(lane: Lane): void {
    const { planner, crew } = this.context;
    this.sweeper.consider(lane);
    const raw = `raw/${lane.entityType}`;
    if (planner.wants(lane.raw) && crew.tends(raw)) this.queue.offer(raw, () => this.compactRaw(lane));
    for (const { model, table } of lane.targets) {
      if (planner.wants(table) && crew.tends(model.name))
        this.queue.offer(model.name, () => this.compactRefined(lane, model.name));
    }
  }

  private compactRaw({ raw, entityType }: Lane): Promise<Outcome> {
    const order = ["tenant_id", "partition", "position"];
    return this.run(`raw/${entityType}`, raw, (connection, files) =>
      compactAppended(raw, connection, files, order),
    );
  }

  private compactRefined(lane: Lane, model: string): Promise<Outcome> {
    // Its table may have been opened anew since it came into the queue.
    const target = lane.targets.find((each) => each.model.name === model);
    if (target === undefined || target.outdated) return Promise.resolve("done");
    const { writer } = target;
    return this.run(model, writer.table, (connection, files) => compactUpserted(writer, connection, files));
  }

  private async run(
    name: string,
    table: DeltaTable,
    compact: (connection: DuckDBConnection, files: readonly TableFile[]) => Promise<Compaction>,
  ): Promise<Outcome> {
    const { duck, planner, log } = this.context;
    const started = performance.now();
    try {
      const result = await duck.with((connection) =>
        planner.compact(table, connection, (files) => compact(connection, files)),
      );
      if (result === undefined) return "done";
      const ms = Math.round(performance.now() - started);
      log.info({ table: name, ms, ...result }, "compaction");
      // One that was overtaken asks again with the next batch.
      return result.kind === "compacted" ? "more" : "done";
    } catch (error) {
      // Nothing is lost: the sources stay as they are, and a later batch asks again.
      log.error({ err: error, table: name }, "compaction failed");
      return "failed";
    }
  }

  /** Runs `work` while no compaction runs. */
  between<T>(work: () => Promise<T>): Promise<T> {
    return this.queue.run(work);
  }

  /** Waits for the running compaction. */
  close(): Promise<void> {
    return this.queue.close();
  }
}
