import type { Checkpoint, StreamBatch, StreamFollower } from "../change-stream.js";
import { closedError, streamDown } from "../failures.js";
import { FeedSet } from "./feed-set.js";
import { LossGuard } from "./loss-guard.js";
import { sequenceOf } from "./positions.js";
import { ShardFeed } from "./shard-feed.js";
import { PollSource } from "./shard-source.js";
import { isFollowed, type ShardInfo, type ShardPlace, type StreamApi } from "./stream-api.js";

const LOOK_MS = 1_000;

/** Reads all shards, a child after its parents, for somebody who keeps count himself. */
export class KinesisFollower implements StreamFollower {
  private readonly feeds = new FeedSet();
  /** Shards that were read to their end, or that are no concern of ours. */
  private readonly over = new Set<string>();
  private looking: Promise<boolean> | undefined;
  /** Children of shards that have ended are not looked for before, in ms of performance.now(). */
  private lookAt = 0;
  private closed = false;

  /** Where it begins is settled when this resolves. Errors: TRB-BUS-STREAM-DOWN. */
  static async open(
    api: StreamApi,
    from: Checkpoint | "oldest" | "next",
    onClose: () => void,
  ): Promise<KinesisFollower> {
    const follower = new KinesisFollower(api, typeof from === "string" ? new Map() : from, onClose);
    const shards = await api.shards();
    if (from === "next") {
      for (const { id, open } of shards) if (!open) follower.over.add(id);
      await Promise.all(shards.filter(({ open }) => open).map(({ id }) => follower.begin(id, "next")));
    } else await follower.advance(shards);
    return follower;
  }

  private constructor(
    private readonly api: StreamApi,
    private readonly from: Checkpoint,
    private readonly onClose: () => void,
  ) {}

  async read(limit: Parameters<StreamFollower["read"]>[0]): Promise<StreamBatch | undefined> {
    const until = performance.now() + limit.waitMs;
    try {
      for (;;) {
        if (this.closed) throw closedError("follower");
        if (limit.signal?.aborted === true) return undefined;
        const { version } = this.feeds;
        const batch = this.feeds.take(limit, () => true);
        if (batch !== undefined) return batch;
        const hasEnded = this.feeds.all().some((feed) => feed.ended);
        if (hasEnded && performance.now() >= this.lookAt) {
          this.looking ??= this.lookOn().finally(() => {
            this.looking = undefined;
          });
          if (await this.looking) continue;
          this.lookAt = performance.now() + LOOK_MS;
        }
        const left = until - performance.now();
        if (left <= 0) return undefined;
        const lookIn = hasEnded ? this.lookAt - performance.now() : left;
        await this.feeds.wait(version, Math.max(1, Math.min(left, lookIn)), limit.signal);
      }
    } catch (error) {
      throw streamDown("the stream could not be read", error);
    }
  }

  /** Goes on with the children of shards that have ended, once they are listed. Resolves to whether any were. */
  private async lookOn(): Promise<boolean> {
    const shards = await this.api.shards();
    const infos = new Map(shards.map((shard) => [shard.id, shard]));
    const over = this.feeds.all().filter((feed) => feed.ended && isFollowed(feed.name, infos));
    for (const { name } of over) {
      this.feeds.remove(name);
      this.over.add(name);
    }
    if (over.length > 0) await this.advance(shards);
    return over.length > 0;
  }

  /** Begins with those whose parents are over. */
  private async advance(shards: readonly ShardInfo[]): Promise<void> {
    const ready = shards.filter(
      ({ id, parents }) =>
        !this.over.has(id) &&
        this.feeds.get(id) === undefined &&
        parents.every((parent) => this.over.has(parent)),
    );
    await Promise.all(ready.map(({ id }) => this.begin(id, "oldest")));
  }

  private async begin(id: string, otherwise: "oldest" | "next"): Promise<void> {
    const { api } = this;
    const position = this.from.get(id);
    const place: ShardPlace = position === undefined ? otherwise : { sequence: sequenceOf(position) };
    // Who keeps a position cannot tell what came after it: it has to be there.
    const guard = new LossGuard(api, position === undefined ? undefined : 0);
    const feed = new ShardFeed(id, position, this.feeds);
    const source = new PollSource({ api, shard: id, place, guard, signal: feed.signal, metrics: undefined });
    if (place === "next") await source.begin();
    this.feeds.add(feed);
    feed.start(source);
  }

  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    for (const { name } of this.feeds.all()) this.feeds.remove(name);
    this.feeds.wake();
    this.onClose();
  }
}
