import type { DuckDBConnection } from "@duckdb/node-api";
import type { IngestContext } from "../ingest/context.js";
import type { EventBatch } from "../ingest/event-batch.js";
import { rawRoot, rawSpec } from "../ingest/raw-table.js";
import { RawWriter } from "../ingest/raw-writer.js";
import { append } from "../table/append.js";
import { DeltaTable } from "../table/delta-table.js";
import { positionsOf } from "../table/progress.js";

/** The order that raw files are compacted into, so that a chunk needs no compaction. */
const ORDER = ["tenant_id", "entity_id"];

/** The stream that a job's rows come along, as positions have it. No stream of events has such a name. */
export const streamOf = (job: string): string => `bootstrap-${job}`;

/** Appends the chunks of jobs to one raw table, beside whoever else does. */
export class ChunkLander {
  private readonly writer: RawWriter;

  private constructor(
    private readonly table: DeltaTable,
    private readonly connection: DuckDBConnection,
  ) {
    this.writer = new RawWriter(connection);
  }

  /** Errors: what opening a table throws. */
  static async open(
    { store, duck, tableOptions }: Pick<IngestContext, "store" | "duck" | "tableOptions">,
    entityType: string,
  ): Promise<ChunkLander> {
    const root = rawRoot(entityType);
    const table = await DeltaTable.openOrCreate(store, root, duck, tableOptions, rawSpec(entityType));
    return new ChunkLander(table, await duck.connect());
  }

  /** Where a lane of a job stands: what comes next is beyond it. Undefined before its first chunk. */
  reached(stream: string, partition: string): string | undefined {
    return positionsOf(this.table.snapshot, stream).get(partition);
  }

  /**
   * Resolves to how many events of the chunk this call has landed: what stands there already is left out. They are there
   * all at once or not at all. Errors: those of commits.
   */
  async land(chunk: EventBatch): Promise<number> {
    for (;;) {
      const from = positionsOf(this.table.snapshot, chunk.stream);
      const fresh = chunk.after(from);
      if (fresh.count === 0) return 0;
      const { kind } = await append(this.table, chunk.stream, from, async (path) => ({
        file: await this.writer.write(fresh, path, ORDER),
        to: fresh.reached(),
      }));
      if (kind === "committed") return fresh.count;
      // Whoever goes on with this lane was taken for dead.
      await this.table.refresh();
    }
  }

  /** Resolves when no log checkpoint is being written any more. */
  async close(): Promise<void> {
    await this.table.settled();
    this.connection.closeSync();
  }
}
