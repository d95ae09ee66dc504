import { TributaryError } from "../../base/errors.js";
import { KAFKA, Refused } from "./failures.js";
import { fetchApi } from "./fetch-api.js";
import { listOffsets } from "./offsets.js";
import { onceATurn } from "./once-a-turn.js";
import type { Topic } from "./topic.js";
import { type FetchedPartition, type Window, windowOf } from "./window.js";

export interface FetchLimits {
  /** One answer's size. As much again may wait to be read. */
  readonly bytes: number;
  /** How long a broker may wait for something to tell. */
  readonly waitMs: number;
}

/** Where reading of a partition stands; another object when it is taken up anew. */
export interface Cursor {
  readonly partition: number;
  /** Offset to fetch next. */
  next: number;
  /** Not to be fetched before, in ms of performance.now(). */
  notBefore: number;
  /** An answer is taken apart: what comes next is known after that. */
  unpacking: boolean;
}

/** Events of one answer, with the cursors that they were fetched for. */
export interface Fetched {
  /** Broker that has answered. */
  readonly leader: number;
  readonly window: Window;
  readonly cursors: ReadonlyMap<number, Cursor>;
}

const PARTITION_BYTES = 1024 * 1024;
/** An answer of so many bytes is worth a read of its own. */
const LARGE_BYTES = 256 * 1024;
const ANSWER_MS = 15_000;
const PAUSE_MS = 200;
/** How long nothing at all may be had before readers are told. */
const SILENT_MS = 15_000;

/**
 * Fetches ahead, one answer by each leader at a time, as long as little waits to be read: who reads slowly is not fed.
 * A leader whose answer is small is asked again once that is taken: what comes meanwhile makes the next one larger. A queue
 * of small ones would grow while somebody reads slowly, and whoever does something for each read would never be done with it.
 * What passes by itself is tried again; the rest is thrown by `take`.
 */
export class Fetcher {
  private readonly cursors = new Map<number, Cursor>();
  private readonly ready: Fetched[] = [];
  private readyBytes = 0;
  private readonly busy = new Set<number>();
  private wake: (() => void) | undefined;
  private failure: unknown;
  private passing: { readonly since: number; readonly error: unknown } | undefined;
  private timer: NodeJS.Timeout | undefined;
  private turn = 0;
  /** Once for all that are added together. */
  private readonly schedule = onceATurn(() => this.pump());
  private closed = false;

  constructor(
    private readonly topic: Topic,
    private readonly limits: FetchLimits,
  ) {}

  add(partition: number, next: number): Cursor {
    const cursor: Cursor = { partition, next, notBefore: 0, unpacking: false };
    this.cursors.set(partition, cursor);
    this.schedule();
    return cursor;
  }

  remove(partition: number): void {
    this.cursors.delete(partition);
  }

  holds(cursor: Cursor): boolean {
    return this.cursors.get(cursor.partition) === cursor;
  }

  /** What was fetched, oldest first; undefined when nothing has come. Errors: TRB-STREAM-…, TRB-BUS-STREAM-DOWN. */
  take(): Fetched | undefined {
    const fetched = this.ready.shift();
    if (fetched === undefined) {
      this.pump();
      this.throwFailure();
      return undefined;
    }
    this.readyBytes -= fetched.window.bytes.length;
    // While it waited its leader was not asked, and had nothing to answer: that is no silence.
    this.passing = undefined;
    this.pump();
    return fetched;
  }

  private throwFailure(): void {
    if (this.failure !== undefined) throw this.failure;
    if (this.passing !== undefined && performance.now() - this.passing.since > SILENT_MS) {
      const { error } = this.passing;
      this.passing = { since: performance.now(), error };
      throw new TributaryError("TRB-BUS-STREAM-DOWN", "the Kafka brokers do not answer", { cause: error });
    }
  }

