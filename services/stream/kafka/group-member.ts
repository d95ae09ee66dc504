import { setTimeout as sleep } from "node:timers/promises";
import { heartbeatV4, joinGroupV7, leaveGroupV5, syncGroupV5 } from "@platformatic/kafka";
import { TributaryError } from "../../base/errors.js";
import { within } from "../../base/within.js";
import {
  ASSIGNOR,
  assign,
  decodeAssignment,
  decodeSubscription,
  encodeAssignment,
  encodeSubscription,
} from "./assignment.js";
import { checkCode, codeOf, KAFKA, Unanswered } from "./failures.js";
import { coordinatorOf, type Membership } from "./offsets.js";
import type { Topic } from "./topic.js";

export interface GroupTimes {
  /** A member that has not been heard of for so long is out, and its partitions go to others. */
  readonly sessionMs: number;
  readonly heartbeatMs: number;
}

/** Told of what the member reads from now on; each call is waited for before the next. */
export interface PartitionOwner {
  gained(partitions: readonly number[], membership: Membership): Promise<void>;
  /** They go to others once it resolves, or after the session's time. */
  handOver(partitions: readonly number[]): Promise<void>;
  /** Others have them already. */
  lost(partitions: readonly number[]): void;
}

const PROTOCOL_TYPE = "consumer";
const PAUSE_MS = 250;
/** Partitions may be added meanwhile, and the topic may be made anew. */
const LOOK_MS = 5_000;

/** The coordinator has moved, or is not ready. */
const MOVED: ReadonlySet<number> = new Set<number>([
  KAFKA.NOT_COORDINATOR,
  KAFKA.COORDINATOR_NOT_AVAILABLE,
  KAFKA.COORDINATOR_LOAD_IN_PROGRESS,
]);
/** We are no member any more. */
const OUT: ReadonlySet<number> = new Set<number>([KAFKA.UNKNOWN_MEMBER_ID, KAFKA.ILLEGAL_GENERATION]);

/**
 * One member of a consumer group. Heartbeats go on beside whatever the reader does, so that one who is slow stays a
 * member; one whose process stands still does not.
 */
export class GroupMember {
  private coordinator: number | undefined;
  private memberId = "";
  private generation = -1;
  private owned: number[] = [];
  /** Partitions that the topic had when we last joined. */
  private seen = 0;
  private readonly stopping = new AbortController();
  private running: Promise<void> | undefined;
  private beatAt = 0;

  constructor(
    private readonly topic: Topic,
    private readonly group: string,
    private readonly times: GroupTimes,
    private readonly owner: PartitionOwner,
    /** Told what ends membership for good: nothing that passes. */
    private readonly onFailure: (error: unknown) => void,
  ) {}

  /** Resolves when it is a member and knows what it reads. Errors: TRB-CONFIG, TRB-BUS-STREAM-DOWN. */
  async start(waitMs: number): Promise<void> {
    const until = performance.now() + waitMs;
    for (;;) {
      try {
        await this.join();
        break;
      } catch (error) {
        if (error instanceof TributaryError) throw error;
        if (performance.now() > until) {
          throw new TributaryError("TRB-BUS-STREAM-DOWN", "the consumer group cannot be joined", {
            cause: error,
          });
        }
        this.recover(error);
        await sleep(PAUSE_MS);
      }
    }
    this.running = this.run();
  }

  get membership(): Membership | undefined {
    if (this.coordinator === undefined || this.generation < 0) return undefined;
    const { group, coordinator, memberId, generation } = this;
    return { group, coordinator, memberId, generation };
  }

  private async run(): Promise<void> {
    const { signal } = this.stopping;
    let mustJoin = false;
    let lookedAt = performance.now();
    while (!signal.aborted) {
      try {
        if (mustJoin) {
          await this.join();
          mustJoin = false;
        }
        await sleep(this.times.heartbeatMs, undefined, { signal, ref: false });
        mustJoin = await this.beat();
        if (performance.now() - lookedAt < LOOK_MS) continue;
        lookedAt = performance.now();
        const { leaders } = await this.topic.refresh();
        mustJoin ||= leaders.length !== this.seen;
      } catch (error) {
        if (signal.aborted) return;
        if (error instanceof TributaryError) {
          this.onFailure(error);
          return;
        }
        mustJoin = this.recover(error) || mustJoin;
        await sleep(PAUSE_MS, undefined, { signal, ref: false }).catch(() => undefined);
      }
    }
  }

  /** What is left after a failure; true when we have to join again. */
  private recover(error: unknown): boolean {
    const code = codeOf(error);
    if (code !== undefined && OUT.has(code)) {
      this.loseAll();
      return true;
    }
    if (error instanceof Unanswered || (code !== undefined && MOVED.has(code))) {
      this.coordinator = undefined;
      // Nobody has heard of us for too long: whoever keeps the group has given our partitions away.
      if (performance.now() - this.beatAt > this.times.sessionMs && this.owned.length > 0) {
        this.loseAll();
        return true;
      }
      return false;
    }
    return code !== undefined;
  }

