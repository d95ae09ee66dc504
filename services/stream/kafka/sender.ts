import type { produceV9 } from "@platformatic/kafka";
import { TributaryError } from "../../base/errors.js";
import { KAFKA, Refused, Unanswered } from "./failures.js";
import { onceATurn } from "./once-a-turn.js";
import type { PartitionLane, Stored } from "./partition-lane.js";
import { newIdentity, produceApi } from "./produce-api.js";
import type { Topic } from "./topic.js";

export interface SenderLimits {
  /** How long a batch is tried while the cluster answers: a broker that dies is replaced within some ten seconds. */
  readonly patienceMs: number;
  /** How long when no broker answers at all, or the last batch has been given up. */
  readonly triesMs: number;
}

/** A leader's answer may take as long as its replicas; then it says so itself. */
const REPLICAS_MS = 5_000;
const ANSWER_MS = 8_000;
/** Far below what brokers take in one request (socket.request.max.bytes, 100 MiB unless set). */
const MAX_BATCHES = 32;

/** The leader has not stored the batch and will not; another try may find the right one. */
const NOT_STORED: ReadonlySet<number> = new Set<number>([
  KAFKA.LEADER_NOT_AVAILABLE,
  KAFKA.FENCED_LEADER_EPOCH,
  KAFKA.UNKNOWN_LEADER_EPOCH,
  KAFKA.NOT_ENOUGH_REPLICAS,
  KAFKA.CORRUPT_MESSAGE,
]);
/** Also what a leader answers that stops being one, or loses its disk, while a batch of its log waits for the replicas. */
const DOUBTFUL: ReadonlySet<number> = new Set<number>([
  KAFKA.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
  KAFKA.REQUEST_TIMED_OUT,
  KAFKA.NOT_LEADER_OR_FOLLOWER,
  KAFKA.UNKNOWN_TOPIC_OR_PARTITION,
  KAFKA.KAFKA_STORAGE_ERROR,
]);
/** Somebody has made max.message.bytes smaller since we looked. */
const TOO_LARGE: ReadonlySet<number> = new Set<number>([
  KAFKA.MESSAGE_TOO_LARGE,
  KAFKA.RECORD_LIST_TOO_LARGE,
]);
const UNKNOWN_PRODUCER: ReadonlySet<number> = new Set<number>([
  KAFKA.OUT_OF_ORDER_SEQUENCE_NUMBER,
  KAFKA.UNKNOWN_PRODUCER_ID,
  KAFKA.INVALID_PRODUCER_EPOCH,
  KAFKA.INVALID_PRODUCER_ID_MAPPING,
]);

/**
 * Brings what waits in lanes to the leaders of their partitions: one request at a time to each, with all that is ready
 * for it. What comes meanwhile makes the next request.
 */
export class Sender {
  private readonly busy = new Set<number>();
  private timer: NodeJS.Timeout | undefined;
  /** Since when no broker at all has answered. */
  private alone: number | undefined;
  private looking = false;
  private turn = 0;

  constructor(
    private readonly topic: Topic,
    private readonly lanes: readonly PartitionLane[],
    private readonly limits: SenderLimits,
    private readonly onStored: (stored: Stored) => void,
  ) {}

  /** After this turn of the event loop, so that those just answered can join. */
  readonly wake = onceATurn(() => this.pump());

  private pump(): void {
    const now = performance.now();
    const ready = new Map<number, PartitionLane[]>();
    let soonest = Number.POSITIVE_INFINITY;
    const { leaders } = this.topic.state;
    // Another one first each time: where more are ready than a request takes, all get their turn.
    const first = this.turn++ % Math.max(1, this.lanes.length);
    for (const lane of [...this.lanes.slice(first), ...this.lanes.slice(0, first)]) {
      if (lane.isEmpty || lane.inFlight) continue;
      if (lane.notBefore > now) {
        soonest = Math.min(soonest, lane.notBefore);
        continue;
      }
      const leader = leaders[lane.partition] ?? -1;
      const group = ready.get(leader) ?? [];
      if (group.length < MAX_BATCHES) group.push(lane);
      ready.set(leader, group);
    }
    for (const [leader, lanes] of ready) {
      if (this.busy.has(leader)) continue;
      this.busy.add(leader);
      for (const lane of lanes) lane.inFlight = true;
      void this.send(leader, lanes).finally(() => {
        for (const lane of lanes) lane.inFlight = false;
        this.busy.delete(leader);
        this.wake();
      });
    }
    clearTimeout(this.timer);
    if (Number.isFinite(soonest)) this.timer = setTimeout(() => this.wake(), Math.max(1, soonest - now));
  }

