import { setTimeout as sleep } from "node:timers/promises";
import { TributaryError } from "../../base/errors.js";
import { slotsOfRange } from "../../base/slots.js";
import type { Checkpoint, PartitionHolder, StreamBatch, StreamConsumer } from "../change-stream.js";
import { closedError, streamDown } from "../failures.js";
import { BatchCutter, readWhenThere } from "./batches.js";
import { codeOf, KAFKA, Refused, Unanswered } from "./failures.js";
import { type Cursor, Fetcher, type FetchLimits } from "./fetcher.js";
import { GroupMember, type GroupTimes, type PartitionOwner } from "./group-member.js";
import {
  commitOffsets,
  committedOffsets,
  listOffsets,
  type Membership,
  namesOf,
  offsetAt,
  partitionName,
} from "./offsets.js";
import type { Topic } from "./topic.js";

export interface ConsumerOptions {
  readonly group: string;
  readonly holder: PartitionHolder | undefined;
  readonly times: GroupTimes;
  readonly fetch: FetchLimits;
  readonly joinMs: number;
}

type ReadLimit = Parameters<StreamConsumer["read"]>[0];

/** A partition that is ours. All are offsets of what comes next. */
interface Held {
  readonly cursor: Cursor;
  /** What the group's record says. */
  committed: number;
  /** After the last event that was given out. */
  delivered: number;
  /** After all that was looked at: control records and aborted events lie between. */
  reached: number;
}

const COMMIT_PAUSE_MS = 100;

/** Errors that end when the group has gathered, or its coordinator is found again. */
const PASSING: ReadonlySet<number> = new Set<number>([
  KAFKA.ILLEGAL_GENERATION,
  KAFKA.UNKNOWN_MEMBER_ID,
  KAFKA.REBALANCE_IN_PROGRESS,
  KAFKA.NOT_COORDINATOR,
  KAFKA.COORDINATOR_NOT_AVAILABLE,
  KAFKA.COORDINATOR_LOAD_IN_PROGRESS,
  KAFKA.REQUEST_TIMED_OUT,
]);

/** One member's reading of the partitions that its group gives it. Not for concurrent `read`s. */
export class KafkaConsumer implements StreamConsumer, PartitionOwner {
  private readonly held = new Map<number, Held>();
  private readonly fetcher: Fetcher;
  private readonly member: GroupMember;
  private readonly cutter = new BatchCutter();
  private names: readonly string[];
  private failure: unknown;
  private committing: Promise<void> = Promise.resolve();
  private closed = false;

  /** Errors: TRB-CONFIG, TRB-STREAM-FORGOTTEN, TRB-BUS-STREAM-DOWN. */
  static async open(
    topic: Topic,
    options: ConsumerOptions,
    onClose: (closed: KafkaConsumer) => void,
  ): Promise<KafkaConsumer> {
    const consumer = new KafkaConsumer(topic, options, onClose);
    try {
      await consumer.member.start(options.joinMs);
      return consumer;
    } catch (error) {
      await consumer.close();
      throw streamDown("the consumer group cannot be joined", error);
    }
  }

  private constructor(
    private readonly topic: Topic,
    private readonly options: ConsumerOptions,
    private readonly onClose: (closed: KafkaConsumer) => void,
  ) {
    this.names = namesOf(topic.state.leaders.length);
    this.fetcher = new Fetcher(topic, options.fetch);
    this.member = new GroupMember(topic, options.group, options.times, this, (error) => {
      this.failure = error;
    });
  }

  read(limit: ReadLimit): Promise<StreamBatch | undefined> {
    return readWhenThere(this.fetcher, limit, () => this.next(limit));
  }

  private next(limit: ReadLimit): StreamBatch | undefined {
    for (;;) {
      if (this.closed) throw closedError("consumer");
      if (this.failure !== undefined) throw this.failure;
      if (!this.cutter.fill(this.fetcher)) return undefined;
      const batch = this.cutter.cut(
        limit,
        this.names,
        ({ cursors }, partition) => this.fetcher.holds(cursors.get(partition)!),
        ({ window, cursors }) => {
          for (const [partition, next] of window.next) {
            const held = this.held.get(partition);
            // Of a partition that is being handed over, what was not given out any more is another's to read.
            if (held === undefined || held.cursor !== cursors.get(partition)) continue;
            if (this.fetcher.holds(held.cursor)) held.reached = next;
          }
          this.skipped();
        },
      );
      if (batch === undefined) continue;
      for (let i = 0; i < batch.count; i++) {
        const held = this.held.get(batch.partitions[i]!);
        if (held !== undefined) held.delivered = offsetAt(batch.positions[i]!) + 1;
      }
      return batch;
    }
  }

  commit(checkpoint: Checkpoint): Promise<void> {
    // One after the other, so that an older record never replaces a newer one.
    const turn = this.committing.then(() => this.moveTo(checkpoint));
    this.committing = turn.catch(() => undefined);
    return turn;
  }