  private loseAll(): void {
    const lost = this.owned;
    this.owned = [];
    this.generation = -1;
    this.memberId = "";
    if (lost.length > 0) this.owner.lost(lost);
  }

  /** True when the group gathers anew. Errors: Refused, Unanswered. */
  private async beat(): Promise<boolean> {
    this.coordinator ??= await coordinatorOf(this.topic.brokers, this.group);
    const args: Parameters<typeof heartbeatV4.createRequest> = [
      this.group,
      this.generation,
      this.memberId,
      null,
    ];
    const { errorCode } = await this.topic.brokers.call(this.coordinator, "group", heartbeatV4.api, args);
    if (errorCode === KAFKA.REBALANCE_IN_PROGRESS) {
      this.beatAt = performance.now();
      return true;
    }
    checkCode("heartbeat", errorCode);
    this.beatAt = performance.now();
    return false;
  }

  /** Until nothing moves any more as far as we are concerned. Errors: Refused, Unanswered, TRB-CONFIG. */
  private async join(): Promise<void> {
    for (;;) {
      const given = await this.gather();
      const gone = this.owned.filter((p) => !given.includes(p));
      const gained = given.filter((p) => !this.owned.includes(p));
      this.owned = given.filter((p) => !gained.includes(p));
      if (gained.length > 0) await this.whileBeating(this.owner.gained(gained, this.membership!));
      this.owned = given;
      if (gone.length === 0) return;
      await this.drained(gone);
      // They are nobody's until we say that we have let go.
    }
  }

  /** Hands over while heartbeats go on: others wait, but not for ever. */
  private async drained(gone: readonly number[]): Promise<void> {
    const handedOver = this.owner.handOver(gone).catch(() => undefined);
    await this.whileBeating(within(this.times.sessionMs, handedOver));
    this.owner.lost(gone);
  }

  /** What takes long is no reason to be taken for dead. */
  private async whileBeating<T>(work: Promise<T>): Promise<T> {
    const over = new AbortController();
    const beating = (async () => {
      while (!over.signal.aborted) {
        await sleep(this.times.heartbeatMs, undefined, { signal: over.signal, ref: false });
        await this.beat();
      }
    })().catch(() => undefined);
    try {
      return await work;
    } finally {
      over.abort();
      await beating;
    }
  }

  /** One round of the group: says what we have, learns what we get. */
  private async gather(): Promise<number[]> {
    const { brokers } = this.topic;
    await this.topic.refresh();
    this.seen = this.topic.state.leaders.length;
    this.coordinator ??= await coordinatorOf(brokers, this.group);
    const { sessionMs } = this.times;
    const metadata = encodeSubscription({
      topics: [this.topic.name],
      owned: this.owned,
      partitions: this.seen,
    });
    const joined = await brokers.call(
      this.coordinator,
      "group",
      joinGroupV7.api,
      [
        this.group,
        sessionMs,
        // Long enough for those who hand something over.
        2 * sessionMs,
        this.memberId,
        null,
        PROTOCOL_TYPE,
        [{ name: ASSIGNOR, metadata }],
      ],
      3 * sessionMs,
    );
    if (joined.errorCode === KAFKA.MEMBER_ID_REQUIRED) {
      this.memberId = joined.memberId!;
      return this.gather();
    }
    if (joined.errorCode === INCONSISTENT_GROUP_PROTOCOL) {
      throw new TributaryError(
        "TRB-CONFIG",
        `consumer group ${this.group}: expected members of this program alone, found others with another assignor`,
      );
    }
    checkCode("join group", joined.errorCode);
    this.memberId = joined.memberId!;
    this.generation = joined.generationId;
    this.beatAt = performance.now();
    const members = joined.members.map(({ memberId, metadata: bytes }) => ({
      id: memberId,
      ...decodeSubscription(bytes ?? Buffer.alloc(0)),
    }));
    const partitions = Math.max(this.seen, ...members.map((member) => member.partitions));
    const assignments =
      joined.leader === this.memberId
        ? [...assign(members, partitions)].map(([memberId, given]) => ({
            memberId,
            assignment: encodeAssignment(this.topic.name, given),
          }))
        : [];
    const synced = await brokers.call(
      this.coordinator,
      "group",
      syncGroupV5.api,
      [this.group, this.generation, this.memberId, null, PROTOCOL_TYPE, ASSIGNOR, assignments],
      3 * sessionMs,
    );
    checkCode("sync group", synced.errorCode);
    this.beatAt = performance.now();
    return decodeAssignment(synced.assignment);
  }

  /** Leaves, so that others need not wait for our session to end. What still runs ends with the connections. */
  async leave(): Promise<void> {
    this.stopping.abort();
    if (this.coordinator === undefined || this.memberId === "") return;
    const args: Parameters<typeof leaveGroupV5.createRequest> = [this.group, [{ memberId: this.memberId }]];
    // Beside a join, which may wait for others.
    await this.topic.brokers
      .call(this.coordinator, "control", leaveGroupV5.api, args, 2_000)
      .catch(() => undefined);
    this.generation = -1;
  }

  async ended(): Promise<void> {
    await this.running;
  }
}

const INCONSISTENT_GROUP_PROTOCOL = 23;
