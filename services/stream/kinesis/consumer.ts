import { randomUUID } from "node:crypto";
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "pino";
import { Turns } from "../../base/turns.js";
import { LeaseCoordinator } from "../../lease/lease-coordinator.js";
import { type Lease, type LeaseStore, newLease } from "../../lease/lease-store.js";
import type { Checkpoint, PartitionHolder, StreamBatch, StreamConsumer } from "../change-stream.js";
import { closedError, streamDown } from "../failures.js";
import { FeedSet } from "./feed-set.js";
import { LossGuard } from "./loss-guard.js";
import type { KinesisMetrics } from "./metrics.js";
import { formatCheckpoint, parseCheckpoint, type ShardCheckpoint, sequenceOf } from "./positions.js";
import { ShardFeed } from "./shard-feed.js";
import type { ShardSource, SourceOptions } from "./shard-source.js";
import { isFollowed, type ShardInfo, type StreamApi } from "./stream-api.js";

/** How often low-water records are written at most: each is a write of a lease. */
const COMMIT_GAP_MS = 1_000;
/** How often shards that have ended are let go, and quiet ones have their leases brought up to date. */
const TEND_MS = 1_000;
/** A quiet shard's lease is at most so much older, of the retention and in ms, than what is known of it. */
const QUIET_PART = 1 / 8;
const QUIET_MS = 3_600_000;

export interface ConsumerOptions {
  readonly api: StreamApi;
  readonly leases: LeaseStore;
  readonly consumer: string;
  readonly holder: PartitionHolder | undefined;
  readonly leaseMs: number | undefined;
  readonly log: Pick<Logger, "warn">;
  readonly metrics: KinesisMetrics | undefined;
  readonly openSource: (options: SourceOptions) => ShardSource;
  readonly onClose: () => void;
}

interface HeldShard {
  readonly feed: ShardFeed;
  /** Everything that arrived before then is held or has been delivered (ms since the epoch). */
  fetchedUntil: number | undefined;
  /** As its lease has it. */
  position: string | undefined;
  coveredUntil: number | undefined;
  /** To be written. */
  wanted: string | undefined;
}

/** One process of a named consumer: reads those shards whose leases it has. */
export class KinesisConsumer implements StreamConsumer {
  private readonly feeds = new FeedSet();
  private readonly held = new Map<string, HeldShard>();
  private readonly coordinator: LeaseCoordinator;
  private readonly scope: string;
  private infos: ReadonlyMap<string, ShardInfo> = new Map();
  private readonly writes = new Turns();
  private writing: Promise<void> | undefined;
  private wroteAt = Number.NEGATIVE_INFINITY;
  private hurry = new AbortController();
  private leaving = 0;
  private readonly closing = new AbortController();
  private tending: Promise<void> = Promise.resolve();

  /** Registers the consumer, durable when resolved, and takes its first shards. Errors: TRB-BUS-STREAM-DOWN, TRB-STORE-FAILED. */
  static async open(options: ConsumerOptions): Promise<KinesisConsumer> {
    const consumer = new KinesisConsumer(options);
    await consumer.matchLeases();
    await consumer.coordinator.start();
    consumer.tending = consumer.tend();
    return consumer;
  }

  private constructor(private readonly options: ConsumerOptions) {
    this.scope = `${options.consumer}/`;
    this.coordinator = new LeaseCoordinator({
      store: options.leases,
      worker: `${hostname()}-${process.pid}-${randomUUID().slice(0, 8)}`,
      scope: this.scope,
      log: options.log,
      ...(options.leaseMs === undefined ? {} : { durationMs: options.leaseMs }),
      user: {
        taken: (leases) => this.take(leases),
        leaving: (names) => this.leave(names.map((name) => this.shardOf(name))),
        lost: (names) => this.drop(names.map((name) => this.shardOf(name))),
      },
    });
  }

  async read(limit: Parameters<StreamConsumer["read"]>[0]): Promise<StreamBatch | undefined> {
    const until = performance.now() + limit.waitMs;
    try {
      for (;;) {
        if (this.closing.signal.aborted) throw closedError("consumer");
        if (limit.signal?.aborted === true) return undefined;
        const { version } = this.feeds;
        // Whoever was frozen may have lost a shard without knowing: only what is surely ours is delivered.
        const batch = this.feeds.take(limit, (shard) => this.coordinator.owns(this.scope + shard));
        if (batch !== undefined) return batch;
        const left = until - performance.now();
        if (left <= 0) return undefined;
        await this.feeds.wait(version, left, limit.signal);
      }
    } catch (error) {
      throw streamDown("the stream could not be read", error);
    }
  }

