import { hasCode } from "../base/errors.js";
import type { IngestContext } from "./context.js";
import { EventBatch } from "./event-batch.js";
import { Lane } from "./lane.js";
import type { ParkedChunk } from "./parked-format.js";
import { Parking } from "./parking.js";
import { keepPayloads } from "./payloads.js";

/** A landing that takes longer holds up nobody but its own type: what waits behind it is parked when it grows. */
const SLOW_MS = 5_000;
/** What is to be parked gathers a little longer than what is to land: nobody can query it anyway. */
const PARK_AFTER_MS = 250;
const PARK_BYTES = 1024 * 1024;
/** A type's share of memory is for its own events; what it keeps of others', whose reads they came with, may be more. */
const HELD_SHARES = 4;

/** Events of one type that are in memory, and the reads of the stream they came with. */
export interface Gathered {
  readonly events: EventBatch;
  readonly reads: Set<number>;
  /** performance.now() when the first came. */
  readonly since: number;
}

/** What became of events that wait elsewhere: `busy` while live ones go first, `away` while their table takes none. */
export type Beside = "landed" | "busy" | "away";

export interface KeeperHost {
  /** The events of these reads are in raw or parked: the stream may forget them. */
  settled(reads: Iterable<number>): void;
  /** Their memory is free. */
  freed(bytes: number): void;
  /** A batch has landed. */
  landed(lane: Lane): void;
  /** What waits may flush now. */
  ready(): void;
  /** Only a new process helps. */
  fatal(error: unknown): void;
}

/**
 * One entity type on its way into its raw table, whatever becomes of that: while it lands, batches go straight to its
 * lane. When it cannot, or is slow, they are parked; then parked events land first, in order, and the lane is opened
 * from scratch until they do. Between the two there is no gap: nothing goes to the lane while anything is parked.
 */
export class LaneKeeper {
  private gathered: Gathered | undefined;
  private lane: Lane | undefined;
  private readonly parking: Parking;
  private flight:
    | { readonly batch: Gathered; readonly since: number; readonly done: Promise<void>; parked: boolean }
    | undefined;
  /** Landing or parking of what was gathered. */
  private work: Promise<void> | undefined;
  private readonly stopping = new AbortController();

  constructor(
    private readonly context: IngestContext,
    readonly entityType: string,
    private readonly host: KeeperHost,
    /** Bytes of memory that this type may take while it does not land. */
    private readonly share: number,
  ) {
    const { parkedBytes, flushEvents, flushBytes } = context.config.ingest;
    this.parking = new Parking(
      context,
      {
        about: {
          kind: "raw",
          name: entityType,
          entityType,
          remedy: `tributary table repair raw/${entityType}`,
        },
        parkedAs: entityType,
        budgetBytes: parkedBytes,
        atOnce: { events: flushEvents, bytes: flushBytes },
        prepare: () => this.openLane(),
        take: (chunk) => this.landParked(chunk),
        well: () => host.ready(),
        fatal: (error) => host.fatal(error),
      },
      this.stopping.signal,
    );
    this.parking.recover();
  }

  /** Undefined until raw has opened. */
  get opened(): Lane | undefined {
    return this.lane;
  }

  /** Where events of a read are added. `first` is called when these are the read's first of this type. */
  gather(read: number, first: () => void): EventBatch {
    this.gathered ??= {
      events: new EventBatch(this.entityType, this.context.stream),
      reads: new Set(),
      since: performance.now(),
    };
    if (!this.gathered.reads.has(read)) {
      this.gathered.reads.add(read);
      first();
    }
    return this.gathered.events;
  }

  /** Bytes that wait in memory, what is landing not among them. */
  get waitingBytes(): number {
    return this.gathered?.events.byteCount ?? 0;
  }

  /** True while what was gathered lands or is parked. */
  get busy(): boolean {
    return this.work !== undefined;
  }

  /** Resolves when that has ended. */
  async idle(): Promise<void> {
    await this.work;
  }

  /** True when a flush goes to the lane. Else it parks, which costs no commit. */
  get lands(): boolean {
    return this.lane !== undefined && this.parking.passed;
  }

