import { setTimeout as sleep } from "node:timers/promises";
import { Retry } from "../base/retry.js";
import type { ChangeStreamReader, StreamBatch, StreamConsumer } from "../stream/change-stream.js";
import { Compactor } from "./compactor.js";
import type { IngestContext } from "./context.js";
import { EventBatch, route, type Unreadable } from "./event-batch.js";
import { isEngineGone, tell } from "./failure.js";
import { Lane } from "./lane.js";
import { ProgressTracker } from "./progress-tracker.js";

export const CONSUMER = "ingest";
const IDLE_WAIT_MS = 1_000;
/** How long a stop waits for what was read to land; it is in the stream anyway. */
const DRAIN_MS = 15_000;
/** Batches of one entity type wait in memory up to this many times the flush size; then reading stops (I10). */
const MAX_PENDING_FLUSHES = 2;

interface Pending {
  batch: EventBatch;
  reads: Set<number>;
  readonly since: number;
}

/**
 * From the stream into tables. Events gather per entity type and flush by size, or by age while the commit budget
 * lasts; reading goes on while batches land. Progress is in the tables' own commits; the stream's low-water record
 * only follows.
 */
export class Pipeline {
  private readonly lanes = new Map<string, Promise<Lane>>();
  private readonly pending = new Map<string, Pending>();
  private readonly flushing = new Map<string, Promise<void>>();
  private readonly progress = new ProgressTracker();
  private readonly stopping = new AbortController();
  private readonly compactor: Compactor;
  private pendingBytes = 0;
  private tokens: number;
  private refilledAt = performance.now();
  private lowWaterWrite: Promise<void> = Promise.resolve();
  private readonly burying = new Set<Promise<void>>();
  /** Ends a wait for events: something has landed, or it is time to stop. */
  private wake = new AbortController();
  private failure: unknown;

  constructor(
    private readonly context: IngestContext,
    private readonly reader: ChangeStreamReader,
  ) {
    this.compactor = new Compactor(context);
    this.tokens = context.config.ingest.commitsPerSecond;
  }

  /** Opens the lanes of raw tables that exist, so that models that are behind catch up without waiting for events. */
  openLanes(entityTypes: readonly string[]): void {
    for (const type of entityTypes) void this.lane(type).catch(() => undefined);
  }

  /** True while some model is not in step with raw. */
  async behind(): Promise<boolean> {
    const lanes = await Promise.all(this.lanes.values());
    return lanes.some((lane) => lane.behind);
  }

  /** Runs until `stop`. Rejects when the stream cannot be read, or when a fault of our own stops a lane. */
  async run(): Promise<void> {
    const consumer = await this.reader.consume(CONSUMER);
    const { signal } = this.stopping;
    try {
      while (!signal.aborted) await this.step(consumer);
      await this.drain(consumer);
      if (this.failure !== undefined) throw this.failure;
    } finally {
      await this.compactor.close();
      // A pause between tries ends too: what was given up is read again at the next start.
      this.stopping.abort();
      const lanes = await Promise.allSettled(this.lanes.values());
      await Promise.all(lanes.map((lane) => (lane.status === "fulfilled" ? lane.value.close() : undefined)));
      await Promise.allSettled([...this.flushing.values(), ...this.burying]);
      await this.lowWaterWrite;
      await consumer.close();
    }
  }

  /** Reads what there is, then flushes what is due. */
  private async step(consumer: StreamConsumer): Promise<void> {
    const { flushEvents, flushBytes } = this.context.config.ingest;
    if (this.pendingBytes >= flushBytes * MAX_PENDING_FLUSHES) {
      this.flushDue(consumer);
      if (this.flushing.size === 0) this.flushLargest(consumer);
      // A lane whose store is down tries for ever: look now and then whether it is time to stop.
      await Promise.race([...this.flushing.values(), sleep(IDLE_WAIT_MS, undefined, { ref: false })]);
      return;
    }
    if (this.wake.signal.aborted) this.wake = new AbortController();
    const read = await consumer.read({
      maxEvents: flushEvents,
      maxBytes: flushBytes,
      waitMs: this.untilDue(),
      signal: this.wake.signal,
    });
    if (read !== undefined) this.take(read, consumer);
    this.flushDue(consumer);
  }