  /** Resolves when something has come, when `signal` aborts, or after a time. */
  async wait(ms: number, signal?: AbortSignal): Promise<void> {
    if (this.ready.length > 0 || this.failure !== undefined || this.closed || signal?.aborted === true)
      return;
    await new Promise<void>((resolve) => {
      const done = () => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", done);
        this.wake = undefined;
        resolve();
      };
      const timer = setTimeout(done, Math.min(ms, SILENT_MS));
      signal?.addEventListener("abort", done);
      this.wake = done;
    });
  }

  private pump(): void {
    if (this.closed || this.failure !== undefined) return;
    const now = performance.now();
    const groups = new Map<number, Cursor[]>();
    let soonest = Number.POSITIVE_INFINITY;
    for (const cursor of this.cursors.values()) {
      if (cursor.unpacking) continue;
      if (cursor.notBefore > now) {
        soonest = Math.min(soonest, cursor.notBefore);
        continue;
      }
      const leader = this.topic.state.leaders[cursor.partition] ?? -1;
      groups.set(leader, [...(groups.get(leader) ?? []), cursor]);
    }
    const growing = new Set<number>();
    for (const { leader, window } of this.ready) if (window.bytes.length < LARGE_BYTES) growing.add(leader);
    for (const [leader, cursors] of groups) {
      if (this.busy.has(leader) || growing.has(leader) || this.readyBytes >= this.limits.bytes) continue;
      this.busy.add(leader);
      void this.fetch(leader, cursors).finally(() => {
        this.busy.delete(leader);
        this.wake?.();
        this.pump();
      });
    }
    clearTimeout(this.timer);
    if (Number.isFinite(soonest)) this.timer = setTimeout(() => this.pump(), Math.max(1, soonest - now));
  }

  private async fetch(leader: number, cursors: readonly Cursor[]): Promise<void> {
    try {
      if (leader < 0) throw new Refused("fetch", KAFKA.LEADER_NOT_AVAILABLE);
      const first = this.turn++ % cursors.length;
      // Another one first each time: what is last may find no room left in the answer.
      const turned = [...cursors.slice(first), ...cursors.slice(0, first)];
      const from = new Map(turned.map(({ partition, next }) => [partition, next]));
      const answer = await this.topic.brokers.call(
        leader,
        "fetch",
        fetchApi,
        [
          {
            topicId: this.topic.state.id,
            waitMs: this.limits.waitMs,
            maxBytes: this.limits.bytes,
            maxPartitionBytes: Math.min(this.limits.bytes, PARTITION_BYTES),
            from,
          },
        ],
        ANSWER_MS + this.limits.waitMs,
      );
      if (answer.errorCode !== KAFKA.NONE) throw new Refused("fetch", answer.errorCode);
      const asked = new Map(turned.map((cursor) => [cursor.partition, cursor]));
      await this.taken(leader, answer.partitions, from, asked);
      if (answer.throttleMs > 0)
        await new Promise((resolve) => setTimeout(resolve, answer.throttleMs).unref());
    } catch (error) {
      if (error instanceof TributaryError) this.failure ??= error;
      else await this.failed(cursors, error);
    }
  }

  private async taken(
    leader: number,
    answers: readonly FetchedPartition[],
    from: ReadonlyMap<number, number>,
    asked: ReadonlyMap<number, Cursor>,
  ): Promise<void> {
    // A leader that was replaced meanwhile may answer after its successor: what was told first stands.
    const current = ({ index }: FetchedPartition) => {
      const { next, unpacking } = asked.get(index)!;
      return next === from.get(index) && !unpacking;
    };
    const good = answers.filter((answer) => answer.errorCode === KAFKA.NONE && current(answer));
    const window = await this.unpacked(good, from, asked);
    if (good.length > 0) this.passing = undefined;
    const moved = [...window.next].some(([partition, next]) => next > from.get(partition)!);
    if (moved && !this.closed) {
      this.ready.push({ leader, window, cursors: asked });
      this.readyBytes += window.bytes.length;
    }
    for (const { index, errorCode } of answers) {
      if (errorCode === KAFKA.NONE) continue;
      const cursor = asked.get(index)!;
      if (errorCode === KAFKA.OFFSET_OUT_OF_RANGE) await this.outOfRange(cursor);
      await this.failed([cursor], new Refused("fetch", errorCode));
    }
  }

  private async unpacked(
    answers: readonly FetchedPartition[],
    from: ReadonlyMap<number, number>,
    asked: ReadonlyMap<number, Cursor>,
  ): Promise<Window> {
    const cursors = answers.map(({ index }) => asked.get(index)!);
    for (const cursor of cursors) cursor.unpacking = true;
    try {
      const window = await windowOf(answers, from);
      for (const [partition, next] of window.next) asked.get(partition)!.next = next;
      return window;
    } finally {
      for (const cursor of cursors) cursor.unpacking = false;
    }
  }

  /** Never goes on elsewhere by itself: what lies between would be lost without a word. Errors: TRB-STREAM-FORGOTTEN, TRB-STREAM-CORRUPT. */
  private async outOfRange(cursor: Cursor): Promise<void> {
    await this.topic.refresh();
    const [earliest, latest] = await Promise.all([
      listOffsets(this.topic, "earliest"),
      listOffsets(this.topic, "latest"),
    ]);
    const first = earliest.get(cursor.partition) ?? 0;
    const end = latest.get(cursor.partition) ?? 0;
    if (!this.holds(cursor) || (cursor.next >= first && cursor.next <= end)) return;
    if (cursor.next < first) {
      throw new TributaryError(
        "TRB-STREAM-FORGOTTEN",
        `partition ${cursor.partition}: ${first - cursor.next} events were forgotten by the stream before they were landed`,
        { details: { partition: String(cursor.partition), next: cursor.next, first } },
      );
    }
    throw new TributaryError(
      "TRB-STREAM-CORRUPT",
      `partition ${cursor.partition}: expected events up to ${cursor.next}, which were read before; the topic ends at ${end}`,
    );
  }

  private async failed(cursors: readonly Cursor[], error: unknown): Promise<void> {
    this.passing ??= { since: performance.now(), error };
    for (const cursor of cursors)
      cursor.notBefore = performance.now() + PAUSE_MS * (0.75 + Math.random() / 2);
    try {
      await this.topic.refresh();
    } catch (cause) {
      if (cause instanceof TributaryError) this.failure ??= cause;
    }
  }

  close(): void {
    this.closed = true;
    clearTimeout(this.timer);
    this.wake?.();
  }
}