  /** Milliseconds until what was gathered is worth a flush; undefined when there is nothing, or it cannot flush now. */
  dueIn(now: number): number | undefined {
    const { gathered } = this;
    if (gathered === undefined) return undefined;
    const { lingerMs, flushEvents, flushBytes } = this.context.config.ingest;
    const age = now - gathered.since;
    const bytes = gathered.events.byteCount;
    if (this.busy) {
      if (!this.overShare || this.flight === undefined || this.flight.parked) return undefined;
      return Math.max(0, SLOW_MS - (now - this.flight.since));
    }
    if (this.lands) {
      return gathered.events.count >= flushEvents || bytes >= flushBytes ? 0 : Math.max(0, lingerMs - age);
    }
    // Raw may be about to open, or to take in the last of what was parked.
    if (!this.parking.failing && !this.overShare) return Math.max(0, SLOW_MS - age);
    return bytes >= PARK_BYTES ? 0 : Math.max(0, PARK_AFTER_MS - age);
  }

  /** Whether what waits takes more memory than this type may while it does not land. */
  private get overShare(): boolean {
    if (this.gathered === undefined) return false;
    const { memoryBytes, heldBytes } = this.gathered.events;
    return memoryBytes >= this.share || heldBytes >= HELD_SHARES * this.share;
  }

  /** True when what was gathered fills a batch, which asks for no leave. */
  get full(): boolean {
    const { flushEvents, flushBytes } = this.context.config.ingest;
    return (
      this.gathered !== undefined &&
      (this.gathered.events.count >= flushEvents || this.gathered.events.byteCount >= flushBytes)
    );
  }

  /** When the oldest event that waits came (performance.now()). */
  get since(): number {
    return this.gathered?.since ?? Number.POSITIVE_INFINITY;
  }

  /** Lands or parks what was gathered. Never rejects; resolves when it is durable or was given up. */
  flush(): Promise<void> {
    const batch = this.gathered;
    if (batch === undefined) return Promise.resolve();
    if (this.busy) return this.spill();
    this.gathered = undefined;
    return this.doing(this.lands ? this.land(batch) : this.park(batch));
  }

  private doing(work: Promise<void>): Promise<void> {
    const done = work
      .catch((error: unknown) => {
        // Given up: it is read from the stream again at the next start.
        if (!this.stopping.signal.aborted) this.host.fatal(error);
      })
      .finally(() => {
        if (this.work === done) this.work = undefined;
      });
    this.work = done;
    return done;
  }

  private async land(batch: Gathered): Promise<void> {
    const lane = this.lane!;
    let ended: () => void = () => undefined;
    const done = new Promise<void>((resolve) => {
      ended = resolve;
    });
    const flight = { batch, since: performance.now(), done, parked: false };
    this.flight = flight;
    try {
      await lane.land(batch.events).finally(ended);
    } catch (error) {
      this.parking.failed({ error, attempts: 1, pauseMs: 0 });
      this.flight = undefined;
      if (!flight.parked) await this.park(batch);
      else this.host.freed(batch.events.memoryBytes);
      this.parking.recover();
      return;
    }
    this.flight = undefined;
    if (!flight.parked) this.host.settled(batch.reads);
    this.host.freed(batch.events.memoryBytes);
    const { metrics } = this.context;
    metrics.landSeconds.observe((performance.now() - flight.since) / 1000);
    metrics.freshnessSeconds.set((Date.now() - batch.events.receivedAt.at(-1)!) / 1000);
    this.host.landed(lane);
    if (flight.parked) this.parking.recover();
  }

  /**
   * Lands events that lie elsewhere until they have landed, in turn with those of the stream. False when the table does
   * not take them: nothing of them is parked, they are to come again. Errors: TRB-STREAM-CORRUPT, which is theirs alone.
   */
  async landBeside(events: EventBatch): Promise<boolean> {
    const { lane } = this;
    if (lane === undefined || !this.lands || this.stopping.signal.aborted) return false;
    try {
      await lane.landBeside(events);
    } catch (error) {
      if (this.stopping.signal.aborted) return false;
      if (hasCode(error, "TRB-STREAM-CORRUPT")) throw error;
      this.parking.failed({ error, attempts: 1, pauseMs: 0 });
      this.parking.recover();
      return false;
    }
    this.host.landed(lane);
    return true;
  }

