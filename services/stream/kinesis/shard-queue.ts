import type { Appended, OutgoingEvents } from "../change-stream.js";
import { AGGREGATE_OVERHEAD, aggregate, aggregatedBytes, looksAggregated, type Slice } from "./aggregate.js";
import { eventPosition, recordPosition } from "./positions.js";
import { hashKeyOf } from "./stream-api.js";

/**
 * Beyond this an aggregated record takes no further event. A shard takes a megabyte a second: larger ones would find it
 * full, smaller ones waste more of the 25 kB steps in which records are billed.
 */
const AGGREGATE_BYTES = 256 * 1024;

/** One call of `append` on its way. */
export class Appending {
  readonly done: Promise<Appended>;
  private readonly positions: (string | undefined)[];
  private readonly partitions: Uint16Array;
  private readonly names: string[] = [];
  private left: number;
  private resolve: (appended: Appended) => void = () => undefined;
  private reject: (error: unknown) => void = () => undefined;

  constructor(
    readonly events: OutgoingEvents,
    private readonly tooLarge: ReadonlySet<number>,
  ) {
    this.left = events.count - tooLarge.size;
    this.positions = new Array<string | undefined>(events.count).fill(undefined);
    this.partitions = new Uint16Array(events.count);
    this.done = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    this.settled(0);
  }

  place(index: number, partition: string, position: string): void {
    let name = this.names.indexOf(partition);
    if (name < 0) name = this.names.push(partition) - 1;
    this.partitions[index] = name;
    this.positions[index] = position;
  }

  /** So many events have a position now, or will not get one. */
  settled(count: number): void {
    this.left -= count;
    if (this.left > 0) return;
    // Refused events name a partition as well, so that every index is one.
    if (this.names.length === 0 && this.events.count > 0) this.names.push("");
    const { names, partitions, positions, tooLarge } = this;
    this.resolve({ names, partitions, positions, ...(tooLarge.size > 0 ? { tooLarge } : {}) });
  }

  fail(error: unknown): void {
    this.reject(error);
  }
}

/** Events of one call that go to one shard, in their order. */
interface Run {
  readonly appending: Appending;
  readonly indexes: readonly number[];
  next: number;
  readonly since: number;
  /** The stream may hold some of what has no position yet. */
  doubtful: boolean;
}

export interface OutgoingRecord {
  readonly data: Uint8Array;
  readonly partitionKey: string;
  readonly hashKey: string;
  readonly events: number;
  /** Of the events alone. */
  readonly bytes: number;
}

/**
 * What waits for one shard. One record of a shard is on its way at a time, so that no failure of one lets a later one
 * overtake it; meanwhile whatever comes gathers for the next record.
 */
export class ShardQueue {
  private runs: Run[] = [];
  /** No further try before this time (performance.now()). */
  retryAt = 0;
  failures = 0;
  sending: OutgoingRecord | undefined;

  constructor(
    readonly id: string,
    private readonly maxRecordBytes: number,
  ) {}

  get waits(): boolean {
    return this.runs.length > 0;
  }

  add(appending: Appending, indexes: readonly number[], since: number, doubtful = false): void {
    this.runs.push({ appending, indexes, next: 0, since, doubtful });
  }

  /** Its first events as one record. */
  take(): OutgoingRecord {
    const slices: Slice[] = [];
    const limit = Math.min(this.maxRecordBytes, AGGREGATE_BYTES);
    let size = AGGREGATE_OVERHEAD;
    let bytes = 0;
    let slot = 0;
    taking: for (const { appending, indexes, next } of this.runs) {
      const { bytes: buffer, starts, ends, slots } = appending.events;
      for (let i = next; i < indexes.length; i++) {
        const event = indexes[i]!;
        const [start, end] = [starts[event]!, ends[event]!];
        size += aggregatedBytes(end - start);
        if (slices.length > 0 && size > limit) break taking;
        if (slices.length === 0) slot = slots[event]!;
        slices.push({ bytes: buffer, start, end });
        bytes += end - start;
      }
    }
    const partitionKey = String(slot);
    const hashKey = hashKeyOf(slot);
    const [first] = slices;
    const alone = slices.length === 1 && !looksAggregated(first!.bytes, first!.start);
    const data = alone
      ? first!.bytes.subarray(first!.start, first!.end)
      : aggregate(slices, partitionKey, hashKey);
    this.sending = { data, partitionKey, hashKey, events: slices.length, bytes };
    return this.sending;
  }

  /** Its record stands in the stream. Returns the position of its last event. Errors: TRB-STREAM-CORRUPT. */
  stored(shard: string, sequence: string): string {
    const record = recordPosition(sequence);
    const { events } = this.sending!;
    this.sending = undefined;
    this.failures = 0;
    for (let place = 0; place < events; ) {
      const run = this.runs[0]!;
      const count = Math.min(run.indexes.length - run.next, events - place);
      for (let i = 0; i < count; i++) {
        run.appending.place(run.indexes[run.next + i]!, shard, eventPosition(record, place + i));
      }
      run.next += count;
      place += count;
      if (run.next === run.indexes.length) this.runs.shift();
      run.appending.settled(count);
    }
    return eventPosition(record, events - 1);
  }

  /** Its record was refused, or may have been stored all the same when `doubtful`; its events wait on. */
  failed(doubtful: boolean): void {
    let left = this.sending?.events ?? 0;
    this.sending = undefined;
    this.failures++;
    if (!doubtful) return;
    for (const run of this.runs) {
      if (left <= 0) return;
      run.doubtful = true;
      left -= run.indexes.length - run.next;
    }
  }

  /** Gives up what has waited since before `refuseBefore`, or what is in doubt since before `failBefore`. */
  giveUp(refuseBefore: number, failBefore: number, error: () => unknown): void {
    this.runs = this.runs.filter(({ appending, indexes, next, since, doubtful }) => {
      if (since > (doubtful ? failBefore : refuseBefore)) return true;
      if (doubtful) appending.fail(error());
      else appending.settled(indexes.length - next);
      return false;
    });
  }

  /** All that waits, to be queued anew by the shards that there are now. */
  drain(): { appending: Appending; indexes: readonly number[]; since: number; doubtful: boolean }[] {
    const { runs } = this;
    this.runs = [];
    return runs.map(({ next, indexes, ...run }) => ({ ...run, indexes: indexes.slice(next) }));
  }

  /** Lets all go, with an error, what is on its way too. */
  fail(error: unknown): void {
    this.sending = undefined;
    for (const { appending } of this.drain()) appending.fail(error);
  }
}