  /** Lands what was read and ends `run`. */
  stop(): void {
    this.stopping.abort();
    this.wake.abort();
  }

  private take(read: StreamBatch, consumer: StreamConsumer): void {
    const end = new Map<string, string>();
    for (let i = 0; i < read.count; i++) {
      end.set(this.reader.partitions[read.partitions[i]!]!, read.positions[i]!);
    }
    const number = this.progress.begin(end);
    const touched = new Set<string>();
    const unreadable: Unreadable[] = [];
    const now = performance.now();
    route(
      read,
      this.reader.partitions,
      (type) => {
        let pending = this.pending.get(type);
        if (pending === undefined) {
          pending = { batch: new EventBatch(type, this.context.stream), reads: new Set(), since: now };
          this.pending.set(type, pending);
        }
        if (!touched.has(type)) {
          touched.add(type);
          pending.reads.add(number);
          this.progress.hold(number);
        }
        return pending.batch;
      },
      (event) => unreadable.push(event),
    );
    for (let i = 0; i < read.count; i++) this.pendingBytes += read.ends[i]! - read.starts[i]!;
    if (unreadable.length > 0) {
      this.progress.hold(number);
      for (const { event } of unreadable) this.pendingBytes -= event.length;
      const burial = this.buryUnreadable(unreadable)
        .then(() => this.landed([number], 0, consumer))
        .catch(() => undefined)
        .finally(() => this.burying.delete(burial));
      this.burying.add(burial);
    }
    this.progress.seal(number);
  }

  /** Milliseconds until the oldest batch that waits may flush; those of a lane that is busy are looked at when it is not. */
  private untilDue(): number {
    const { lingerMs, commitsPerSecond } = this.context.config.ingest;
    let oldest = Number.POSITIVE_INFINITY;
    for (const [type, { since }] of this.pending) {
      if (!this.flushing.has(type)) oldest = Math.min(oldest, since);
    }
    if (oldest === Number.POSITIVE_INFINITY) return IDLE_WAIT_MS;
    const age = lingerMs - (performance.now() - oldest);
    const budget = this.refill() >= 1 ? 0 : ((1 - this.tokens) * 1000) / commitsPerSecond;
    return Math.max(1, Math.ceil(Math.max(age, budget)));
  }

  private refill(): number {
    const { commitsPerSecond } = this.context.config.ingest;
    const now = performance.now();
    this.tokens = Math.min(
      commitsPerSecond,
      this.tokens + ((now - this.refilledAt) * commitsPerSecond) / 1000,
    );
    this.refilledAt = now;
    return this.tokens;
  }

  private flushDue(consumer: StreamConsumer): void {
    const { flushEvents, flushBytes, lingerMs } = this.context.config.ingest;
    this.refill();
    const now = performance.now();
    for (const [type, pending] of [...this.pending].sort(([, a], [, b]) => a.since - b.since)) {
      if (this.flushing.has(type)) continue;
      const full = pending.batch.count >= flushEvents || pending.batch.byteCount >= flushBytes;
      if (!full && (now - pending.since < lingerMs || this.tokens < 1)) continue;
      this.flush(type, pending, consumer);
    }
  }

  /** Memory goes before the commit budget. */
  private flushLargest(consumer: StreamConsumer): void {
    const [largest] = [...this.pending].sort(([, a], [, b]) => b.batch.byteCount - a.batch.byteCount);
    if (largest !== undefined) this.flush(...largest, consumer);
  }

