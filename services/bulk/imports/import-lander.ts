import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "pino";
import { Gauge, type Registry } from "prom-client";
import { Envelope } from "../../contracts/envelope.js";
import type { IngestContext } from "../../ingest/context.js";
import { EventBatch } from "../../ingest/event-batch.js";
import type { Ingest } from "../../ingest/ingest.js";
import { Sweep } from "../../table/sweep.js";
import type { Job } from "../jobs/job.js";
import type { JobStore } from "../jobs/job-store.js";
import { streamOf } from "../jobs/job-tracks.js";
import type { Pace } from "../jobs/pace.js";
import { backlogOf, ImportQueue, queuedAs, type Waiting } from "./import-queue.js";

/** How often to look for what others have queued, in ms. */
const LOOK_MS = 1_000;
/** How often to ask again for a turn while live events go first, in ms. */
const ASK_MS = 20;
/** What lands in one turn, or one event: so long, at most, do live ones of its type wait. Whichever is reached first. */
const TURN = { rows: 2_000, bytes: 2 * 1024 * 1024 } as const;
const SWEEP_MS = 3600 * 1000;

export interface ImportLanderOptions {
  readonly context: Pick<IngestContext, "store" | "duck" | "tableOptions">;
  readonly jobs: Pick<JobStore, "list">;
  readonly ingest: Pick<Ingest, "landBeside">;
  /** Whether this worker lands the queue: one does, as far as anybody can tell. Safety does not rest on it. */
  readonly isOurs: () => boolean;
  /** Limits of all jobs, windows, and live events that lag. */
  readonly pace: Pick<Pace, "after">;
  readonly log: Pick<Logger, "warn">;
  readonly registry: Registry;
  /** In ms. */
  readonly lookMs?: number;
}

/**
 * Lands what waits in the import queue, one append after the other and in turn with live events: by their jobs' priority,
 * then the older job's, then by position. What a job has queued that was cancelled is taken away, of one that is paused
 * it stays.
 */
export class ImportLander {
  private readonly stopping = new AbortController();
  private queue: ImportQueue | undefined;
  private running: Promise<void> | undefined;
  /** As of the last look, by their streams. */
  private known: { readonly jobs: ReadonlyMap<string, Job>; readonly at: number } | undefined;
  /** Of a stream and type whose table took nothing, or whose file cannot be read: when to ask again. */
  private readonly passed = new Map<string, number>();
  private sweeper: { readonly sweep: Sweep; at: number } | undefined;
  /** What was landed last. */
  private last = { rows: 0, bytes: 0 };
  private readonly gauges: Readonly<Record<"rows" | "bytes" | "seconds", Gauge>>;

  constructor(private readonly options: ImportLanderOptions) {
    const registers = [options.registry];
    this.gauges = {
      rows: new Gauge({
        name: "tributary_imports_waiting_rows",
        help: "Rows that wait in the import queue.",
        registers,
      }),
      bytes: new Gauge({
        name: "tributary_imports_waiting_bytes",
        help: "Bytes of the files that they lie in.",
        registers,
      }),
      seconds: new Gauge({
        name: "tributary_imports_waiting_seconds",
        help: "For how long the oldest of them has waited; 0 when none waits.",
        registers,
      }),
    };
  }

  /** Looks again and again until `close`. */
  start(): void {
    this.running ??= this.run();
  }

  private async run(): Promise<void> {
    const { signal } = this.stopping;
    const { log, lookMs = LOOK_MS } = this.options;
    while (!signal.aborted) {
      try {
        while (await this.round());
      } catch (error) {
        if (signal.aborted) return;
        log.warn({ err: error }, "the import queue cannot be landed; trying again");
        // What is in memory may be what is wrong.
        this.queue = undefined;
        this.sweeper = undefined;
      }
      await sleep(lookMs, undefined, { signal, ref: false }).catch(() => undefined);
    }
  }

  /** Lands one append, of whatever type can have it. False when there is nothing to do now. */
  private async round(): Promise<boolean> {
    const { context, isOurs } = this.options;
    if (!isOurs()) {
      // Somebody else tells.
      this.tell([]);
      return false;
    }
    this.queue ??= await ImportQueue.open(context);
    const { queue } = this;
    if (queue === undefined) return false;
    const waiting = await queue.look();
    this.tell(waiting);
    if (waiting.length === 0 && queue.streams.size === 0) return false;
    const jobs = await this.jobs();
    for (const stream of queue.streams) {
      const job = jobs.get(stream);
      if (job !== undefined && (isCancelled(job) || job.state.phase === "done")) await queue.forget(stream);
    }
    for (const one of inTheirOrder(waiting, jobs)) if (await this.tried(queue, one)) return true;
    await this.sweep(queue);
    return false;
  }

