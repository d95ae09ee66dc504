import type { StreamBatch, StreamFollower } from "../change-stream.js";
import { eventPosition } from "./positions.js";
import type { FeedRoom, HeldRecord, ShardFeed } from "./shard-feed.js";

type ReadLimit = Parameters<StreamFollower["read"]>[0];

/** What all shards together hold ahead of the reader, with what they are asking for. */
const ROOM_BYTES = 64 * 1024 * 1024;

interface Taken {
  readonly from: HeldRecord;
  readonly first: number;
  readonly end: number;
  readonly name: number;
}

/** Several shards as one stream of batches. */
export class FeedSet implements FeedRoom {
  private readonly feeds = new Map<string, ShardFeed>();
  private reserved = 0;
  private waiting: (() => void)[] = [];
  private changes = 0;
  private changed: () => void = () => undefined;

  add(feed: ShardFeed): void {
    this.feeds.set(feed.name, feed);
  }

  get(name: string): ShardFeed | undefined {
    return this.feeds.get(name);
  }

  all(): readonly ShardFeed[] {
    return [...this.feeds.values()];
  }

  remove(name: string): void {
    this.feeds.get(name)?.stop();
    this.feeds.delete(name);
    this.nudge();
    this.wake();
  }

  async reserve(bytes: number, signal: AbortSignal): Promise<() => void> {
    while (this.held() + this.reserved + bytes > ROOM_BYTES) {
      await new Promise<void>((resolve) => this.waiting.push(resolve));
      signal.throwIfAborted();
    }
    this.reserved += bytes;
    return () => {
      this.reserved -= bytes;
      this.nudge();
    };
  }

  wake(): void {
    this.changes++;
    this.changed();
  }

  private held(): number {
    let bytes = 0;
    for (const feed of this.feeds.values()) bytes += feed.bytes;
    return bytes;
  }

  private nudge(): void {
    const { waiting } = this;
    this.waiting = [];
    for (const go of waiting) go();
  }

  /** Waits for the next `wake`, for so long at most; ends at once when there was one since `seen`. */
  async wait(seen: number, ms: number, signal?: AbortSignal): Promise<void> {
    if (this.changes !== seen || ms <= 0 || signal?.aborted === true) return;
    await new Promise<void>((resolve) => {
      const done = () => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", done);
        this.changed = () => undefined;
        resolve();
      };
      const timer = setTimeout(done, Math.min(ms, 2 ** 31 - 1));
      signal?.addEventListener("abort", done);
      this.changed = done;
    });
  }

  get version(): number {
    return this.changes;
  }

  /** The next events of those shards that may be delivered; undefined when they hold none. Throws what a shard met. */
  take({ maxEvents, maxBytes }: ReadLimit, may: (name: string) => boolean): StreamBatch | undefined {
    const taken: Taken[] = [];
    const names: string[] = [];
    let count = 0;
    let bytes = 0;
    taking: for (const feed of this.feeds.values()) {
      if (!may(feed.name)) continue;
      if (feed.records.length === 0) {
        // What was taken of others is delivered first: nobody would ever see it again.
        if (feed.failure !== undefined && count === 0) throw feed.failure;
        continue;
      }
      const name = names.push(feed.name) - 1;
      while (feed.records.length > 0) {
        const from = feed.records[0]!;
        const first = from.at;
        while (from.at < from.starts.length) {
          const length = from.ends[from.at]! - from.starts[from.at]!;
          if (count > 0 && (count >= maxEvents || bytes + length > maxBytes)) {
            if (from.at > first) {
              taken.push({ from, first, end: from.at, name });
              feed.last = eventPosition(from.record, from.at - 1);
            }
            break taking;
          }
          from.at++;
          count++;
          bytes += length;
        }
        taken.push({ from, first, end: from.at, name });
        feed.last = eventPosition(from.record, from.at - 1);
        feed.shift();
      }
    }
    if (count === 0) return undefined;
    // The next batch begins with another shard.
    const [first] = names;
    const feed = this.feeds.get(first!)!;
    this.feeds.delete(first!);
    this.feeds.set(first!, feed);
    this.nudge();
    return toBatch(taken, names, count, bytes);
  }
}

function toBatch(
  taken: readonly Taken[],
  names: readonly string[],
  count: number,
  size: number,
): StreamBatch {
  const bytes = Buffer.allocUnsafe(size);
  const starts = new Uint32Array(count);
  const ends = new Uint32Array(count);
  const partitions = new Uint16Array(count);
  const receivedAt = new Float64Array(count);
  const positions: string[] = [];
  let at = 0;
  for (const { from, first, end, name } of taken) {
    for (let i = first; i < end; i++) {
      const event = positions.length;
      const [start, stop] = [from.starts[i]!, from.ends[i]!];
      bytes.set(from.data.subarray(start, stop), at);
      starts[event] = at;
      at += stop - start;
      ends[event] = at;
      partitions[event] = name;
      receivedAt[event] = from.arrivedAt;
      positions.push(eventPosition(from.record, i));
    }
  }
  return { bytes, count, starts, ends, partitions, names, positions, receivedAt };
}