  async commit(checkpoint: Checkpoint): Promise<void> {
    let news = false;
    for (const [shard, position] of checkpoint) {
      const held = this.held.get(shard);
      const last = held?.feed.last;
      if (held === undefined || last === undefined) continue;
      // Never backwards, and never beyond what was delivered: what was not read cannot be done.
      const reached = position < last ? position : last;
      if (reached <= (held.wanted ?? held.position ?? "")) continue;
      held.wanted = reached;
      news = true;
    }
    if (news) await this.write();
  }

  /** Writes what is wanted; calls that come meanwhile share the next write. */
  private write(): Promise<void> {
    this.writing ??= this.writes.run(async () => {
      const pause = this.wroteAt + COMMIT_GAP_MS - performance.now();
      if (pause > 0 && this.leaving === 0)
        await sleep(pause, undefined, { signal: this.hurry.signal }).catch(() => undefined);
      // What is wanted from here on is for the next one.
      this.writing = undefined;
      await this.writeNow();
    });
    return this.writing;
  }

  /** A write that waits for its time goes now. */
  private async flush(): Promise<void> {
    this.hurry.abort();
    await this.writing?.catch(() => undefined);
    await this.writes.settled();
    this.hurry = new AbortController();
  }

  private async writeNow(): Promise<void> {
    this.wroteAt = performance.now();
    const changes = new Map<string, { checkpoint: string }>();
    const states = new Map<string, { position: string | undefined; coveredUntil: number | undefined }>();
    for (const [shard, held] of this.held) {
      if (held.wanted === undefined && !this.isQuiet(held)) continue;
      const state = this.stateOf(held);
      states.set(shard, state);
      changes.set(this.scope + shard, { checkpoint: formatCheckpoint(state) });
    }
    if (changes.size === 0) return;
    try {
      const written = await this.coordinator.update(changes);
      for (const [shard, state] of states) {
        const held = this.held.get(shard);
        if (held === undefined || !written.has(this.scope + shard)) continue;
        held.position = state.position;
        held.coveredUntil = state.coveredUntil;
        if (held.wanted === state.position) held.wanted = undefined;
      }
    } catch (error) {
      throw streamDown("the low-water record could not be written", error);
    }
  }

  /** What the lease should say: how far it is done, and until when nothing else had come. */
  private stateOf({ feed, fetchedUntil, position, wanted, coveredUntil }: HeldShard) {
    const done = wanted ?? position;
    let covered = coveredUntil;
    while (feed.delivered.length > 0 && done !== undefined && feed.delivered[0]!.position <= done) {
      covered = feed.delivered.shift()!.arrivedAt;
    }
    if (feed.drained && (feed.last ?? "") <= (done ?? "")) covered = fetchedUntil ?? covered;
    return { position: done, coveredUntil: covered };
  }

  /** Whether nothing has come for so long that its lease should say so, lest it look as if something could be missing. */
  private isQuiet({ feed, fetchedUntil, position, coveredUntil }: HeldShard): boolean {
    if (!feed.drained || (feed.last ?? "") > (position ?? "")) return false;
    const { shortestMs } = this.options.api;
    const age = (fetchedUntil ?? 0) - (coveredUntil ?? 0);
    return age > Math.min(QUIET_MS, shortestMs * QUIET_PART);
  }

  private async tend(): Promise<void> {
    const { signal } = this.closing;
    while (!signal.aborted) {
      await sleep(TEND_MS, undefined, { signal, ref: false }).catch(() => undefined);
      if (signal.aborted) return;
      try {
        if ([...this.held.values()].some((held) => this.isQuiet(held))) await this.write();
        await this.finishEnded();
      } catch (error) {
        this.options.log.warn({ err: error }, "shards that have ended could not be let go yet");
      }
    }
  }

