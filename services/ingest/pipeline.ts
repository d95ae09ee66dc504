import { setTimeout as sleep } from "node:timers/promises";
import { Retry } from "../base/retry.js";
import { within } from "../base/within.js";
import {
  bytesOf,
  type ChangeStreamReader,
  type Checkpoint,
  type Partition,
  type PartitionHolder,
  type StreamBatch,
  type StreamConsumer,
} from "../stream/change-stream.js";
import { CommitBudget, OVERDUE_MS } from "./commit-budget.js";
import { Compactor } from "./compactor.js";
import type { IngestContext } from "./context.js";
import { EVENT_BYTES, type EventBatch, route, type Unreadable } from "./event-batch.js";
import { isLakeClosed } from "./failure.js";
import { farthest, knownTypes } from "./farthest.js";
import { fresh } from "./fresh-events.js";
import { Holdings } from "./holdings.js";
import { joinedUnlessStopped } from "./joining.js";
import { type Beside, type KeeperHost, LaneKeeper } from "./lane-keeper.js";
import { LowWaterRecord } from "./low-water-record.js";
import { parkedTables } from "./parked-log.js";
import { ProgressTracker } from "./progress-tracker.js";
import { RetentionWatch } from "./retention.js";
import { UNREADABLE, Unreadables } from "./unreadables.js";

export const CONSUMER = "ingest";
const IDLE_WAIT_MS = 1_000;
/** How long a stop waits for what was read to land; it is in the stream anyway. */
const DRAIN_MS = 15_000;
/** How long handing partitions over waits for a landing; then what lands is parked too, where that is possible. */
const HAND_OVER_MS = 3_000;
/** Events wait in memory up to this many times the flush size, those that land among them; then reading stops (I10). */
const MAX_PENDING_FLUSHES = 2;
/** The part of that which one type may take while it does not land. */
const SHARE = 1 / 4;

/**
 * From the stream into tables: reads, sorts events by entity type, and says which type's turn it is to land, by age,
 * size and the commit budget. What becomes of a batch is its keeper's business. Progress is in the tables' own
 * commits; the stream's low-water record only follows.
 */
export class Pipeline implements PartitionHolder {
  private readonly context: IngestContext;
  private readonly holdings: Holdings;
  private readonly keepers = new Map<string, LaneKeeper>();
  readonly progress = new ProgressTracker();
  private readonly stopping = new AbortController();
  private readonly compactor: Compactor;
  private readonly budget: CommitBudget;
  private readonly unreadables: Unreadables;
  private readonly retention: RetentionWatch;
  /** Partition → the last position that was read: a stream may deliver an event again. */
  private readonly reached = new Map<string, string>();
  private pendingBytes = 0;
  private readonly lowWater: LowWaterRecord;
  /** Ends a wait for events: something has landed, or it is time to stop. */
  private wake = new AbortController();
  private failure: unknown;
  private consumer: StreamConsumer | undefined;
  private opening: Promise<void> = Promise.resolve();
  private rounds: Promise<void> = Promise.resolve();
  private join: () => void = () => undefined;
  private readonly retry = new Retry(this.stopping.signal);
  /** Nothing lands any more. */
  private ended = false;

  constructor(
    context: IngestContext,
    readonly reader: ChangeStreamReader,
    /** Whether events of the type come by this stream. */
    private readonly carries: (entityType: string) => boolean = () => true,
    /** What metrics call it. */
    called = reader.name,
  ) {
    this.joined = new Promise((resolve) => {
      this.join = resolve;
    });
    this.holdings = new Holdings(reader.name, context.crew);
    this.context = { ...context, stream: reader.name, ours: this.holdings };
    this.compactor = new Compactor(this.context);
    this.lowWater = new LowWaterRecord(context.log);
    this.budget = new CommitBudget(context.config.ingest.commitsPerSecond);
    this.retention = new RetentionWatch(context, called, reader, () => this.progress.oldest);
    this.unreadables = new Unreadables(this.context, this.host.fatal);
  }