  /** What lands at the moment takes long: it is parked too, and first, so that nothing parked is newer than it. */
  private async spill(): Promise<void> {
    const { flight } = this;
    if (flight === undefined || flight.parked) return;
    flight.parked = true;
    this.context.log.warn({ entityType: this.entityType }, "landing is slow; parking what waits behind it");
    const parking = (async () => {
      await this.aside(flight.batch.events);
      this.host.settled(flight.batch.reads);
      // Only now: events of a partition that went meanwhile are not in the log, and what follows them is forgotten by now.
      const { gathered } = this;
      this.gathered = undefined;
      if (gathered !== undefined) await this.park(gathered);
    })();
    // From here on more can be parked, while that still lands.
    await this.doing(parking);
  }

  /** Parks what lands at the moment, and what waits behind it: somebody else is to go on with them. */
  async setAside(): Promise<void> {
    if (this.flight !== undefined) await this.spill();
    else await this.flush();
  }

  /** Events of partitions that another reads now, of those that wait in memory, are his to land. */
  forget(partitions: ReadonlySet<string>): void {
    const { gathered } = this;
    if (gathered === undefined) return;
    const events = gathered.events.filter((i) => !partitions.has(gathered.events.partitions[i]!));
    this.gathered = events.count === 0 ? undefined : { ...gathered, events };
    if (events.count === 0) this.host.settled(gathered.reads);
    this.host.freed(gathered.events.memoryBytes - events.memoryBytes);
  }

  /** Looks at what others have done to the tables that are tended here. */
  async look(): Promise<void> {
    const { lane, context } = this;
    if (lane === undefined || this.busy || !lane.tables.some((table) => context.crew.tends(table))) return;
    await lane.look();
  }

  /** More partitions are ours: what others have done with them is looked at before anything of them lands. */
  assigned(): void {
    this.parking.assigned();
  }

  private aside(events: EventBatch): Promise<void> {
    return this.parking.append(events, () => keepPayloads(events, this.context.decoding.offloaded));
  }

  /** Parks a batch for good, or lands it should that be possible meanwhile. */
  private async park(batch: Gathered): Promise<void> {
    await this.aside(batch.events);
    this.host.settled(batch.reads);
    this.host.freed(batch.events.memoryBytes);
    this.parking.recover();
  }

  /** From scratch after a failure. */
  private async openLane(): Promise<void> {
    // A landing that was overtaken by its own patience, not by its end.
    await this.flight?.done;
    if (this.lane === undefined) {
      this.lane = await Lane.open(this.context, this.entityType, (error) => this.host.fatal(error));
      await this.lane.modelsTried();
    } else if (this.parking.failing) await this.lane.reopen();
    else await this.lane.look();
  }

  private async landParked(chunk: ParkedChunk): Promise<void> {
    await this.lane!.land(batchOf(this.entityType, chunk));
    this.host.landed(this.lane!);
  }

  /** Runs `work` while raw takes nothing, then reads its log from scratch, whatever pause runs. */
  async repaired<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await (this.lane === undefined ? work() : this.lane.repaired(work));
    } finally {
      this.parking.hurry();
    }
  }

  /** Tries again now, whatever pause runs. */
  hurry(): void {
    this.parking.hurry();
  }

  /** Ends once what runs has ended; what did not land is in the stream or parked. */
  async close(): Promise<void> {
    this.stopping.abort();
    await Promise.allSettled([this.work, this.flight?.done]);
    await this.parking.close();
    await this.lane?.close();
  }
}

function batchOf(entityType: string, events: ParkedChunk): EventBatch {
  const batch = new EventBatch(entityType, events.stream);
  for (let i = 0; i < events.count; i++) {
    const event = events.event(i);
    batch.add(event, 0, event.length, events.partitions[i]!, events.positions[i]!, events.receivedAt[i]!);
  }
  return batch;
}
