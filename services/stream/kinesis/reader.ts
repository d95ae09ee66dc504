import type { KinesisClient } from "@aws-sdk/client-kinesis";
import type { Logger } from "pino";
import type { LeaseStore } from "../../lease/lease-store.js";
import type {
  ChangeStreamReader,
  Checkpoint,
  PartitionHolder,
  StreamBatch,
  StreamConsumer,
  StreamFollower,
} from "../change-stream.js";
import { checkConsumerName } from "../consumer-name.js";
import { closedError, streamDown } from "../failures.js";
import { disaggregate } from "./aggregate.js";
import { KinesisConsumer } from "./consumer.js";
import { FeedSet } from "./feed-set.js";
import { KinesisFollower } from "./follower.js";
import { LossGuard } from "./loss-guard.js";
import type { KinesisMetrics } from "./metrics.js";
import { eventPosition, parseCheckpoint, recordPosition, sequenceOf } from "./positions.js";
import { PushSource, registerConsumer } from "./push-source.js";
import { ShardFeed } from "./shard-feed.js";
import { PollSource, type SourceOptions } from "./shard-source.js";
import { type ShardPlace, StreamApi } from "./stream-api.js";

/** What a look reads at once: a slice that others need not wait long for. */
const LOOK = { maxEvents: 4_096, maxBytes: 1024 * 1024, waitMs: 0 };
/** How far back the newest record of a shard is looked for, one after the other; then from the oldest. */
const LOOK_BACK_MS = [10_000, 600_000, 6 * 3_600_000];

export interface KinesisReaderOptions {
  /** Makes one try a request: here are its own pauses. */
  readonly client: KinesisClient;
  /** As AWS names it. */
  readonly stream: string;
  /** The leases of a stream, by the name that `ChangeStreamReader` has for it. */
  readonly leases: (stream: string) => Promise<LeaseStore>;
  readonly log: Pick<Logger, "warn">;
  /** Consumers get a throughput of their own (enhanced fan-out). */
  readonly fanOut?: boolean;
  readonly leaseMs?: number;
  readonly metrics?: KinesisMetrics;
}

/** The reading end of a Kinesis stream. */
export class KinesisReader implements ChangeStreamReader {
  readonly name: string;
  private readonly open = new Set<{ close(): Promise<void> }>();
  /** Newest position known by shard, and whether the shard is closed and can have no newer one. */
  private readonly heads = new Map<
    string,
    { readonly position: string | undefined; readonly final: boolean }
  >();
  private closed = false;

  /** Errors: TRB-CONFIG, TRB-BUS-STREAM-DOWN, TRB-STORE-FAILED. */
  static async open(options: KinesisReaderOptions): Promise<KinesisReader> {
    const api = await StreamApi.open(options.client, options.stream);
    return new KinesisReader(options, api, await options.leases(api.name));
  }

  private constructor(
    private readonly options: KinesisReaderOptions,
    private readonly api: StreamApi,
    private readonly leases: LeaseStore,
  ) {
    this.name = api.name;
  }

  async lowWater(consumer: string): Promise<Checkpoint> {
    const done = new Map<string, string>();
    for (const [shard, { position }] of await this.checkpoints(consumer)) {
      if (position !== undefined) done.set(shard, position);
    }
    return done;
  }

  private async checkpoints(consumer: string) {
    checkConsumerName(consumer);
    const scope = `${consumer}/`;
    const leases = (await this.leases.list()).filter(({ name }) => name.startsWith(scope));
    return new Map(
      leases.map(({ name, checkpoint, finished }) => [
        name.slice(scope.length),
        { position: parseCheckpoint(checkpoint).position, finished },
      ]),
    );
  }

  async head(): Promise<Checkpoint> {
    this.mustBeOpen();
    const shards = await this.api.shards();
    const listed = new Set(shards.map(({ id }) => id));
    for (const id of this.heads.keys()) if (!listed.has(id)) this.heads.delete(id);
    const heads = await Promise.all(
      shards.map(async ({ id, open }) => {
        const known = this.heads.get(id);
        const position = known?.final === true ? known.position : await this.newest(id, known?.position);
        this.heads.set(id, { position, final: !open });
        return [id, position] as const;
      }),
    );
    return new Map(heads.filter((head): head is [string, string] => head[1] !== undefined));
  }