  /** As `land`; what cannot be landed now holds up no other. */
  private async tried(queue: ImportQueue, waiting: Waiting): Promise<boolean> {
    const { log, lookMs = LOOK_MS } = this.options;
    const { stream, entityType } = waiting;
    const key = queuedAs(stream, entityType);
    if ((this.passed.get(key) ?? 0) > performance.now()) return false;
    this.passed.delete(key);
    const landed = await this.land(queue, waiting).catch((error: unknown) => {
      this.stopping.signal.throwIfAborted();
      log.warn({ err: error, stream, entityType }, "what waits in the import queue cannot be landed");
      return false;
    });
    if (!landed) this.passed.set(key, performance.now() + lookMs);
    return landed;
  }

  /** Removes what has landed from the store, once no reader can need it. */
  private async sweep({ table }: ImportQueue): Promise<void> {
    if (this.sweeper === undefined) this.sweeper = { sweep: new Sweep(table), at: performance.now() };
    if (performance.now() - this.sweeper.at < SWEEP_MS) return;
    this.sweeper.at = performance.now();
    await this.sweeper.sweep.run();
  }

  private async jobs(): Promise<ReadonlyMap<string, Job>> {
    const { jobs, lookMs = LOOK_MS } = this.options;
    if (this.known === undefined || performance.now() - this.known.at >= lookMs) {
      const at = performance.now();
      const list = await jobs.list();
      this.known = { jobs: new Map(list.map((job) => [streamOf(job.order.id), job])), at };
    }
    return this.known.jobs;
  }

  /** Whether it has landed. Some of it may have, and is left out when it comes again. */
  private async land(queue: ImportQueue, waiting: Waiting): Promise<boolean> {
    for (const part of turnsOf(await queue.read(waiting))) if (!(await this.turn(part))) return false;
    await queue.landed(waiting);
    return true;
  }

  private async turn(events: EventBatch): Promise<boolean> {
    const { ingest, pace } = this.options;
    const { signal } = this.stopping;
    await pace.after(this.last, signal);
    this.last = { rows: 0, bytes: 0 };
    const since = performance.now();
    for (;;) {
      signal.throwIfAborted();
      const outcome = await ingest.landBeside(events, performance.now() - since);
      if (outcome === "landed") break;
      if (outcome !== "busy") return false;
      await sleep(ASK_MS, undefined, { signal, ref: false });
    }
    this.last = { rows: events.count, bytes: events.byteCount };
    return true;
  }

  private tell(waiting: readonly Waiting[]): void {
    const { rows, bytes, oldest } = backlogOf(waiting);
    this.gauges.rows.set(rows);
    this.gauges.bytes.set(bytes);
    this.gauges.seconds.set(oldest === undefined ? 0 : Math.max(0, Date.now() - oldest) / 1000);
  }

  /** Ends behind what is just landing. */
  async close(): Promise<void> {
    this.stopping.abort();
    await this.running;
    await this.queue?.table.settled();
  }
}

/** Cancelled, or to be: nothing more of it lands. */
const isCancelled = ({ wish, state }: Job): boolean => wish === "cancel" || state.phase === "cancelled";
const isPaused = ({ wish, state }: Job): boolean => wish === "pause" || state.phase === "paused";

/**
 * What is next of each stream and type, in the order of their turns. What no job is known of has come by another way, and
 * goes as jobs of no particular priority do.
 */
function inTheirOrder(waiting: readonly Waiting[], jobs: ReadonlyMap<string, Job>): Waiting[] {
  const heads = new Map<string, Waiting>();
  for (const one of waiting) {
    const job = jobs.get(one.stream);
    if (job !== undefined && (isCancelled(job) || isPaused(job))) continue;
    const lane = [one.entityType, one.stream, one.partition].join("\n");
    const before = heads.get(lane);
    if (before === undefined || one.first < before.first) heads.set(lane, one);
  }
  const priority = ({ stream }: Waiting) => jobs.get(stream)?.order.priority ?? 0;
  const asked = ({ stream, since }: Waiting) => Date.parse(jobs.get(stream)?.order.at ?? "") || since;
  return [...heads.values()].sort((a, b) => priority(b) - priority(a) || asked(a) - asked(b));
}

/** In their order, as they are to land one after the other. */
function* turnsOf(events: EventBatch): Generator<EventBatch> {
  const envelope = new Envelope();
  let part = new EventBatch(events.entityType, events.stream);
  for (let i = 0; i < events.count; i++) {
    events.read(i, envelope);
    if (
      part.count === TURN.rows ||
      (part.count > 0 && part.byteCount + envelope.end - envelope.start > TURN.bytes)
    ) {
      yield part;
      part = new EventBatch(events.entityType, events.stream);
    }
    part.take(events, i, envelope);
  }
  if (part.count > 0) yield part;
}
