import { committedOffsets, groupsOf, listOffsets } from "./offsets.js";
import type { Stored } from "./partition-lane.js";
import type { Topic } from "./topic.js";

const REFRESH_MS = 1_000;
/** Consumers come and go seldom; to find them every broker is asked. */
const GROUPS_MS = 5_000;
/** Of a partition that we have not written to yet. */
const GUESSED_EVENT_BYTES = 1_024;

/**
 * How many bytes the slowest consumer is behind: counted in events by what the brokers say each second, turned into
 * bytes by the size that events have had here. What was written since then is added as it is.
 */
export class Backlog {
  private behind = 0;
  private readonly written = new Map<number, { events: number; bytes: number }>();
  /** Bytes that were stored, in all, and when `behind` was counted. */
  private storedBytes = 0;
  private countedBytes = 0;
  private groups: readonly string[] = [];
  private groupsAt = Number.NEGATIVE_INFINITY;
  private readonly timer: NodeJS.Timeout;
  private refreshing: Promise<void> | undefined;

  constructor(private readonly topic: Topic) {
    this.timer = setInterval(() => {
      // What cannot be counted stays as it was, and grows by what is written: producers are rather held back.
      this.refresh().catch(() => undefined);
    }, REFRESH_MS);
    this.timer.unref();
  }

  get bytes(): number {
    return this.behind + this.storedBytes - this.countedBytes;
  }

  stored({ partition, events, bytes }: Stored): void {
    this.storedBytes += bytes;
    const written = this.written.get(partition) ?? { events: 0, bytes: 0 };
    // Halved from time to time, so that it is the size that events have now.
    const weight = written.events > 1_000_000 ? 0.5 : 1;
    this.written.set(partition, {
      events: written.events * weight + events,
      bytes: written.bytes * weight + bytes,
    });
  }

  refresh(): Promise<void> {
    this.refreshing ??= this.topic
      .ask(() => this.count())
      .finally(() => {
        this.refreshing = undefined;
      });
    return this.refreshing;
  }

  private async count(): Promise<void> {
    if (performance.now() - this.groupsAt > GROUPS_MS) {
      this.groups = await groupsOf(this.topic);
      this.groupsAt = performance.now();
    }
    // Before the head is asked for: what is stored meanwhile counts twice for a second rather than not at all.
    const counted = this.storedBytes;
    const [earliest, latest, ...committed] = await Promise.all([
      listOffsets(this.topic, "earliest"),
      listOffsets(this.topic, "latest"),
      ...this.groups.map((group) => committedOffsets(this.topic, group)),
    ]);
    // Of a group with no record nothing is known: it has registered with another topic, or not yet.
    const registered = committed.filter(({ size }) => size > 0);
    const behind = (done: ReadonlyMap<number, number>) => {
      let bytes = 0;
      for (const [partition, head] of latest) {
        const from = Math.max(done.get(partition) ?? 0, earliest.get(partition) ?? 0);
        bytes += Math.max(0, head - from) * this.sizeIn(partition);
      }
      return bytes;
    };
    this.behind = Math.ceil(
      Math.max(...(registered.length === 0 ? [new Map<number, number>()] : registered).map(behind)),
    );
    this.countedBytes = counted;
  }

  private sizeIn(partition: number): number {
    const written = this.written.get(partition);
    if (written !== undefined && written.events > 0) return written.bytes / written.events;
    let events = 0;
    let bytes = 0;
    for (const other of this.written.values()) {
      events += other.events;
      bytes += other.bytes;
    }
    return events === 0 ? GUESSED_EVENT_BYTES : bytes / events;
  }

  async close(): Promise<void> {
    clearInterval(this.timer);
    await this.refreshing?.catch(() => undefined);
  }
}
