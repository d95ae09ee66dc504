import { setTimeout as sleep } from "node:timers/promises";
import { rangeOfSlot, slotsOfRange } from "../../services/base/slots.js";
import type {
  ChangeStreamReader,
  Checkpoint,
  PartitionHolder,
  StreamBatch,
  StreamConsumer,
  StreamFollower,
} from "../../services/stream/change-stream.js";
import type { Random } from "./lake.js";

interface Stored {
  readonly position: string;
  readonly bytes: Buffer;
  readonly receivedAt: number;
}

const positionOf = (index: number): string => String(index + 1).padStart(16, "0");

/** How long a partition's next holder waits for the last one. */
const PATIENCE_MS = 20_000;

/**
 * A stream in memory whose partitions several workers share, with all that the port allows: partitions move whenever
 * the test says so, with notice or without, whoever is given one gets some events again, and who was left behind goes on
 * reading for a while. What is done is forgotten.
 */
export class MemoryGroup {
  readonly partitions: readonly string[];
  private readonly events: Stored[][];
  private readonly done: number[];
  /** Whose each partition is. */
  private readonly owners: (Member | undefined)[];
  readonly members = new Set<Member>();
  /** Commits of somebody who had lost the partition. */
  refused = 0;
  private rebalancing: Promise<void> = Promise.resolve();

  constructor(
    readonly name: string,
    count: number,
    readonly random: Random,
  ) {
    this.partitions = Array.from({ length: count }, (_, i) => String(i));
    this.events = this.partitions.map(() => []);
    this.done = this.partitions.map(() => 0);
    this.owners = this.partitions.map(() => undefined);
  }

  /** Returns "stream/partition/position". */
  append(slot: number, bytes: Buffer): string {
    const p = rangeOfSlot(slot, this.partitions.length);
    const position = positionOf(this.events[p]!.length);
    this.events[p]!.push({ position, bytes, receivedAt: Date.now() });
    return `${this.name}/${this.partitions[p]}/${position}`;
  }

  /** Whether all events are behind the low-water record. */
  get caughtUp(): boolean {
    return this.events.every((events, p) => this.done[p] === events.length);
  }

  get lowWater(): Checkpoint {
    return new Map(
      this.partitions.flatMap((name, p) =>
        this.done[p]! > 0 ? [[name, positionOf(this.done[p]! - 1)]] : [],
      ),
    );
  }

  get head(): Checkpoint {
    return new Map(
      this.partitions.flatMap((name, p) =>
        this.events[p]!.length > 0 ? [[name, positionOf(this.events[p]!.length - 1)]] : [],
      ),
    );
  }

  /** One process's end of the stream. */
  reader(): ChangeStreamReader {
    return new GroupReader(this);
  }

  join(member: Member): Promise<void> {
    this.members.add(member);
    return this.rebalance(true);
  }

  /** Deals the partitions out anew among the members. Without notice those who lose some are told afterwards. */
  rebalance(notice: boolean): Promise<void> {
    const turn = this.rebalancing.then(() => this.deal(notice));
    this.rebalancing = turn.catch(() => undefined);
    return turn;
  }

  /** It is gone, or passes for gone: others get what it had. */
  async leave(member: Member, notice: boolean): Promise<void> {
    this.members.delete(member);
    await this.rebalance(notice);
  }

  private async deal(notice: boolean): Promise<void> {
    const members = this.random.shuffle([...this.members]);
    const order = this.random.shuffle(this.partitions.map((_, p) => p));
    const next = new Map(
      order.map((p, i) => [p, members.length === 0 ? undefined : members[i % members.length]]),
    );
    const losing = new Map<Member, number[]>();
    for (const [p, member] of next) {
      const before = this.owners[p];
      if (before === undefined || before === member) continue;
      losing.set(before, [...(losing.get(before) ?? []), p]);
    }
    if (notice) await Promise.all([...losing].map(([member, lost]) => this.announce(member, lost)));
    for (const [p, member] of next) {
      if (this.owners[p] === member) continue;
      this.owners[p] = member;
      // Some of what is done may come again.
      const again = this.random.chance(0.5) ? this.random.below(6) : 0;
      member?.take(p, Math.max(0, this.done[p]! - again));
    }
    if (!notice) for (const [member, lost] of losing) void member.lose(lost);
    for (const member of members) member.tell();
  }

