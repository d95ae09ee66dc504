import { type KinesisClient, PutRecordsCommand, type PutRecordsResultEntry } from "@aws-sdk/client-kinesis";
import type { LeaseStore } from "../../lease/lease-store.js";
import type { Appended, ChangeStreamWriter, OutgoingEvents } from "../change-stream.js";
import { closedError, streamDown } from "../failures.js";
import { Backlog } from "./backlog.js";
import type { KinesisMetrics } from "./metrics.js";
import { ShardMap } from "./shard-map.js";
import { Appending, type OutgoingRecord, ShardQueue } from "./shard-queue.js";
import { isThrottled, StreamApi } from "./stream-api.js";

/** Limits of PutRecords. A request may be of 10 MiB where records may, of 5 elsewhere; larger records go alone. */
const MAX_RECORDS = 500;
const MAX_REQUEST_BYTES = 5 * 1024 * 1024;
/** A slot's number, which counts as part of the record. */
const PARTITION_KEY_BYTES = 10;
/** Requests under way at once, to different shards. */
const MAX_REQUESTS = 4;
/**
 * After `refuseMs` without room in its shard an event is refused: its producer knows better when to come again. After
 * `downMs` without an answer the stream counts as down.
 */
const PATIENCE = { refuseMs: 2_000, downMs: 10_000 };
/** Pauses of one shard between tries: short at first, a shard's capacity comes back every second. */
const FIRST_PAUSE_MS = 50;
const LONGEST_PAUSE_MS = 1_000;
/** A wrong guess of shards makes us look again, but not for each request in the course of a reshard. */
const MAP_AGE_MS = 1_000;

interface Sent {
  readonly queue: ShardQueue;
  readonly record: OutgoingRecord;
}

/**
 * The writing end of a Kinesis stream. Events gather by shard while the shard's last record is on its way, and go as
 * one aggregated record.
 */
export class KinesisWriter implements ChangeStreamWriter {
  readonly name: string;
  private readonly queues = new Map<string, ShardQueue>();
  private readonly backlog: Backlog;
  private requests = 0;
  private timer: NodeJS.Timeout | undefined;
  private mappedAt = Number.NEGATIVE_INFINITY;
  private closing: Promise<void> | undefined;
  private readonly appendings = new Set<Promise<unknown>>();

  /** Errors: TRB-CONFIG, TRB-BUS-STREAM-DOWN. */
  static async open(options: {
    readonly client: KinesisClient;
    readonly stream: string;
    readonly leases: (stream: string) => Promise<LeaseStore>;
    readonly metrics?: KinesisMetrics;
    readonly patience?: typeof PATIENCE;
  }): Promise<KinesisWriter> {
    const api = await StreamApi.open(options.client, options.stream);
    const map = new ShardMap(api);
    await map.refresh();
    const { metrics, patience = PATIENCE } = options;
    return new KinesisWriter(api, map, await options.leases(api.name), metrics, patience);
  }

  private constructor(
    private readonly api: StreamApi,
    private readonly map: ShardMap,
    leases: LeaseStore,
    private readonly metrics: KinesisMetrics | undefined,
    private readonly patience: typeof PATIENCE,
  ) {
    this.name = api.name;
    this.backlog = new Backlog(leases, api.retentionMs);
  }

  async append(events: OutgoingEvents): Promise<Appended> {
    if (this.closing !== undefined) throw closedError("stream writer");
    const tooLarge = new Set<number>();
    const indexes: number[] = [];
    for (let i = 0; i < events.count; i++) {
      const bytes = events.ends[i]! - events.starts[i]! + PARTITION_KEY_BYTES;
      if (bytes > this.api.maxRecordBytes) tooLarge.add(i);
      else indexes.push(i);
    }
    const appending = new Appending(events, tooLarge);
    this.enqueue(appending, indexes, performance.now(), false);
    this.pump();
    const { done } = appending;
    this.appendings.add(done);
    try {
      return await done;
    } finally {
      this.appendings.delete(done);
    }
  }

  backlogBytes(): number {
    return this.backlog.current();
  }

  /** Finishes what was appended. */
  close(): Promise<void> {
    this.closing ??= (async () => {
      await Promise.allSettled(this.appendings);
      clearTimeout(this.timer);
      await this.backlog.close();
    })();
    return this.closing;
  }

