import { compactAppended, compactUpserted, planCompaction } from "../table/compact.js";
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
    this.sweeper.consider(lane);
    if (this.plan(lane.raw) !== undefined) {
      this.queue.offer(`raw/${lane.entityType}`, () => this.compactRaw(lane));
    }
    for (const { model, table } of lane.targets) {
      if (this.plan(table) !== undefined) {
        this.queue.offer(model.name, () => this.compactRefined(lane, model.name));
      }
    }
  }

  private plan(table: DeltaTable): TableFile[] | undefined {
    return planCompaction(table.snapshot, this.context.config.table.compactAfterFiles);
  }

  private compactRaw(lane: Lane): Promise<Outcome> {
    const { raw } = lane;
    const files = this.plan(raw);
    if (files === undefined) return Promise.resolve("done");
    const order = ["tenant_id", "partition", "position"];
    return this.run(`raw/${lane.entityType}`, () =>
      this.context.duck.with((connection) => compactAppended(raw, connection, files, order)),
    );
  }

  private compactRefined(lane: Lane, model: string): Promise<Outcome> {
    // Its table may have been opened anew since it came into the queue.
    const target = lane.targets.find((each) => each.model.name === model);
    const files = target === undefined ? undefined : this.plan(target.table);
    if (target === undefined || files === undefined) return Promise.resolve("done");
    return this.run(model, () =>
      this.context.duck.with((connection) => compactUpserted(target.writer, connection, files)),
    );
  }

  private async run(
    table: string,
    compact: () => Promise<{ readonly kind: "compacted" | "overtaken" }>,
  ): Promise<Outcome> {
    const started = performance.now();
    try {
      const result = await compact();
      const ms = Math.round(performance.now() - started);
      this.context.log.info({ table, ms, ...result }, "compaction");
      // One that was overtaken asks again with the next batch.
      return result.kind === "compacted" ? "more" : "done";
    } catch (error) {
      // Nothing is lost: the sources stay as they are, and a later batch asks again.
      this.context.log.error({ err: error, table }, "compaction failed");
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
