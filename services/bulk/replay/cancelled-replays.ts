import type { IngestContext } from "../../ingest/context.js";
import { refinedRoot } from "../../ingest/refined-table.js";
import { SideTables } from "../../ingest/side-tables.js";
import { DeltaTable } from "../../table/delta-table.js";
import type { Job } from "../jobs/job.js";

/** Removes the tables that cancelled replays were building beside those that are served: as large as these, and nobody's. */
export class CancelledReplays {
  private readonly seen = new Set<string>();

  constructor(private readonly context: IngestContext) {}

  /** Errors: those of the tables; then what was not removed is the next time. */
  async tidy(jobs: readonly Job[]): Promise<void> {
    const { models, store, duck, tableOptions } = this.context;
    for (const model of models) {
      const ids = new Set<string>();
      for (const { order, state } of jobs)
        if (order.kind === "replay" && order.model === model.name && state.phase === "cancelled")
          if (!this.seen.has(order.id)) ids.add(order.id);
      if (ids.size === 0) continue;
      const table = await DeltaTable.open(store, refinedRoot(model), duck, tableOptions);
      if (table !== undefined)
        await duck.with((connection) => new SideTables(this.context, table, model, connection).giveUp(ids));
      for (const id of ids) this.seen.add(id);
    }
  }
}
