import { randomUUID } from "node:crypto";
import { within } from "../../base/within.js";
import { type Lease, type LeaseStore, newLease } from "../../lease/lease-store.js";
import { parseCheckpoint } from "./positions.js";

/** How old the answer may be, and what others have told. */
const LOOK_MS = 2_000;
/** Records are counted together up to this size. */
const CHUNK_BYTES = 256 * 1024;
/** What writers tell each other lies beside the leases of consumers, whose names begin with a letter or a digit. */
const WRITERS = ".writers/";
/** How long a writer that ends waits to be heard. */
const CLOSE_MS = 2_000;
/** What a writer has left behind goes so long after it has landed. */
const FORGET_MS = 3_600_000;

interface Chunk {
  position: string;
  bytes: number;
  at: number;
}

/** Shard → the last record that waits there, all bytes that wait, and when the last one came (ms since the epoch). */
type Share = ReadonlyMap<string, Readonly<Chunk>>;

/**
 * Bytes in the stream that the slowest consumer is not done with, by the checkpoints of its leases. Each writer counts its
 * own to the record, and tells the others by a record beside the leases; so what they have written counts here some
 * seconds later, and what a writer that is gone has left counts, shard by shard, until the last of it has landed.
 */
export class Backlog {
  private readonly shards = new Map<string, Chunk[]>();
  private own = 0;
  private others = 0;
  private lookedAt = Number.NEGATIVE_INFINITY;
  private looking: Promise<void> | undefined;
  private readonly name = `${WRITERS}${randomUUID()}`;
  private told = "";

  constructor(
    private readonly leases: LeaseStore,
    private readonly retentionMs: number,
    private readonly lookMs = LOOK_MS,
  ) {}

  add(shard: string, position: string, bytes: number): void {
    this.own += bytes;
    let chunks = this.shards.get(shard);
    if (chunks === undefined) {
      chunks = [];
      this.shards.set(shard, chunks);
    }
    const last = chunks.at(-1);
    if (last === undefined || last.bytes >= CHUNK_BYTES) {
      chunks.push({ position, bytes, at: Date.now() });
    } else {
      last.position = position;
      last.bytes += bytes;
      last.at = Date.now();
    }
  }

  /** At most some seconds old. */
  current(): number {
    if (performance.now() - this.lookedAt > this.lookMs) {
      // Leases that cannot be read leave it as it was: producers are held back rather than let run ahead.
      this.looking ??= this.look()
        .catch(() => undefined)
        .finally(() => {
          this.lookedAt = performance.now();
          this.looking = undefined;
        });
    }
    return this.own + this.others;
  }

  /** Tells once more: what waits is for others to count from now on. */
  async close(): Promise<void> {
    const telling = Promise.resolve(this.looking).then(() => this.look());
    await within(
      CLOSE_MS,
      telling.catch(() => undefined),
    );
  }

  private async look(): Promise<void> {
    const leases = await this.leases.list();
    const waits = waitingBy(leases, Date.now() - this.retentionMs);
    this.own = 0;
    for (const [shard, chunks] of this.shards) {
      const left = chunks.filter((chunk) => waits(shard, chunk));
      if (left.length === 0) this.shards.delete(shard);
      else this.shards.set(shard, left);
      for (const chunk of left) this.own += chunk.bytes;
    }
    this.others = 0;
    for (const lease of leases) {
      if (!lease.name.startsWith(WRITERS) || lease.name === this.name) continue;
      let newest = 0;
      let left = 0;
      for (const [shard, chunk] of shareIn(lease.checkpoint)) {
        newest = Math.max(newest, chunk.at);
        if (waits(shard, chunk)) left += chunk.bytes;
      }
      this.others += left;
      const isOver = left === 0 && newest < Date.now() - FORGET_MS;
      if (isOver) await this.leases.change([{ from: lease, to: undefined }]);
    }
    await this.tell(leases.find(({ name }) => name === this.name));
  }

  /** Only what waits: what has landed needs no telling. */
  private async tell(from: Lease | undefined): Promise<void> {
    const share = [...this.shards].map(([shard, chunks]): [string, Chunk] => {
      const { position, at } = chunks.at(-1)!;
      return [shard, { position, bytes: chunks.reduce((sum, { bytes }) => sum + bytes, 0), at }];
    });
    const text = JSON.stringify(share);
    if (share.length === 0 || text === this.told) return;
    const to = newLease(this.name, [], text);
    await this.leases.change([from === undefined ? { from, to } : { from, to }]);
    this.told = text;
  }
}

/** Whether what was put into a shard up to a place waits for a consumer yet, or for any where there is none. */
function waitingBy(leases: readonly Lease[], oldest: number) {
  /** Shard → last position done, by consumer. */
  const consumers = new Map<string, Map<string, string>>();
  for (const { name, checkpoint, finished } of leases) {
    if (name.startsWith(WRITERS)) continue;
    const [consumer, shard] = [name.slice(0, name.indexOf("/")), name.slice(name.indexOf("/") + 1)];
    const done = consumers.get(consumer) ?? new Map<string, string>();
    consumers.set(consumer, done);
    done.set(shard, finished ? "~" : (parseCheckpoint(checkpoint).position ?? ""));
  }
  return (shard: string, { position, at }: Readonly<Chunk>): boolean => {
    if (consumers.size === 0) return true;
    if (at <= oldest) return false;
    return [...consumers.values()].some((done) => position > (done.get(shard) ?? ""));
  };
}

/** What is damaged, or of a release that tells otherwise, counts for nothing. */
function shareIn(text: string): Share {
  try {
    return new Map(JSON.parse(text) as [string, Chunk][]);
  } catch {
    return new Map();
  }
}
