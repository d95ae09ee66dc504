import { rangeOfSlot } from "../../base/slots.js";
import { type Appended, bytesOf, type ChangeStreamWriter, type OutgoingEvents } from "../change-stream.js";
import { closedError, streamDown } from "../failures.js";
import { Backlog } from "./backlog.js";
import { Brokers } from "./brokers.js";
import { checkCompression } from "./codecs.js";
import { namesOf } from "./offsets.js";
import { PartitionLane } from "./partition-lane.js";
import { PendingAppend } from "./pending-append.js";
import type { DescribeEvent } from "./record-batch.js";
import { Sender, type SenderLimits } from "./sender.js";
import type { BrokerSettings, Compression, TopicSettings } from "./settings.js";
import { Topic } from "./topic.js";

export interface KafkaWriterOptions {
  readonly brokers: BrokerSettings;
  readonly topic: TopicSettings;
  readonly compression: Compression;
  /** Accepted and not yet acknowledged by the brokers; what comes beyond it is refused. */
  readonly maxInFlightBytes: number;
  readonly describe: DescribeEvent;
  readonly limits?: SenderLimits;
  /** How often partitions and leaders are looked at anew. */
  readonly metadataMs?: number;
}

const LIMITS: SenderLimits = { patienceMs: 20_000, triesMs: 2_000 };
const METADATA_MS = 30_000;
/** What key and headers add to an event: tenant, type and id are bounded by the envelope's contract. */
const RECORD_ROOM_BYTES = 4 * 1024;

/** The writing end of one topic. Any number may write beside each other. */
export class KafkaWriter implements ChangeStreamWriter {
  private readonly lanes: PartitionLane[] = [];
  private names: readonly string[] = [];
  private topicId = "";
  private readonly sender: Sender;
  private readonly backlog: Backlog;
  private readonly timer: NodeJS.Timeout;
  private inFlightBytes = 0;
  private readonly pending = new Set<Promise<unknown>>();
  private closed = false;

  /** Errors: TRB-CONFIG, TRB-BUS-STREAM-DOWN. */
  static async open(options: KafkaWriterOptions): Promise<KafkaWriter> {
    checkCompression(options.compression);
    const brokers = new Brokers(options.brokers);
    try {
      const topic = await Topic.open(brokers, options.topic, { pinned: false });
      const writer = new KafkaWriter(options, topic);
      try {
        await writer.backlog.refresh();
      } catch (error) {
        await writer.close();
        throw error;
      }
      return writer;
    } catch (error) {
      await brokers.close();
      throw streamDown("the topic cannot be opened", error);
    }
  }

  private constructor(
    private readonly options: KafkaWriterOptions,
    private readonly topic: Topic,
  ) {
    this.backlog = new Backlog(topic);
    this.sender = new Sender(topic, this.lanes, options.limits ?? LIMITS, (stored) =>
      this.backlog.stored(stored),
    );
    this.addLanes();
    this.timer = setInterval(
      () => void this.topic.refresh().catch(() => undefined),
      options.metadataMs ?? METADATA_MS,
    );
    this.timer.unref();
  }

  get name(): string {
    return this.topic.streamName;
  }

  get maxInFlightBytes(): number {
    return this.options.maxInFlightBytes;
  }

  append(events: OutgoingEvents): Promise<Appended> {
    if (this.closed) return Promise.reject(closedError("stream"));
    this.addLanes();
    const { names } = this;
    const partitions = new Uint16Array(events.count);
    if (events.count === 0) return Promise.resolve({ names, partitions, positions: [] });
    for (let i = 0; i < events.count; i++) partitions[i] = rangeOfSlot(events.slots[i]!, names.length);
    const bytes = bytesOf(events);
    if (this.inFlightBytes > 0 && this.inFlightBytes + bytes > this.maxInFlightBytes) {
      return Promise.resolve({
        names,
        partitions,
        positions: new Array<undefined>(events.count).fill(undefined),
      });
    }
    return this.accept(events, partitions, bytes);
  }

  private accept(events: OutgoingEvents, partitions: Uint16Array, bytes: number): Promise<Appended> {
    this.inFlightBytes += bytes;
    const settled = new Promise<Appended>((resolve, reject) => {
      const append = new PendingAppend(this.names, partitions, bytes, resolve, reject);
      this.fill(append, events);
    }).finally(() => {
      this.inFlightBytes -= bytes;
      this.pending.delete(quiet);
    });
    const quiet = settled.catch(() => undefined);
    this.pending.add(quiet);
    this.sender.wake();
    return settled;
  }

  private fill(append: PendingAppend, { bytes, count, starts, ends }: OutgoingEvents): void {
    const { describe, limits } = this.options;
    const downMs = (limits ?? LIMITS).triesMs;
    const now = Date.now();
    const mostBytes = this.topic.maxMessageBytes - RECORD_ROOM_BYTES;
    for (let i = 0; i < count; i++) {
      if (ends[i]! - starts[i]! > mostBytes) {
        append.refuseLarge(i);
        continue;
      }
      const lane = this.lanes[append.partitions[i]!]!;
      if (lane.isDown(downMs)) {
        append.refuse(new Error("the leader of a partition does not take events"));
        continue;
      }
      lane.add(append, i, [bytes, starts[i]!, ends[i]!], describe(bytes, starts[i]!, ends[i]!), now);
    }
  }

  /** Partitions may have been added since; fewer are those of a topic that was made anew. */
  private addLanes(): void {
    const { id, leaders } = this.topic.state;
    const count = id === this.topicId ? Math.max(this.names.length, leaders.length) : leaders.length;
    this.topicId = id;
    if (this.names.length === count) return;
    for (let p = this.lanes.length; p < count; p++) {
      this.lanes.push(new PartitionLane(p, () => this.topic.maxMessageBytes, this.options.compression));
    }
    this.names = namesOf(count);
  }

  backlogBytes(): number {
    return this.backlog.bytes;
  }

  /** Answers what was appended, then ends. */
  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    clearInterval(this.timer);
    await Promise.all(this.pending);
    this.sender.close();
    await this.backlog.close();
    await this.topic.brokers.close();
  }
}
