import { type Failure, Retry } from "../base/retry.js";
import type { TableStatus } from "../status/ingest-status.js";
import { requireOpen } from "../table/closing.js";
import type { IngestContext } from "./context.js";
import { isFatal, tell } from "./failure.js";
import type { ParkedChunk, ParkedEvents } from "./parked-format.js";
import { ParkedLog } from "./parked-log.js";

/** The table that parked events belong into. */
export interface Destination {
  /** What is told of it while it does not take them. */
  readonly about: Pick<TableStatus, "kind" | "name" | "entityType" | "remedy">;
  /** What it is called among all that is parked: an entity type, or no type's name. */
  readonly parkedAs: string;
  /** With so many parked bytes it is told as held. */
  readonly budgetBytes: number;
  /** How much of them it takes at once. */
  readonly atOnce: { readonly events: number; readonly bytes: number };
  /** At the beginning of each try, also where nothing is parked. */
  prepare(): Promise<void>;
  /** Takes the oldest parked events; they may come a second time, after a failure or a crash. */
  take(chunk: ParkedChunk): Promise<void>;
  /** A try has succeeded. */
  well(): void;
  /** Only a new process helps. */
  fatal(error: unknown): void;
}

/** A repair of the table does not reach the log. */
const RESTORE = "restore from a copy what the reason names; until then events are kept";

/**
 * What a table cannot take for now waits in a log of its own and goes in first, in order, once it can: that is tried
 * with growing pauses, and told of until it succeeds.
 */
export class Parking {
  private readonly log: ParkedLog;
  /** What is parked of what is ours is known; what others have parked of it may still be found. */
  private known = false;
  private trying: Promise<void> | undefined;
  private readonly retry: Retry;
  private unwell = false;

  constructor(
    private readonly context: IngestContext,
    private readonly destination: Destination,
    /** Gives up tries and pauses. */
    private readonly signal: AbortSignal,
  ) {
    this.retry = new Retry(signal);
    const { store, ours } = context;
    const { about, parkedAs } = destination;
    const table = about.kind === "raw" ? `raw/${about.name}` : about.name;
    this.log = new ParkedLog(store, parkedAs, (track) => ours.has(table, track));
  }

  /** True when nothing waits here and no try runs: what comes may go to the table directly. */
  get passed(): boolean {
    return this.trying === undefined && this.known && this.log.empty;
  }

  /** True from a failure on until a try succeeds. */
  get failing(): boolean {
    return this.unwell;
  }

  /**
   * Resolves when the events are parked, however often that has to be tried, with what is done `before` each try.
   * Rejects only after the signal.
   */
  async append(events: ParkedEvents, before = async () => {}): Promise<void> {
    await new Retry(this.signal).run(
      async () => {
        await before();
        await this.log.append(this.context.stream, events);
        // A lake that is closed since may have been copied without them: then they are to be read again elsewhere.
        await requireOpen(this.context.store);
      },
      (failure) => this.failed(failure),
    );
    this.tellBytes();
  }

  /** More may be ours than before: what is parked of it lands before anything else does. */
  assigned(): void {
    this.known = false;
    this.recover();
  }

  /** Tries to empty the log into the table, again with growing pauses until it is empty; nothing while that is tried. */
  recover(): void {
    if (this.trying !== undefined || this.signal.aborted) return;
    this.trying = this.retry
      .run(
        () => this.drain(),
        (failure) => this.failed(failure),
      )
      .then(
        () => this.isWell(),
        (error: unknown) => {
          if (!this.signal.aborted) this.destination.fatal(error);
        },
      )
      .finally(() => {
        this.trying = undefined;
        if (!this.known || !this.log.empty) this.recover();
      });
  }

  private async drain(): Promise<void> {
    const { log } = this;
    await this.destination.prepare();
    const { events, bytes } = this.destination.atOnce;
    while (!this.known || !log.empty) {
      this.signal.throwIfAborted();
      if (!this.known) {
        this.known = true;
        await log.look().catch((error: unknown) => {
          this.known = false;
          throw error;
        });
      }
      const chunk = await log.peek(events, bytes);
      if (chunk === undefined) {
        await log.settled();
        continue;
      }
      await this.destination.take(chunk);
      await log.drop(chunk);
      this.tellBytes();
    }
  }

  /** Says that the table does not take events; also what the destination itself meets. */
  failed({ error, attempts, pauseMs }: Failure): void {
    if (isFatal(error)) this.destination.fatal(error);
    this.unwell = true;
    const { health, log } = this.context;
    const { about } = this.destination;
    const told = tell(error);
    log.error({ err: error, table: about.name, attempts, pauseMs }, "a table does not take its events");
    health.set({
      ...about,
      state: "quarantined",
      ...told,
      ...(told.code === "TRB-STREAM-CORRUPT" ? { remedy: RESTORE } : {}),
      attempts,
      nextTryAt: new Date(Date.now() + pauseMs).toISOString(),
      ...this.parked(),
    });
  }

  private isWell(): void {
    this.unwell = false;
    const { kind, name } = this.destination.about;
    this.context.health.clear(kind, name);
    this.destination.well();
  }

  private parked(): Pick<TableStatus, "parkedBytes" | "held"> {
    const parkedBytes = this.log.bytes;
    return { parkedBytes, held: parkedBytes >= this.destination.budgetBytes };
  }

  /** A table that has not failed may hang: then this is all that tells of it, and all that holds its events back. */
  private tellBytes(): void {
    const { health } = this.context;
    const { about } = this.destination;
    const slow = this.log.empty ? undefined : { ...about, ...SLOW };
    const status = health.get(about.kind, about.name) ?? slow;
    if (status !== undefined) health.set({ ...status, ...this.parked() });
  }

  /** Tries again now, whatever pause runs. */
  hurry(): void {
    this.retry.hurry();
  }

  /** After the signal, and after the last append: ends once the try that runs has ended. */
  async close(): Promise<void> {
    await this.trying;
    await this.log.settled();
  }
}

const SLOW = {
  state: "catching-up",
  code: "",
  reason: "it is slow to take in events; those that come meanwhile are parked",
  remedy: "nothing where it ends by itself; else see whether the disk answers",
  attempts: 0,
} as const;
