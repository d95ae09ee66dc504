import { disaggregate } from "./aggregate.js";
import { eventPosition, recordPosition } from "./positions.js";
import type { FetchedRecord, ShardSource } from "./shard-source.js";

/** A shard asks for more once it holds less than this. */
const LOW_BYTES = 256 * 1024;
/** What an event occupies beside its bytes, about: records may be empty, and hold events of no bytes. */
const EVENT_BYTES = 64;
/** What one answer of a shard may hold. */
const MOST_BYTES = 10 * 1024 * 1024;

/** A record's events that have not all been delivered. */
export interface HeldRecord {
  readonly data: Uint8Array;
  readonly starts: readonly number[];
  readonly ends: readonly number[];
  /** What its events' positions begin with. */
  readonly record: string;
  readonly arrivedAt: number;
  /** The next event to be delivered. */
  at: number;
}

/** Room for what shards hold, shared by them. */
export interface FeedRoom {
  /** Waits for room for so many bytes; resolves to what gives it back. */
  reserve(bytes: number, signal: AbortSignal): Promise<() => void>;
  /** There is something new for whoever reads. */
  wake(): void;
}

/** One shard, read ahead: its events wait here until they are delivered. */
export class ShardFeed {
  readonly records: HeldRecord[] = [];
  /** Position of the last event delivered, or done before this feed began. */
  last: string | undefined;
  /** Last positions and arrival times of records that have been delivered, oldest first; for whoever keeps count. */
  readonly delivered: { readonly position: string; readonly arrivedAt: number }[] = [];
  failure: unknown;
  private fetchedAll = false;
  private heldBytes = 0;
  private nextBytes = LOW_BYTES;
  private readonly stopping = new AbortController();
  private more: () => void = () => undefined;

  constructor(
    readonly name: string,
    after: string | undefined,
    private readonly room: FeedRoom,
    /** Told after each answer, when its records are held, how far behind the newest one they leave us (ms). */
    private readonly onFetched: (behindMs: number) => void = () => undefined,
  ) {
    this.last = after;
  }

  /** Ends what its source does once it is stopped. */
  get signal(): AbortSignal {
    return this.stopping.signal;
  }

  get bytes(): number {
    return this.heldBytes;
  }

  /** All that was fetched has been delivered. What was stopped has forgotten what it held. */
  get drained(): boolean {
    return this.records.length === 0 && !this.signal.aborted;
  }

  /** All there is has been delivered, and nothing will come. */
  get ended(): boolean {
    return this.fetchedAll && this.drained;
  }

  /** Reads until stopped, to the shard's end or, when it only looks, to its newest record. */
  start(source: ShardSource, looks = false): void {
    this.run(source, looks).catch((error: unknown) => {
      if (this.signal.aborted) return;
      this.failure = error;
      this.room.wake();
    });
  }

  private async run(source: ShardSource, looks: boolean): Promise<void> {
    let newest = this.last;
    while (!this.fetchedAll) {
      while (this.heldBytes >= LOW_BYTES) {
        await new Promise<void>((resolve) => {
          this.more = resolve;
        });
        this.signal.throwIfAborted();
      }
      const giveBack = await this.room.reserve(this.nextBytes, this.signal);
      try {
        const { records, behindMs, ended } = await source.next();
        this.signal.throwIfAborted();
        let bytes = 0;
        for (const record of records) {
          bytes += record.data.length;
          newest = this.hold(record, newest);
        }
        if (bytes > 0) this.nextBytes = Math.min(MOST_BYTES, Math.max(LOW_BYTES, 2 * bytes));
        this.onFetched(behindMs);
        this.fetchedAll = ended || (looks && behindMs === 0);
        if (records.length > 0 || this.fetchedAll) this.room.wake();
      } finally {
        giveBack();
      }
    }
  }

  /** Returns the newest position that has been here; what is not newer than `after` has been here before. */
  private hold({ data, sequence, arrivedAt }: FetchedRecord, after: string | undefined): string | undefined {
    const record = recordPosition(sequence);
    const { starts, ends } = disaggregate(data) ?? { starts: [0], ends: [data.length] };
    const count = starts.length;
    let at = 0;
    if (after !== undefined) while (at < count && eventPosition(record, at) <= after) at++;
    if (at === count) return after;
    this.records.push({ data, starts, ends, record, arrivedAt, at });
    this.heldBytes += sizeOf({ data, starts });
    return eventPosition(record, count - 1);
  }

  /** The first record has been delivered whole. */
  shift(): void {
    const record = this.records.shift();
    if (record === undefined) return;
    this.delivered.push({ position: this.last!, arrivedAt: record.arrivedAt });
    this.heldBytes -= sizeOf(record);
    if (this.heldBytes < LOW_BYTES) this.more();
  }

  /** Reads no more and forgets what it holds. */
  stop(): void {
    this.stopping.abort();
    this.records.length = 0;
    this.heldBytes = 0;
    this.more();
  }
}

const sizeOf = ({ data, starts }: Pick<HeldRecord, "data" | "starts">): number =>
  data.length + EVENT_BYTES * starts.length;