  private async announce(member: Member, lost: readonly number[]): Promise<void> {
    await Promise.race([member.lose(lost), sleep(PATIENCE_MS, undefined, { ref: false })]);
  }

  at(p: number, index: number): Stored | undefined {
    return this.events[p]![index];
  }

  commit(member: Member, p: number, position: string): void {
    if (this.owners[p] !== member) {
      this.refused++;
      return;
    }
    this.done[p] = Math.max(this.done[p]!, Number(position));
  }
}

class GroupReader implements ChangeStreamReader {
  readonly name: string;

  constructor(private readonly group: MemoryGroup) {
    this.name = group.name;
  }

  async lowWater(): Promise<Checkpoint> {
    return this.group.lowWater;
  }

  async retentionMs(): Promise<undefined> {
    return undefined;
  }

  async head(): Promise<Checkpoint> {
    return this.group.head;
  }

  async consume(_consumer: string, holder?: PartitionHolder): Promise<StreamConsumer> {
    const member = new Member(this.group, holder);
    void this.group.join(member);
    return member;
  }

  follow(): Promise<StreamFollower> {
    throw new Error("nobody follows in these tests");
  }

  async *waiting(): AsyncGenerator<StreamBatch> {}

  async close(): Promise<void> {}
}

/** One process as the group sees it. */
export class Member implements StreamConsumer {
  /** Partition → index of the next event that it reads. */
  private readonly next = new Map<number, number>();
  private assigned: number[] = [];
  private closed = false;

  constructor(
    private readonly group: MemoryGroup,
    private readonly holder: PartitionHolder | undefined,
  ) {}

  isOf(holder: PartitionHolder): boolean {
    return this.holder === holder;
  }

  take(p: number, from: number): void {
    this.next.set(p, from);
    this.assigned.push(p);
  }

  /** Tells of what was taken. */
  tell(): void {
    const { partitions } = this.group;
    const taken = this.assigned.splice(0).filter((p) => this.next.has(p));
    if (taken.length === 0) return;
    this.holder?.assigned(
      taken.map((p) => ({ name: partitions[p]!, slots: slotsOfRange(p, partitions.length) })),
    );
  }

  async lose(lost: readonly number[]): Promise<void> {
    for (const p of lost) this.next.delete(p);
    await this.holder?.revoked(lost.map((p) => this.group.partitions[p]!));
  }

  async read(limit: Parameters<StreamConsumer["read"]>[0]): Promise<StreamBatch | undefined> {
    const until = performance.now() + limit.waitMs;
    for (;;) {
      const batch = this.batch(limit.maxEvents);
      if (batch !== undefined) return batch;
      if (performance.now() >= until || limit.signal?.aborted === true || this.closed) return undefined;
      await sleep(2);
    }
  }

  private batch(maxEvents: number): StreamBatch | undefined {
    const { random, partitions } = this.group;
    const events: { readonly p: number; readonly event: Stored }[] = [];
    const most = 1 + random.below(Math.min(maxEvents, 20));
    // What it has not been told of yet it does not read.
    for (const p of random.shuffle([...this.next.keys()])) {
      if (this.assigned.includes(p)) continue;
      let index = this.next.get(p)!;
      for (let event = this.group.at(p, index); event !== undefined && events.length < most; ) {
        events.push({ p, event });
        event = this.group.at(p, ++index);
      }
      this.next.set(p, index);
    }
    if (events.length === 0) return undefined;
    const bytes = Buffer.concat(events.map(({ event }) => event.bytes));
    const ends: number[] = [];
    for (const { event } of events) ends.push((ends.at(-1) ?? 0) + event.bytes.length);
    return {
      bytes,
      count: events.length,
      starts: Uint32Array.from([0, ...ends.slice(0, -1)]),
      ends: Uint32Array.from(ends),
      names: partitions,
      partitions: Uint16Array.from(events.map(({ p }) => p)),
      receivedAt: Float64Array.from(events.map(({ event }) => event.receivedAt)),
      positions: events.map(({ event }) => event.position),
    };
  }

  async commit(checkpoint: Checkpoint): Promise<void> {
    for (const [name, position] of checkpoint) this.group.commit(this, Number(name), position);
  }

  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    await this.group.leave(this, false);
  }
}
