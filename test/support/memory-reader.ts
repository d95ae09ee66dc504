import { setTimeout as sleep } from "node:timers/promises";
import { slotsOfRange } from "../../services/base/slots.js";
import type {
  ChangeStreamReader,
  Checkpoint,
  PartitionHolder,
  StreamBatch,
  StreamConsumer,
  StreamFollower,
} from "../../services/stream/change-stream.js";

/** A stream in memory for the reading end; it survives a "crash" of whoever reads it, with its low-water record. */
export class MemoryReader implements ChangeStreamReader {
  readonly partitions = ["0", "1", "2"];
  readonly events: {
    readonly partition: string;
    readonly position: string;
    readonly bytes: Buffer;
    readonly receivedAt: number;
  }[] = [];
  done: Checkpoint = new Map();
  /** Called before a consumer of now writes a low-water record; what it waits for, the record waits for. */
  beforeCommit: () => Promise<void> = async () => undefined;
  /** As an operator has set it. */
  retention: number | undefined;
  private readonly heads = new Map<string, number>();

  constructor(readonly name: string) {}

  /** Returns "partition/position". */
  append(partition: number, bytes: Buffer, receivedAt = Date.now()): string {
    const name = this.partitions[partition]!;
    const next = (this.heads.get(name) ?? 0) + 1;
    this.heads.set(name, next);
    const position = String(next).padStart(16, "0");
    this.events.push({ partition: name, position, bytes, receivedAt });
    return `${name}/${position}`;
  }

  async lowWater(): Promise<Checkpoint> {
    return this.done;
  }

  async retentionMs(): Promise<number | undefined> {
    return this.retention;
  }

  async head(): Promise<Checkpoint> {
    return new Map([...this.heads].map(([partition, next]) => [partition, String(next).padStart(16, "0")]));
  }

  /** Whether all events are behind the low-water record. */
  get caughtUp(): boolean {
    return this.events.every(({ partition, position }) => position <= (this.done.get(partition) ?? ""));
  }

  consume(_consumer: string, holder?: PartitionHolder): Promise<StreamConsumer> {
    const { partitions } = this;
    holder?.assigned(partitions.map((name, i) => ({ name, slots: slotsOfRange(i, partitions.length) })));
    return this.readAfter(new Map(this.done));
  }

  async follow(from: Checkpoint | "oldest" | "next"): Promise<StreamFollower> {
    const next = from === "next" ? await this.head() : from;
    return this.readAfter(next === "oldest" ? new Map() : next);
  }

  private async readAfter(from: Checkpoint): Promise<StreamConsumer> {
    // Whoever replaces it means the next process, not one that is as good as dead.
    const { beforeCommit } = this;
    let next = 0;
    return {
      read: async ({ maxEvents, maxBytes, waitMs, signal }) => {
        const until = performance.now() + waitMs;
        for (;;) {
          const batch: (typeof this.events)[number][] = [];
          let bytes = 0;
          while (next < this.events.length && batch.length < maxEvents && bytes < maxBytes) {
            const event = this.events[next++]!;
            if (event.position <= (from.get(event.partition) ?? "")) continue;
            batch.push(event);
            bytes += event.bytes.length;
          }
          if (batch.length > 0) return this.batchOf(batch);
          if (performance.now() >= until || signal?.aborted === true) return undefined;
          await sleep(2);
        }
      },
      commit: async (checkpoint) => {
        await beforeCommit();
        this.done = new Map([...this.done, ...checkpoint]);
      },
      close: async () => undefined,
    };
  }

  async *waiting(): AsyncGenerator<StreamBatch> {
    const looking = await this.consume("looks");
    for (;;) {
      const batch = await looking.read({ maxEvents: 100, maxBytes: 1e6, waitMs: 0 });
      if (batch === undefined) return;
      yield batch;
    }
  }

  /** As a log that is restored from a copy of when it had so many events. */
  setBack(count: number): void {
    for (const { partition, position } of this.events.splice(count)) {
      if (Number(position) <= this.heads.get(partition)!) this.heads.set(partition, Number(position) - 1);
    }
    this.done = new Map(this.events.map(({ partition, position }) => [partition, position]));
  }

  private batchOf(events: readonly (typeof this.events)[number][]): StreamBatch {
    const starts: number[] = [];
    const ends: number[] = [];
    let at = 0;
    for (const { bytes } of events) {
      starts.push(at);
      at += bytes.length;
      ends.push(at);
    }
    return {
      bytes: Buffer.concat(events.map(({ bytes }) => bytes)),
      count: events.length,
      starts: Uint32Array.from(starts),
      ends: Uint32Array.from(ends),
      names: this.partitions,
      partitions: Uint16Array.from(events.map(({ partition }) => this.partitions.indexOf(partition))),
      receivedAt: Float64Array.from(events.map(({ receivedAt }) => receivedAt)),
      positions: events.map(({ position }) => position),
    };
  }

  async close(): Promise<void> {}
}
