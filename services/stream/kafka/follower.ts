import type { Checkpoint, StreamBatch, StreamFollower } from "../change-stream.js";
import { closedError } from "../failures.js";
import { BatchCutter, readWhenThere } from "./batches.js";
import { Fetcher, type FetchLimits } from "./fetcher.js";
import { listOffsets, namesOf, offsetAt, partitionName } from "./offsets.js";
import type { Topic } from "./topic.js";

type ReadLimit = Parameters<StreamFollower["read"]>[0];

/** Partitions may be added meanwhile. */
const LOOK_MS = 5_000;

/** Reads all partitions without a group, for somebody who keeps count himself. */
export class KafkaFollower implements StreamFollower {
  private readonly fetcher: Fetcher;
  private readonly cutter = new BatchCutter();
  private names: readonly string[] = [];
  private lookedAt = performance.now();
  private looking: Promise<void> | undefined;
  private closed = false;

  /** Errors: TRB-STREAM-REPLACED; Unanswered, Refused. */
  static async open(
    topic: Topic,
    from: Checkpoint | "oldest" | "next",
    fetch: FetchLimits,
    onClose: (closed: KafkaFollower) => void,
  ): Promise<KafkaFollower> {
    const follower = new KafkaFollower(topic, fetch, onClose);
    await topic.ask(() => follower.begin(from));
    return follower;
  }

  private constructor(
    private readonly topic: Topic,
    fetch: FetchLimits,
    private readonly onClose: (closed: KafkaFollower) => void,
  ) {
    this.fetcher = new Fetcher(topic, fetch);
  }

  /** Takes up the partitions that are not followed yet. */
  private async begin(from: Checkpoint | "oldest" | "next"): Promise<void> {
    await this.topic.refresh();
    const known = this.names.length;
    const names = namesOf(this.topic.state.leaders.length);
    if (names.length <= known) return;
    const offsets = await listOffsets(this.topic, from === "next" ? "latest" : "earliest");
    this.names = names;
    for (let partition = known; partition < names.length; partition++) {
      const position = typeof from === "string" ? undefined : from.get(partitionName(partition));
      const next = position === undefined ? (offsets.get(partition) ?? 0) : offsetAt(position) + 1;
      this.fetcher.add(partition, next);
    }
  }

  read(limit: ReadLimit): Promise<StreamBatch | undefined> {
    return readWhenThere(this.fetcher, limit, () => this.next(limit));
  }

  private next(limit: ReadLimit): StreamBatch | undefined {
    if (this.closed) throw closedError("follower");
    if (performance.now() - this.lookedAt > LOOK_MS) this.look();
    for (;;) {
      if (!this.cutter.fill(this.fetcher)) return undefined;
      const batch = this.cutter.cut(limit, this.names);
      if (batch !== undefined) return batch;
    }
  }

  private look(): void {
    this.lookedAt = performance.now();
    this.looking = this.begin("oldest").catch(() => undefined);
  }

  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    this.fetcher.close();
    await this.topic.brokers.close();
    await this.looking;
    this.onClose(this);
  }
}