  retentionMs(): Promise<number> {
    this.mustBeOpen();
    return this.api.currentRetentionMs();
  }

  /** Kinesis does not tell a shard's newest record: it is read for, from not too far back. */
  private async newest(shard: string, known: string | undefined): Promise<string | undefined> {
    if (known !== undefined) return this.newestFrom(shard, { sequence: sequenceOf(known) }, known);
    for (const back of LOOK_BACK_MS) {
      const found = await this.newestFrom(shard, { since: Date.now() - back }, undefined);
      if (found !== undefined) return found;
    }
    return this.newestFrom(shard, "oldest", undefined);
  }

  private async newestFrom(
    shard: string,
    place: ShardPlace,
    known: string | undefined,
  ): Promise<string | undefined> {
    let newest = known;
    const { signal } = new AbortController();
    const source = this.poll({ shard, place, signal });
    for (;;) {
      const { records, behindMs, ended } = await source.next();
      const last = records.at(-1);
      if (last !== undefined) {
        const events = disaggregate(last.data)?.starts.length ?? 1;
        newest = eventPosition(recordPosition(last.sequence), Math.max(0, events - 1));
      }
      if (behindMs === 0 || ended) return newest;
    }
  }

  private poll(options: Pick<SourceOptions, "shard" | "place" | "signal">): PollSource {
    const { api } = this;
    // Who only looks misses nothing: what is gone does not wait.
    const guard = new LossGuard(api, undefined);
    return new PollSource({ ...options, api, guard, metrics: this.options.metrics });
  }

  async consume(consumer: string, holder?: PartitionHolder): Promise<StreamConsumer> {
    this.mustBeOpen();
    checkConsumerName(consumer);
    const { api, leases } = this;
    const { log, metrics, leaseMs, fanOut = false } = this.options;
    const pushed = fanOut ? await registerConsumer(api, `tributary-${consumer}`) : undefined;
    const opened = await KinesisConsumer.open({
      api,
      leases,
      consumer,
      holder,
      leaseMs,
      log,
      metrics,
      openSource: (source) =>
        pushed === undefined ? new PollSource(source) : new PushSource(source, pushed),
      onClose: () => this.open.delete(opened),
    });
    this.open.add(opened);
    return opened;
  }

  async follow(from: Checkpoint | "oldest" | "next"): Promise<StreamFollower> {
    this.mustBeOpen();
    const opened = await KinesisFollower.open(this.api, from, () => this.open.delete(opened));
    this.open.add(opened);
    return opened;
  }

  async *waiting(consumer: string): AsyncGenerator<StreamBatch> {
    this.mustBeOpen();
    const done = await this.checkpoints(consumer);
    const feeds = new FeedSet();
    try {
      for (const { id: shard } of await this.api.shards()) {
        const checkpoint = done.get(shard);
        if (checkpoint?.finished === true) continue;
        const position = checkpoint?.position;
        const place = position === undefined ? "oldest" : { sequence: sequenceOf(position) };
        const feed = new ShardFeed(shard, position, feeds);
        feeds.add(feed);
        feed.start(this.poll({ shard, place, signal: feed.signal }), true);
      }
      for (;;) {
        const { version } = feeds;
        const batch = feeds.take(LOOK, () => true);
        if (batch !== undefined) yield batch;
        else if (feeds.all().every((feed) => feed.ended)) return;
        else await feeds.wait(version, 60_000);
      }
    } catch (error) {
      throw streamDown("the stream could not be read", error);
    } finally {
      for (const { name } of feeds.all()) feeds.remove(name);
    }
  }

  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    await Promise.all([...this.open].map((one) => one.close()));
  }

  private mustBeOpen(): void {
    if (this.closed) throw closedError("stream reader");
  }
}