  /**
   * Opens the lanes of types that have a raw table or parked events, without waiting for events: what another has left
   * half done is done.
   */
  openKnown(): void {
    const { store, log } = this.context;
    this.opening = this.opening.then(async () => {
      try {
        await this.retry.run(
          async () => {
            for (const type of await knownTypes(store)) if (this.carries(type)) this.keeper(type);
          },
          ({ error, pauseMs }) => log.warn({ err: error, pauseMs }, "the lake's tables cannot be listed"),
        );
      } catch (error) {
        if (!this.stopping.signal.aborted) this.host.fatal(error);
      }
    });
  }

  /** Runs until `stop`. Rejects when the stream cannot be read, or when only a new process helps. */
  async run(): Promise<void> {
    const { signal } = this.stopping;
    const joining = this.reader.consume(CONSUMER, this);
    this.consumer = await joinedUnlessStopped(joining, signal, HAND_OVER_MS);
    const { consumer } = this;
    try {
      if (consumer === undefined) return;
      this.join();
      this.beginRounds();
      this.retention.start();
      while (!signal.aborted) await this.step(consumer);
      await this.drain();
      if (this.failure !== undefined) throw this.failure;
    } finally {
      this.stopping.abort();
      this.ended = true;
      this.retention.close();
      await Promise.all([this.opening, this.rounds]);
      await this.compactor.close();
      await Promise.allSettled([...this.keepers.values()].map((keeper) => keeper.close()));
      await this.unreadables.close();
      await this.lowWater.settled();
      await consumer?.close();
    }
  }

  /** Lands what was read and ends `run`. */
  stop(): void {
    this.stopping.abort();
    this.wake.abort();
  }

  /** Resolves when the stream has taken this worker in. */
  readonly joined: Promise<void>;

  assigned(partitions: readonly Partition[]): void {
    // Who was let in late, by a stream that was away: nobody would close what is opened now.
    if (this.ended) return;
    // Their reading begins anew, also of one that comes back before it was handed over.
    this.forget(partitions.map(({ name }) => name));
    this.holdings.assigned(partitions);
    this.context.health.holds(this.reader.name, this.holdings.names);
    for (const keeper of this.keepers.values()) keeper.assigned();
    this.unreadables.assigned();
    this.openKnown();
  }

  async revoked(names: readonly string[]): Promise<void> {
    if (this.ended) return;
    const gone = this.holdings.leaving(names);
    const isDone = () => !this.progress.awaits(names);
    await this.settle(HAND_OVER_MS, isDone);
    if (!isDone()) {
      for (const keeper of this.keepers.values()) void keeper.setAside();
      await this.settle(HAND_OVER_MS, isDone);
    }
    await within(HAND_OVER_MS, this.lowWater.settled());
    // What did not land in time is read by whoever has them now.
    this.forget(gone());
    this.holdings.left(gone());
    this.context.health.holds(this.reader.name, this.holdings.names);
  }

  landed(): Promise<Checkpoint | undefined> {
    return farthest(this.context);
  }

  /** What is in memory of these partitions is nobody's business any more. */
  private forget(names: readonly string[]): void {
    this.progress.forget(names);
    for (const name of names) this.reached.delete(name);
    this.lowWater.forget(names);
    const gone = new Set(names);
    for (const keeper of this.keepers.values()) keeper.forget(gone);
  }

  /**
   * What nobody does of itself: tables that are tended here are looked at along tracks that nobody holds, and so is what
   * is parked, also by a worker that was frozen and parked what was not its own any more.
   */
  private beginRounds(): void {
    const wait = this.context.crew.lookMs;
    if (wait === undefined || this.stopping.signal.aborted) return;
    this.rounds = sleep(wait, undefined, { signal: this.stopping.signal, ref: false })
      .then(this.look, () => undefined)
      .finally(() => this.beginRounds());
  }

