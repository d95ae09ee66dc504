import type { Logger } from "pino";
import type { Duck } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import { Once } from "../base/once.js";
import type { ObjectStore } from "../storage/object-store.js";
import type { CompactionPlanner } from "../table/compaction-plan.js";
import type { DeltaTable, TableOptions } from "../table/delta-table.js";
import { type DeadLetter, DeadLetters } from "./dead-letters.js";

/**
 * The dead-letter table as the rest of ingest sees it: it may be damaged or away, and only what has a letter to post
 * then fails. After a failure it is opened from scratch.
 */
export class DeadLetterBox {
  private readonly letters = new Once(() =>
    DeadLetters.open(this.store, this.duck, this.options, this.planner),
  );

  constructor(
    private readonly store: ObjectStore,
    private readonly duck: Duck,
    private readonly options: TableOptions,
    private readonly planner: CompactionPlanner,
    private readonly log: Pick<Logger, "error">,
  ) {}

  /** Errors: what opening a table throws. */
  open(): Promise<DeadLetters> {
    return this.letters.get();
  }

  /** Durable when resolved. A letter that lies there already, of the same model and position, is not added again. */
  async add(letters: readonly DeadLetter[]): Promise<void> {
    try {
      await (await this.open()).add(letters);
    } catch (error) {
      this.forget();
      this.log.error({ err: error }, "dead letters were not written");
      throw new TributaryError("TRB-STORE-FAILED", "the dead-letter table cannot be written", {
        cause: error,
      });
    }
  }

  /** Resolves when no log checkpoint is being written any more. */
  async close(): Promise<void> {
    await this.letters.value?.table.settled();
  }

  /** It is opened from scratch with the next letter. */
  forget(): void {
    this.letters.forget();
  }

  /** Errors: TRB-TABLE-CORRUPT while it is not open. */
  get table(): DeltaTable {
    const opened = this.letters.value;
    if (opened !== undefined) return opened.table;
    throw new TributaryError("TRB-TABLE-CORRUPT", "the dead-letter table does not open");
  }
}
