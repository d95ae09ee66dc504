import type { LeaseStore } from "../../lease/lease-store.js";
import { parseCheckpoint } from "./positions.js";

/** How old the answer may be. */
const LOOK_MS = 2_000;
/** Records are counted together up to this size. */
const CHUNK_BYTES = 256 * 1024;

interface Chunk {
  position: string;
  bytes: number;
  readonly at: number;
}

/**
 * Bytes this writer has put into the stream and that the slowest consumer is not done with, by the checkpoints of its
 * leases. What other writers, or earlier ones, have put there is theirs to count.
 */
export class Backlog {
  private readonly shards = new Map<string, Chunk[]>();
  private bytes = 0;
  private lookedAt = Number.NEGATIVE_INFINITY;
  private looking: Promise<void> | undefined;

  constructor(
    private readonly leases: LeaseStore,
    private readonly retentionMs: number,
  ) {}

  add(shard: string, position: string, bytes: number): void {
    this.bytes += bytes;
    let chunks = this.shards.get(shard);
    if (chunks === undefined) {
      chunks = [];
      this.shards.set(shard, chunks);
    }
    const last = chunks.at(-1);
    if (last === undefined || last.bytes >= CHUNK_BYTES) {
      chunks.push({ position, bytes, at: performance.now() });
    } else {
      last.position = position;
      last.bytes += bytes;
    }
  }

  /** At most some seconds old. */
  current(): number {
    if (this.bytes > 0 && performance.now() - this.lookedAt > LOOK_MS) {
      // Leases that cannot be read leave it as it was: producers are held back rather than let run ahead.
      this.looking ??= this.look()
        .catch(() => undefined)
        .finally(() => {
          this.lookedAt = performance.now();
          this.looking = undefined;
        });
    }
    return this.bytes;
  }

  private async look(): Promise<void> {
    /** Shard → last position done, by consumer. */
    const consumers = new Map<string, Map<string, string>>();
    for (const { name, checkpoint, finished } of await this.leases.list()) {
      const [consumer, shard] = [name.slice(0, name.indexOf("/")), name.slice(name.indexOf("/") + 1)];
      const done = consumers.get(consumer) ?? new Map<string, string>();
      consumers.set(consumer, done);
      done.set(shard, finished ? "~" : (parseCheckpoint(checkpoint).position ?? ""));
    }
    const oldest = performance.now() - this.retentionMs;
    let bytes = 0;
    for (const [shard, chunks] of this.shards) {
      const slowest = [...consumers.values()].reduce((least: string, done) => {
        const position = done.get(shard) ?? "";
        return position < least ? position : least;
      }, "~");
      const left =
        consumers.size === 0
          ? chunks
          : chunks.filter(({ position, at }) => position > slowest && at > oldest);
      if (left.length === 0) this.shards.delete(shard);
      else this.shards.set(shard, left);
      for (const chunk of left) bytes += chunk.bytes;
    }
    this.bytes = bytes;
  }
}