  /** One of these rounds, now. */
  readonly look = async (): Promise<void> => {
    try {
      const parked = new Set(await parkedTables(this.context.store));
      for (const keeper of this.keepers.values()) {
        if (parked.has(keeper.entityType)) keeper.assigned();
        else await keeper.look();
      }
      if (parked.has(UNREADABLE)) this.unreadables.assigned();
    } catch (error) {
      if (this.stopping.signal.aborted) return;
      this.context.log.warn({ err: error }, "what others have left cannot be looked at");
    }
  };

  /** Reads what there is, then flushes what is due. */
  private async step(consumer: StreamConsumer): Promise<void> {
    const { flushEvents, flushBytes } = this.context.config.ingest;
    if (this.wake.signal.aborted) this.wake = new AbortController();
    const { signal } = this.wake;
    if (this.pendingBytes >= flushBytes * MAX_PENDING_FLUSHES) {
      this.flushDue();
      if (![...this.keepers.values()].some(({ busy }) => busy)) this.flushLargest();
      const waitMs = Math.max(1, Math.min(this.untilDue(), IDLE_WAIT_MS));
      await sleep(waitMs, undefined, { signal, ref: false }).catch(() => undefined);
      return;
    }
    const waitMs = this.untilDue();
    const read = await consumer.read({ maxEvents: flushEvents, maxBytes: flushBytes, waitMs, signal });
    if (read !== undefined) this.take(read);
    this.flushDue();
  }

  private take(delivered: StreamBatch): void {
    const { read, end } = fresh(delivered, this.reached);
    for (const [partition, position] of end) this.reached.set(partition, position);
    const number = this.progress.begin(
      end,
      read.receivedAt.reduce((a, b) => Math.min(a, b), Date.now()),
    );
    const unreadable: Unreadable[] = [];
    route(
      read,
      (type) => this.keeper(type).gather(number, () => this.progress.hold(number)),
      // Not as a slice: it may wait for long, and would keep all of the read.
      (event) => unreadable.push({ ...event, event: Buffer.from(event.event) }),
    );
    this.pendingBytes += bytesOf(read) + EVENT_BYTES * read.count;
    if (unreadable.length > 0) {
      this.progress.hold(number);
      const bytes = unreadable.reduce((sum, { event }) => sum + event.length + EVENT_BYTES, 0);
      const settled = () => {
        this.settled([number]);
        this.freed(bytes);
      };
      // Rejects only after a stop: then it is read again.
      this.unreadables.bury(unreadable).then(settled, () => undefined);
    }
    this.progress.seal(number);
  }

  /** Milliseconds until something may flush. */
  private untilDue(): number {
    const now = performance.now();
    let soonest = IDLE_WAIT_MS;
    for (const keeper of this.keepers.values()) {
      const due = keeper.dueIn(now);
      if (due === undefined) continue;
      const budget = keeper.lands && !keeper.full ? this.budget.until(now - keeper.since) : 0;
      soonest = Math.min(soonest, Math.max(due, budget));
    }
    return Math.max(1, Math.ceil(soonest));
  }

  private flushDue(): void {
    const now = performance.now();
    const waiting = [...this.keepers.values()]
      .filter((keeper) => keeper.dueIn(now) === 0)
      .sort((a, b) => a.since - b.since);
    let { flushing } = this;
    for (const keeper of waiting) {
      const lands = keeper.lands && !keeper.busy;
      if (lands && !keeper.full && !this.budget.allows(now - keeper.since, flushing)) continue;
      // Raw takes one commit and each model another.
      if (lands) this.budget.spend(1 + keeper.opened!.targets.length);
      flushing++;
      void keeper.flush();
    }
  }

  private get flushing(): number {
    return [...this.keepers.values()].filter(({ busy }) => busy).length;
  }

  /** Memory goes before the commit budget. */
  private flushLargest(): void {
    const [largest] = [...this.keepers.values()].sort((a, b) => b.waitingBytes - a.waitingBytes);
    void largest?.flush();
  }