  private enqueue(appending: Appending, indexes: readonly number[], since: number, doubtful: boolean): void {
    const byShard = new Map<string, number[]>();
    for (const index of indexes) {
      const shard = this.map.shardOf(appending.events.slots[index]!);
      const found = byShard.get(shard);
      if (found === undefined) byShard.set(shard, [index]);
      else found.push(index);
    }
    for (const [shard, ofShard] of byShard) {
      let queue = this.queues.get(shard);
      if (queue === undefined) {
        queue = new ShardQueue(shard, this.api.maxRecordBytes);
        this.queues.set(shard, queue);
      }
      queue.add(appending, ofShard, since, doubtful);
    }
  }

  /** Sends what can be sent now, and comes again when more can. */
  private pump(): void {
    clearTimeout(this.timer);
    const now = performance.now();
    while (this.requests < MAX_REQUESTS) {
      const batch = this.collect(now);
      if (batch.length === 0) break;
      this.requests++;
      void this.send(batch).finally(() => {
        this.requests--;
        this.pump();
      });
    }
    let soonest = Number.POSITIVE_INFINITY;
    for (const queue of this.queues.values()) {
      if (queue.sending === undefined && queue.waits && queue.retryAt > now) {
        soonest = Math.min(soonest, queue.retryAt - now);
      }
    }
    if (soonest < Number.POSITIVE_INFINITY) this.timer = setTimeout(() => this.pump(), Math.ceil(soonest));
  }

  private collect(now: number): Sent[] {
    const batch: Sent[] = [];
    let bytes = 0;
    for (const [shard, queue] of this.queues) {
      if (queue.sending !== undefined) continue;
      if (!queue.waits) {
        this.queues.delete(shard);
        continue;
      }
      if (queue.retryAt > now) continue;
      const record = queue.take();
      const size = record.data.length + record.partitionKey.length;
      if (batch.length === MAX_RECORDS || (batch.length > 0 && bytes + size > MAX_REQUEST_BYTES)) {
        queue.sending = undefined;
        break;
      }
      bytes += size;
      batch.push({ queue, record });
    }
    // The next request begins with those that were left out of this one.
    for (const { queue } of batch) {
      this.queues.delete(queue.id);
      this.queues.set(queue.id, queue);
    }
    return batch;
  }

  /** Never rejects. */
  private async send(batch: readonly Sent[]): Promise<void> {
    let results: readonly PutRecordsResultEntry[];
    try {
      const { Records } = await this.api.client.send(
        new PutRecordsCommand({
          StreamName: this.api.streamName,
          Records: batch.map(({ record: { data, partitionKey, hashKey } }) => ({
            Data: data,
            PartitionKey: partitionKey,
            ExplicitHashKey: hashKey,
          })),
        }),
      );
      results = Records ?? [];
    } catch (error) {
      for (const { queue } of batch) this.failed(queue, !isThrottled(error), error);
      return;
    }
    let moved = false;
    batch.forEach(({ queue, record }, i) => {
      const { ShardId: shard, SequenceNumber: sequence, ErrorCode: code } = results[i] ?? {};
      if (shard === undefined || sequence === undefined || code !== undefined) {
        this.failed(queue, code !== "ProvisionedThroughputExceededException", new Error(code ?? "no answer"));
        return;
      }
      try {
        this.backlog.add(shard, queue.stored(shard, sequence), record.bytes);
      } catch (error) {
        queue.fail(error);
      }
      moved ||= shard !== queue.id;
    });
    if (moved && performance.now() - this.mappedAt > MAP_AGE_MS) await this.remap();
  }

  private failed(queue: ShardQueue, doubtful: boolean, cause: unknown): void {
    const now = performance.now();
    const { refuseMs, downMs } = this.patience;
    if (!doubtful) this.metrics?.countThrottled(this.api.streamName, "write");
    queue.failed(doubtful);
    queue.giveUp(now - refuseMs, now - downMs, () => streamDown("the stream does not take events", cause));
    const pause = Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** Math.min(queue.failures - 1, 10));
    queue.retryAt = now + pause * (0.5 + Math.random() / 2);
  }

  /** Sorts what waits by the shards that there are now. A look that fails is made again by the next wrong guess. */
  private async remap(): Promise<void> {
    this.mappedAt = performance.now();
    await this.map.refresh().catch(() => undefined);
    const waiting = [...this.queues.values()]
      .filter(({ sending }) => sending === undefined)
      .flatMap((queue) => queue.drain());
    for (const run of waiting) this.enqueue(run.appending, run.indexes, run.since, run.doubtful);
  }
}
