import type { DeltaTable } from "../table/delta-table.js";
import { Sweep } from "../table/sweep.js";
import type { IngestContext } from "./context.js";
import type { Lane } from "./lane.js";
import type { TurnQueue } from "./turn-queue.js";

const EVERY_MS = 3600 * 1000;

/** Removes what crashes and failures have left in the tables' folders, each table's now and then, in turn with others. */
export class Sweeper {
  /** Of the tables that are open; `at`: performance.now() of the last one. */
  private readonly sweeps = new WeakMap<DeltaTable, { readonly sweep: Sweep; at: number }>();

  constructor(
    private readonly context: IngestContext,
    private readonly queue: TurnQueue,
    private readonly everyMs = EVERY_MS,
  ) {}

  /** Puts those tables of the lane into the queue whose turn it is. */
  consider(lane: Lane): void {
    this.offer(`raw/${lane.entityType}`, lane.raw);
    for (const { model, table } of lane.targets) this.offer(model.name, table);
  }

  private offer(name: string, table: DeltaTable): void {
    const known = this.sweeps.get(table) ?? { sweep: new Sweep(table), at: Number.NEGATIVE_INFINITY };
    if (performance.now() - known.at < this.everyMs || !this.context.crew.tends(name)) return;
    this.queue.offer(`sweep ${name}`, async () => {
      this.sweeps.set(table, { ...known, at: performance.now() });
      try {
        const files = await known.sweep.run();
        if (files > 0) this.context.log.info({ table: name, files }, "files that nothing names were removed");
        return "done";
      } catch (error) {
        this.context.log.error({ err: error, table: name }, "looking for files that nothing names failed");
        return "failed";
      }
    });
  }
}