  /**
   * Lands events that wait elsewhere in the lake, in turn with the stream's: while none of their type wait, or after so
   * long (ms) whether or not they do. As `Ingest.landBeside`.
   */
  async landBeside(events: EventBatch, waitedMs: number): Promise<Beside> {
    if (this.consumer === undefined || this.ended) return "away";
    const keeper = this.keeper(events.entityType);
    if (!keeper.lands) return "away";
    if (waitedMs < OVERDUE_MS && (keeper.busy || keeper.waitingBytes > 0)) return "busy";
    if (!this.budget.allows(waitedMs, this.flushing)) return "busy";
    this.budget.spend(1 + keeper.opened!.targets.length);
    return (await keeper.landBeside(events)) ? "landed" : "away";
  }

  private settled(reads: Iterable<number>): void {
    for (const read of reads) this.progress.release(read);
    const end = this.progress.advance();
    // The other lake begins at the record: what is parked here from now on has to come again there.
    if (end !== undefined && !isLakeClosed(this.failure)) this.lowWater.move(this.consumer, end);
  }

  private freed(bytes: number): void {
    this.pendingBytes -= bytes;
    this.wake.abort();
  }

  private keeper(type: string): LaneKeeper {
    let keeper = this.keepers.get(type);
    if (keeper === undefined) {
      const share = this.context.config.ingest.flushBytes * MAX_PENDING_FLUSHES * SHARE;
      keeper = new LaneKeeper(this.context, type, this.host, share);
      this.keepers.set(type, keeper);
    }
    return keeper;
  }

  /** Whether the table, by its name, is one that the stream's events go to. */
  moves(table: string): boolean {
    const model = this.context.models.find(({ name }) => name === table);
    const type = model?.entityType ?? (table.startsWith("raw/") ? table.slice("raw/".length) : undefined);
    return type !== undefined && this.carries(type);
  }

  /**
   * Runs the repair of a table, by its name, while nothing here writes it; then it is opened from scratch and tried
   * again, whatever pause runs.
   */
  repaired<T>(name: string, work: () => Promise<T>): Promise<T> {
    return this.compactor.between(() => this.repairedBetween(name, work));
  }

  private async repairedBetween<T>(name: string, work: () => Promise<T>): Promise<T> {
    const raw = name.startsWith("raw/") ? this.keepers.get(name.slice("raw/".length)) : undefined;
    if (raw !== undefined) return raw.repaired(work);
    for (const { opened } of this.keepers.values()) {
      const seat = opened?.seat(name);
      if (seat !== undefined) return seat.repaired(work);
    }
    const result = await work();
    this.context.deadLetters.forget();
    this.hurry();
    return result;
  }

  /** Tries what cannot go on again now. */
  hurry(): void {
    for (const keeper of this.keepers.values()) keeper.hurry();
    this.unreadables.hurry();
  }

  private readonly host: KeeperHost = {
    settled: (reads) => this.settled(reads),
    freed: (bytes) => this.freed(bytes),
    landed: (lane) => this.compactor.consider(lane),
    ready: () => this.wake.abort(),
    fatal: (error) => {
      this.failure ??= error;
      this.stop();
    },
  };

  /** Lands or parks what was read, unless that takes too long. */
  private async drain(): Promise<void> {
    await this.settle(DRAIN_MS, () => this.failure !== undefined);
  }

  /** Flushes what was gathered until nothing waits or lands, until `isDone`, or until the time is up. */
  private async settle(ms: number, isDone: () => boolean): Promise<void> {
    const end = performance.now() + ms;
    while (!isDone()) {
      const left = end - performance.now();
      if (left <= 0) return;
      const flushes = [...this.keepers.values()]
        .filter((keeper) => keeper.waitingBytes > 0 || keeper.busy)
        .map((keeper) => (keeper.busy ? keeper.idle() : keeper.flush()));
      if (this.unreadables.busy) flushes.push(this.unreadables.settled());
      if (flushes.length === 0) return;
      await within(left, Promise.race(flushes));
    }
  }
}