  private async moveTo(checkpoint: Checkpoint): Promise<void> {
    const patience = performance.now() + 2 * this.options.times.sessionMs;
    for (;;) {
      if (this.closed) throw closedError("consumer");
      // Never backwards, and never beyond what reading has reached. What is not ours any more is another's to commit.
      const offsets = new Map<number, number>();
      for (const [name, position] of checkpoint) {
        const held = this.held.get(Number(name));
        if (held === undefined) continue;
        const done = Math.min(offsetAt(position) + 1, held.delivered);
        const offset = done === held.delivered ? Math.max(done, held.reached) : done;
        if (offset > held.committed) offsets.set(Number(name), offset);
      }
      if (offsets.size === 0) return;
      try {
        const { membership } = this.member;
        if (membership === undefined) throw new Unanswered("not a member of the group for now", false);
        await commitOffsets(this.topic, membership, offsets);
        for (const [partition, offset] of offsets) {
          const held = this.held.get(partition);
          if (held !== undefined) held.committed = Math.max(held.committed, offset);
        }
        return;
      } catch (error) {
        const passes = error instanceof Unanswered || PASSING.has(codeOf(error) ?? KAFKA.NONE);
        if (!passes || performance.now() > patience) {
          throw streamDown("the low-water record could not be written", error);
        }
        await sleep(COMMIT_PAUSE_MS);
      }
    }
  }

  /** Where nothing is left to be done but what holds no events, the record moves beyond that by itself. */
  private skipped(): void {
    const behind = new Map<string, string>();
    for (const [partition, { committed, delivered, reached }] of this.held) {
      if (committed >= delivered && reached > committed && delivered > 0) {
        behind.set(partitionName(partition), this.lastOf(delivered));
      }
    }
    if (behind.size > 0) this.commit(behind).catch(() => undefined);
  }

  private lastOf(next: number): string {
    return String(next - 1).padStart(16, "0");
  }

  /** Of a partition that nobody of the group has read yet, reading begins with what is there, and that is put down. */
  async gained(partitions: readonly number[], membership: Membership): Promise<void> {
    // Whoever shares out may have seen more of them than we were told of: asked for again, they have records and names.
    if (partitions.some((partition) => partition >= this.topic.state.leaders.length))
      throw new Refused("metadata", KAFKA.UNKNOWN_TOPIC_OR_PARTITION);
    const [committed, earliest] = await Promise.all([
      committedOffsets(this.topic, membership.group, membership.coordinator),
      listOffsets(this.topic, "earliest"),
    ]);
    const fresh = new Map<number, number>();
    for (const partition of partitions) {
      if (!committed.has(partition)) fresh.set(partition, earliest.get(partition) ?? 0);
    }
    const missed = await this.missed(fresh);
    for (const partition of missed.keys()) fresh.delete(partition);
    if (fresh.size > 0) await commitOffsets(this.topic, membership, fresh);
    if (this.closed) return;
    this.names = namesOf(this.topic.state.leaders.length);
    for (const partition of partitions) {
      const next = committed.get(partition) ?? missed.get(partition) ?? fresh.get(partition)!;
      const cursor = this.fetcher.add(partition, next);
      this.held.set(partition, { cursor, committed: next, delivered: next, reached: next });
    }
    this.options.holder?.assigned(
      partitions.map((p) => ({ name: partitionName(p), slots: slotsOfRange(p, this.names.length) })),
    );
  }

  /**
   * Partitions whose oldest event comes after the one that was to be read next. Brokers drop the record of a group that
   * was away for a while (offsets.retention.minutes): what the topic has forgotten meanwhile is not stepped over, reading
   * there finds it gone.
   */
  private async missed(fresh: ReadonlyMap<number, number>): Promise<Map<number, number>> {
    const missed = new Map<number, number>();
    const begun = [...fresh].filter(([, earliest]) => earliest > 0);
    if (begun.length === 0) return missed;
    const landed = await this.options.holder?.landed?.().catch((cause: unknown) => {
      throw new TributaryError("TRB-BUS-STREAM-DOWN", "how far tables are cannot be told", { cause });
    });
    if (landed === undefined) return missed;
    for (const [partition, earliest] of begun) {
      const position = landed.get(partitionName(partition));
      const next = position === undefined ? 0 : offsetAt(position) + 1;
      if (next < earliest) missed.set(partition, next);
    }
    return missed;
  }

  async handOver(partitions: readonly number[]): Promise<void> {
    for (const partition of partitions) this.fetcher.remove(partition);
    await this.options.holder?.revoked(partitions.map(partitionName));
  }

  lost(partitions: readonly number[]): void {
    const still = partitions.filter((partition) => {
      const held = this.held.get(partition);
      return held !== undefined && this.fetcher.holds(held.cursor);
    });
    for (const partition of partitions) {
      this.fetcher.remove(partition);
      this.held.delete(partition);
    }
    // Nobody waits for them; the holder has to know all the same.
    if (still.length > 0) this.options.holder?.revoked(still.map(partitionName)).catch(() => undefined);
  }

  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    this.fetcher.close();
    await this.member.leave();
    await this.topic.brokers.close();
    await this.member.ended();
    await this.committing;
    this.onClose(this);
  }
}
