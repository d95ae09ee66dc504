import { type Compaction, compactAppended, compactUpserted, planCompaction } from "../table/compact.js";
import type { TableFile, TableSnapshot } from "../table/types.js";
import type { IngestContext } from "./context.js";
import type { Lane } from "./lane.js";
import { RAW_BOUNDS } from "./raw-table.js";

/** Keeps file counts bounded beside ingestion: one compaction at a time, so that it never takes more than one core. */
export class Compactor {
  private running: Promise<void> | undefined;
  private closed = false;

  constructor(private readonly context: IngestContext) {}

  /** Starts a compaction if a table of the lane wants one and none runs. */
  consider(lane: Lane): void {
    if (this.running !== undefined || this.closed) return;
    const job = this.pick(lane);
    if (job === undefined) return;
    this.running = this.run(job).then((done) => {
      this.running = undefined;
      // After a failure the next batch asks again; at once would be a hot loop.
      if (done) this.consider(lane);
    });
  }

  private pick(lane: Lane): Job | undefined {
    const { duck } = this.context;
    const raw = this.plan(lane.raw.snapshot);
    if (raw !== undefined) {
      const order = ["tenant_id", "partition", "position"];
      return {
        table: `raw ${lane.entityType}`,
        run: () => duck.with((connection) => compactAppended(lane.raw, connection, raw, order, RAW_BOUNDS)),
      };
    }
    for (const target of lane.targets) {
      const files = this.plan(target.table.snapshot);
      if (files === undefined) continue;
      return {
        table: target.model.name,
        run: () => duck.with((connection) => compactUpserted(target.writer, connection, files)),
      };
    }
    return undefined;
  }

  private plan(snapshot: TableSnapshot): TableFile[] | undefined {
    return planCompaction(snapshot, this.context.config.table.compactAfterFiles);
  }

  private async run({ table, run }: Job): Promise<boolean> {
    const started = performance.now();
    try {
      const result = await run();
      const ms = Math.round(performance.now() - started);
      this.context.log.info({ table, ms, ...result }, "compaction");
      return result.kind === "compacted";
    } catch (error) {
      // Nothing is lost: the sources stay as they are, and the next batch asks again.
      this.context.log.error({ err: error, table }, "compaction failed");
      return false;
    }
  }

  /** Waits for the running compaction. */
  async close(): Promise<void> {
    this.closed = true;
    await this.running;
  }
}

interface Job {
  readonly table: string;
  readonly run: () => Promise<Compaction>;
}