  private flush(type: string, pending: Pending, consumer: StreamConsumer): void {
    this.pending.delete(type);
    const flush = this.land(type, pending).then(
      () => {
        this.flushing.delete(type);
        this.landed([...pending.reads], pending.batch.byteCount, consumer);
      },
      (error: unknown) => {
        this.flushing.delete(type);
        // Lanes try again until they are closed: after that, what has not landed is read again at the next start.
        if (this.stopping.signal.aborted) return;
        this.failure = error;
        this.stop();
      },
    );
    this.flushing.set(type, flush);
  }

  private async land(type: string, { batch }: Pending): Promise<void> {
    const started = performance.now();
    const lane = await this.lane(type);
    // Raw takes one commit and each model another.
    // Full batches do not ask for it; what they overdraw must not keep later ones waiting for long.
    const { commitsPerSecond } = this.context.config.ingest;
    this.tokens = Math.max(this.tokens - 1 - lane.targets.length, -commitsPerSecond);
    let failed = false;
    await this.untilWell(type, "landing failed; trying again", async () => {
      if (failed) await lane.reopen();
      failed = true;
      await lane.land(batch);
    });
    this.context.metrics.landSeconds.observe((performance.now() - started) / 1000);
    this.context.metrics.freshnessSeconds.set((Date.now() - batch.receivedAt.at(-1)!) / 1000);
    this.compactor.consider(lane);
  }

  private landed(reads: readonly number[], bytes: number, consumer: StreamConsumer): void {
    this.pendingBytes -= bytes;
    this.wake.abort();
    for (const read of reads) this.progress.release(read);
    const end = this.progress.advance();
    if (end !== undefined) {
      this.lowWaterWrite = this.lowWaterWrite
        .then(() => consumer.commit(end))
        .catch((error: unknown) =>
          this.context.log.warn({ err: error }, "the low-water record was not written"),
        );
    }
  }

  private lane(type: string): Promise<Lane> {
    let lane = this.lanes.get(type);
    if (lane === undefined) {
      lane = this.openLane(type);
      this.lanes.set(type, lane);
    }
    return lane;
  }

  private openLane(type: string): Promise<Lane> {
    return this.untilWell(type, "a lane does not open; trying again", () => Lane.open(this.context, type));
  }

  /** Tries again until raw is well, telling of it meanwhile. */
  private async untilWell<T>(type: string, message: string, work: () => Promise<T>): Promise<T> {
    const { health, log } = this.context;
    const result = await new Retry(this.stopping.signal).run(work, ({ error, attempts, pauseMs }) => {
      if (isEngineGone(error)) throw error;
      log.error({ err: error, entityType: type, attempts, pauseMs }, message);
      health.set({
        kind: "raw",
        name: type,
        entityType: type,
        state: "quarantined",
        ...tell(error),
        remedy: `tributary table repair raw/${type}`,
        attempts,
        nextTryAt: new Date(Date.now() + pauseMs).toISOString(),
        parkedBytes: 0,
        held: false,
      });
    });
    health.clear("raw", type);
    return result;
  }

  private async buryUnreadable(events: readonly Unreadable[]): Promise<void> {
    const { stream, deadLetters, metrics, log } = this.context;
    await new Retry(this.stopping.signal).run(
      () =>
        deadLetters.add(
          events.map((event) => ({ ...event, model: "", reason: "the event cannot be read", stream })),
        ),
      ({ error }) => log.error({ err: error }, "unreadable events wait for the dead-letter table"),
    );
    metrics.deadLetters.inc({ model: "" }, events.length);
  }

  /** Lands what was read, unless that takes too long: the store may be down, and lanes try for ever. */
  private async drain(consumer: StreamConsumer): Promise<void> {
    const end = performance.now() + DRAIN_MS;
    while ((this.pending.size > 0 || this.flushing.size > 0) && this.failure === undefined) {
      for (const [type, pending] of this.pending) {
        if (!this.flushing.has(type)) this.flush(type, pending, consumer);
      }
      const left = end - performance.now();
      if (left <= 0) return;
      await Promise.race([...this.flushing.values(), sleep(left, undefined, { ref: false })]);
    }
    await Promise.all(this.burying);
  }
}