  /** Shards that were read to their end and are done: their children's leases are made, then they are let go. */
  private async finishEnded(): Promise<void> {
    const done = [...this.held].filter(
      ([, { feed, position, wanted }]) =>
        feed.ended && wanted === undefined && (feed.last ?? "") <= (position ?? ""),
    );
    if (done.length === 0) return;
    await this.matchLeases();
    // Nobody looks for children of a shard that is done: until all of them are listed, it is not.
    const over = done.filter(([shard]) => isFollowed(shard, this.infos));
    if (over.length === 0) return;
    await this.coordinator.update(new Map(over.map(([shard]) => [this.scope + shard, { finished: true }])));
    await this.coordinator.look();
  }

  /** Makes the leases that shards lack, and removes those of shards that are long gone. */
  private async matchLeases(): Promise<void> {
    const { api, leases } = this.options;
    const shards = await api.shards();
    this.infos = new Map(shards.map((shard) => [shard.id, shard]));
    const found = (await leases.list()).filter(({ name }) => name.startsWith(this.scope));
    const now = Date.now();
    const known = new Map(found.map((lease) => [this.shardOf(lease.name), lease]));
    const fresh = ({ parents }: ShardInfo) => {
      // What came into a child has come since its parents were read so far, which may be days ago.
      const read = parents.map((parent) => readCheckpoint(known.get(parent)?.checkpoint ?? "").coveredUntil);
      const coveredUntil = Math.min(...read.map((until) => until ?? now), now);
      return formatCheckpoint({ position: undefined, coveredUntil });
    };
    await leases.change([
      ...shards
        .filter(({ id }) => !known.has(id))
        .map((shard) => ({
          from: undefined,
          to: newLease(
            this.scope + shard.id,
            shard.parents.map((parent) => this.scope + parent),
            fresh(shard),
          ),
        })),
      ...found
        .filter(({ name, finished }) => finished && !this.infos.has(this.shardOf(name)))
        .map((lease) => ({ from: lease, to: undefined })),
    ]);
  }

  private shardOf(lease: string): string {
    return lease.slice(this.scope.length);
  }

  private take(leases: readonly Lease[]): void {
    const { api, metrics, holder } = this.options;
    for (const { name, checkpoint } of leases) {
      const shard = this.shardOf(name);
      const { position, coveredUntil, damage } = readCheckpoint(checkpoint);
      const guard = new LossGuard(api, coveredUntil);
      const feed = new ShardFeed(shard, position, this.feeds, (ms) => {
        held.fetchedUntil = guard.coveredUntil;
        metrics?.setBehind(api.streamName, shard, ms);
      });
      const held: HeldShard = { feed, fetchedUntil: undefined, position, coveredUntil, wanted: undefined };
      this.held.set(shard, held);
      this.feeds.add(feed);
      feed.failure = damage;
      if (damage !== undefined) continue;
      const place = position === undefined ? "oldest" : { sequence: sequenceOf(position) };
      feed.start(this.options.openSource({ api, shard, place, guard, signal: feed.signal, metrics }));
    }
    holder?.assigned(
      leases.map(({ name }) => {
        const shard = this.shardOf(name);
        return { name: shard, slots: this.infos.get(shard)?.slots ?? { start: 0, end: 0 } };
      }),
    );
    this.feeds.wake();
  }

  /** Delivers no more of them, and waits until what was delivered is done and written. */
  private async leave(shards: readonly string[]): Promise<void> {
    for (const shard of shards) this.feeds.remove(shard);
    // Another waits for them: what is done is written at once.
    this.leaving++;
    this.hurry.abort();
    try {
      await this.options.holder?.revoked(shards);
      await this.flush();
    } finally {
      this.leaving--;
    }
  }

  private drop(shards: readonly string[]): void {
    const { api, metrics, holder } = this.options;
    // Those that left were told of already.
    const sudden = shards.filter((shard) => this.feeds.get(shard) !== undefined);
    for (const shard of shards) {
      this.feeds.remove(shard);
      this.held.delete(shard);
      metrics?.forget(api.streamName, shard);
    }
    if (sudden.length > 0) holder?.revoked(sudden).catch(() => undefined);
  }

  async close(): Promise<void> {
    if (this.closing.signal.aborted) return;
    this.closing.abort();
    this.feeds.wake();
    await this.tending;
    await this.flush();
    await this.coordinator.close();
    this.options.onClose();
  }
}

function readCheckpoint(text: string): ShardCheckpoint & { readonly damage: unknown } {
  try {
    return { ...parseCheckpoint(text), damage: undefined };
  } catch (damage) {
    return { position: undefined, coveredUntil: undefined, damage };
  }
}
