import { setTimeout as sleep } from "node:timers/promises";
import type { IngestContext } from "../../ingest/context.js";
import { rawRoot } from "../../ingest/raw-table.js";
import { DeltaTable } from "../../table/delta-table.js";
import { positionsOf } from "../../table/progress.js";
import { type Backlog, backlogOf, ImportQueue, queuedAs, type Waiting } from "./import-queue.js";

/** How often a producer looks whether its events have landed, in ms. */
const LOOK_MS = 250;
/** Beyond so many of its rows that wait a producer adds no more: the queue is small, whatever somebody puts through it. */
const MOST_ROWS = 100_000;

type Context = Pick<IngestContext, "store" | "duck" | "tableOptions">;

/** Whose events they are. */
export interface Origin {
  readonly stream: string;
  readonly partition: string;
  readonly entityType: string;
}

/** One who appends events of one type, along one partition of a stream of its own. */
export class ImportProducer {
  /** Of the queue. */
  readonly table: DeltaTable;
  /** That positions of the queue are along. */
  readonly stream: string;

  private constructor(
    private readonly context: Context,
    private readonly queue: ImportQueue,
    private readonly origin: Origin,
  ) {
    this.table = queue.table;
    this.stream = queuedAs(origin.stream, origin.entityType);
  }

  /** Errors: those of opening a table. */
  static async open(context: Context, origin: Origin): Promise<ImportProducer> {
    return new ImportProducer(context, await ImportQueue.openOrCreate(context), origin);
  }

  /** How far it is: what is queued, or has landed and is queued no more. Errors: those of opening a table. */
  async reached(): Promise<string | undefined> {
    const landed = (await this.raw()) ?? "";
    const queued = this.queuedTo ?? "";
    return (landed > queued ? landed : queued) || undefined;
  }

  /** What of it waits and is not in raw. Errors: those of opening a table. */
  async waiting(): Promise<Backlog> {
    const own = await this.own();
    const landed = (await this.raw()) ?? "";
    return backlogOf(own.filter(({ first }) => first > landed));
  }

  /** As `landed`, once there is room for more. */
  room(tell: (backlog: Backlog) => void, signal: AbortSignal): Promise<boolean | "again"> {
    return this.fewer(MOST_ROWS, tell, signal);
  }

  /**
   * Resolves to true once nothing of it waits, to false when the signal stops that, and to "again" when it has to be
   * queued anew: the queue has forgotten it, as it forgets jobs that are cancelled. Errors: TRB-STORE-FAILED.
   */
  landed(tell: (backlog: Backlog) => void, signal: AbortSignal): Promise<boolean | "again"> {
    return this.fewer(1, tell, signal);
  }

  private async fewer(
    than: number,
    tell: (backlog: Backlog) => void,
    signal: AbortSignal,
  ): Promise<boolean | "again"> {
    const { queuedTo: end } = this;
    for (;;) {
      const own = await this.own();
      if (this.queuedTo !== end) return "again";
      const backlog = backlogOf(own);
      tell(backlog);
      if (backlog.rows < than) return true;
      await sleep(LOOK_MS, undefined, { signal, ref: false }).catch(() => undefined);
      if (signal.aborted) return false;
    }
  }

  private get queuedTo(): string | undefined {
    return positionsOf(this.table.snapshot, this.stream).get(this.origin.partition);
  }

  private async own(): Promise<Waiting[]> {
    const { stream, partition, entityType } = this.origin;
    return (await this.queue.look()).filter(
      (one) => one.stream === stream && one.partition === partition && one.entityType === entityType,
    );
  }

  private async raw(): Promise<string | undefined> {
    const { store, duck, tableOptions } = this.context;
    const { stream, partition, entityType } = this.origin;
    const table = await DeltaTable.open(store, rawRoot(entityType), duck, tableOptions);
    return table && positionsOf(table.snapshot, stream).get(partition);
  }
}
