import type {
  ChangeStreamReader,
  Checkpoint,
  PartitionHolder,
  StreamBatch,
  StreamConsumer,
  StreamFollower,
} from "../change-stream.js";
import { closedError, streamDown } from "../failures.js";
import { BatchCutter } from "./batches.js";
import { Brokers } from "./brokers.js";
import { KafkaConsumer } from "./consumer.js";
import { Fetcher, type FetchLimits } from "./fetcher.js";
import { KafkaFollower } from "./follower.js";
import type { GroupTimes } from "./group-member.js";
import { checkpointOf, committedOffsets, groupOf, listOffsets, namesOf } from "./offsets.js";
import type { BrokerSettings, TopicSettings } from "./settings.js";
import { Topic } from "./topic.js";

export interface KafkaReaderOptions {
  readonly brokers: BrokerSettings;
  readonly topic: TopicSettings;
  readonly times?: GroupTimes;
  readonly fetch?: FetchLimits;
  /** How long a consumer waits to be taken into its group. */
  readonly joinMs?: number;
}

const TIMES: GroupTimes = { sessionMs: 10_000, heartbeatMs: 500 };
const FETCH: FetchLimits = { bytes: 16 * 1024 * 1024, waitMs: 500 };
/** What a look hands out at once: a slice that others need not wait long for. */
const LOOK = { maxEvents: 4_096, maxBytes: 1024 * 1024 };
const LOOK_MS = 1_000;
const JOIN_MS = 60_000;

/** The reading end of one topic. A named consumer is a consumer group of the topic. */
export class KafkaReader implements ChangeStreamReader {
  readonly name: string;
  private readonly opened = new Set<{ close(): Promise<void> }>();
  private closed = false;

  /** Errors: TRB-CONFIG, TRB-BUS-STREAM-DOWN. */
  static async open(options: KafkaReaderOptions): Promise<KafkaReader> {
    const brokers = new Brokers(options.brokers);
    try {
      return new KafkaReader(options, await Topic.open(brokers, options.topic, { pinned: true }));
    } catch (error) {
      await brokers.close();
      throw streamDown("the topic cannot be opened", error);
    }
  }

  private constructor(
    private readonly options: KafkaReaderOptions,
    private readonly topic: Topic,
  ) {
    this.name = topic.streamName;
  }

  async lowWater(consumer: string): Promise<Checkpoint> {
    const group = groupOf(this.topic.name, consumer);
    return this.asked(async () => checkpointOf(await committedOffsets(this.topic, group)));
  }

  head(): Promise<Checkpoint> {
    return this.asked(async () => checkpointOf(await listOffsets(this.topic, "latest")));
  }

  retentionMs(): Promise<number | undefined> {
    return this.asked(() => this.topic.retentionMs());
  }

  async consume(consumer: string, holder?: PartitionHolder): Promise<StreamConsumer> {
    if (this.closed) throw closedError("stream reader");
    const group = groupOf(this.topic.name, consumer);
    const { times = TIMES, fetch = FETCH, joinMs = JOIN_MS } = this.options;
    // Over connections of its own: others' waiting is not ours.
    const topic = this.topic.over(new Brokers(this.options.brokers));
    const reading = await KafkaConsumer.open(topic, { group, holder, times, fetch, joinMs }, (closed) =>
      this.opened.delete(closed),
    );
    this.opened.add(reading);
    return reading;
  }

  async follow(from: Checkpoint | "oldest" | "next"): Promise<StreamFollower> {
    if (this.closed) throw closedError("stream reader");
    const topic = this.topic.over(new Brokers(this.options.brokers));
    try {
      const { fetch = FETCH } = this.options;
      const following = await KafkaFollower.open(topic, from, fetch, (closed) => this.opened.delete(closed));
      this.opened.add(following);
      return following;
    } catch (error) {
      await topic.brokers.close();
      throw streamDown("the topic cannot be followed", error);
    }
  }

  async *waiting(consumer: string): AsyncGenerator<StreamBatch> {
    if (this.closed) throw closedError("stream reader");
    const group = groupOf(this.topic.name, consumer);
    const [done, earliest, latest] = await this.asked(() =>
      Promise.all([
        committedOffsets(this.topic, group),
        listOffsets(this.topic, "earliest"),
        listOffsets(this.topic, "latest"),
      ]),
    );
    const topic = this.topic.over(new Brokers(this.options.brokers));
    const fetcher = new Fetcher(topic, this.options.fetch ?? FETCH);
    const closing = { close: () => topic.brokers.close() };
    this.opened.add(closing);
    try {
      const cutter = new BatchCutter();
      const names = namesOf(topic.state.leaders.length);
      const left = new Set<number>();
      await topic.refresh();
      for (const [partition, end] of latest) {
        const from = Math.max(done.get(partition) ?? 0, earliest.get(partition) ?? 0);
        if (from >= end) continue;
        left.add(partition);
        fetcher.add(partition, from);
      }
      while (left.size > 0) {
        // Whoever looks would take the rest for nothing.
        if (this.closed) throw closedError("stream reader");
        const fetched = fetcher.take();
        if (fetched === undefined) {
          await fetcher.wait(LOOK_MS);
          continue;
        }
        cutter.begin(fetched);
        while (!cutter.isEmpty) {
          const batch = cutter.cut(LOOK, names);
          if (batch !== undefined) yield batch;
        }
        for (const [partition, next] of fetched.window.next) {
          if (next < latest.get(partition)!) continue;
          left.delete(partition);
          fetcher.remove(partition);
        }
      }
    } finally {
      fetcher.close();
      this.opened.delete(closing);
      await topic.brokers.close();
    }
  }

  /** Errors: TRB-STREAM-REPLACED, TRB-BUS-STREAM-DOWN. */
  private async asked<T>(ask: () => Promise<T>): Promise<T> {
    if (this.closed) throw closedError("stream reader");
    try {
      await this.topic.refresh();
      return await this.topic.ask(ask);
    } catch (error) {
      throw streamDown("the Kafka brokers do not answer", error);
    }
  }

  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    for (const open of [...this.opened]) await open.close();
    await this.topic.brokers.close();
  }
}