  private async send(leader: number, lanes: readonly PartitionLane[]): Promise<void> {
    let batches: { partition: number; bytes: Buffer }[];
    try {
      const nameless = lanes.filter(({ mustIdentify }) => mustIdentify);
      if (nameless.length > 0) {
        const identity = await newIdentity(this.topic.brokers);
        for (const lane of nameless) lane.identify(identity);
      }
      batches = await Promise.all(
        lanes.map(async (lane) => ({ partition: lane.partition, bytes: await lane.next() })),
      );
    } catch (cause) {
      await this.failed(lanes, cause);
      return;
    }
    if (leader < 0) {
      await this.failed(lanes, new Refused("produce", KAFKA.LEADER_NOT_AVAILABLE));
      return;
    }
    const order = { topic: this.topic.name, timeoutMs: REPLICAS_MS, batches };
    let response: produceV9.ProduceResponse;
    try {
      response = await this.topic.brokers.call(leader, "produce", produceApi, [order], ANSWER_MS);
    } catch (cause) {
      if (cause instanceof Unanswered && cause.sent) for (const lane of lanes) lane.doubt();
      await this.failed(lanes, cause);
      return;
    }
    this.alone = undefined;
    const answers = new Map(
      response.responses[0]?.partitionResponses.map((answer) => [answer.index, answer]),
    );
    const again: PartitionLane[] = [];
    let code: number = KAFKA.NONE;
    for (const lane of lanes) {
      const answer = answers.get(lane.partition);
      if (answer?.errorCode === KAFKA.NONE) this.onStored(lane.stored(Number(answer.baseOffset)));
      else if (!this.settled(lane, answer?.errorCode ?? KAFKA.REQUEST_TIMED_OUT)) {
        again.push(lane);
        code = answer?.errorCode ?? KAFKA.REQUEST_TIMED_OUT;
      }
    }
    if (again.length > 0) await this.failed(again, new Refused("produce", code));
    // The brokers ask us to slow down.
    if (response.throttleTimeMs > 0)
      await new Promise((resolve) => setTimeout(resolve, response.throttleTimeMs));
  }

  /** What an error says of a batch; false when it is to be tried again. */
  private settled(lane: PartitionLane, code: number): boolean {
    if (NOT_STORED.has(code)) return false;
    if (DOUBTFUL.has(code)) {
      lane.doubt();
      return false;
    }
    if (UNKNOWN_PRODUCER.has(code) && lane.forget()) return false;
    if (TOO_LARGE.has(code)) {
      lane.oversized(new Refused("produce", code));
      this.topic.relearnLimit().catch(() => undefined);
      return true;
    }
    if (code === KAFKA.DUPLICATE_SEQUENCE_NUMBER) lane.doubt();
    lane.reject(new Refused("produce", code));
    return true;
  }

  /** Looks for the leaders and tries again, as long as there is patience. */
  private async failed(lanes: readonly PartitionLane[], cause: unknown): Promise<void> {
    await this.look();
    const alone = this.alone !== undefined && performance.now() - this.alone > this.limits.triesMs;
    for (const lane of lanes) {
      if (
        alone ||
        cause instanceof TributaryError ||
        !lane.again(this.limits.patienceMs, this.limits.triesMs)
      ) {
        lane.giveUp(cause);
      }
    }
  }

  private async look(): Promise<void> {
    if (this.looking) return;
    this.looking = true;
    try {
      await this.topic.refresh();
      this.alone = undefined;
    } catch (error) {
      if (error instanceof Unanswered) this.alone ??= performance.now();
    } finally {
      this.looking = false;
    }
  }

  close(): void {
    clearTimeout(this.timer);
  }
}
