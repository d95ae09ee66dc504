import { TributaryError } from "../../services/base/errors.js";
import { rangeOfSlot } from "../../services/base/slots.js";
import type { Appended, ChangeStreamWriter, OutgoingEvents } from "../../services/stream/change-stream.js";

export interface StoredEvent {
  readonly partition: string;
  readonly position: string;
  readonly bytes: Buffer;
}

/**
 * A change stream in memory that keeps the port's promises and lets tests decide when they are kept: appends can be
 * held back, and can fail the way a real stream fails, with part of the events written all the same.
 */
export class MemoryStream implements ChangeStreamWriter {
  readonly name = "memory";
  readonly partitions: readonly string[];
  /** What survives: durable events, in the order in which they became so. */
  readonly stored: StoredEvent[] = [];
  backlog = 0;
  /** While true, every append rejects with TRB-BUS-STREAM-DOWN; some of its events may have been stored. */
  down = false;
  appends = 0;
  /** Which events of an append it has no capacity for. */
  refuses: (i: number) => boolean = () => false;
  /** Larger events it never takes. */
  mostBytes = Number.POSITIVE_INFINITY;
  closed = false;
  private readonly heads: number[];
  private gate: Promise<void> | undefined;

  constructor(partitions = 4) {
    this.partitions = Array.from({ length: partitions }, (_, i) => String(i));
    this.heads = new Array<number>(partitions).fill(0);
  }

  /** Holds appends back until the returned function is called. */
  hold(): () => void {
    let release = (): void => undefined;
    this.gate = new Promise((resolve) => {
      release = () => {
        this.gate = undefined;
        resolve();
      };
    });
    return () => release();
  }

  async append(events: OutgoingEvents): Promise<Appended> {
    this.appends++;
    await this.gate;
    if (this.closed || this.down) {
      this.store(events, Math.floor(events.count / 2));
      throw new TributaryError("TRB-BUS-STREAM-DOWN");
    }
    return this.store(events, events.count);
  }

  private store(events: OutgoingEvents, count: number): Appended {
    const positions: (string | undefined)[] = [];
    const tooLarge = new Set<number>();
    const partitions = new Uint16Array(count);
    for (let i = 0; i < count; i++) {
      const partition = rangeOfSlot(events.slots[i]!, this.partitions.length);
      partitions[i] = partition;
      const large = events.ends[i]! - events.starts[i]! > this.mostBytes;
      if (large) tooLarge.add(i);
      if (large || this.refuses(i)) {
        positions.push(undefined);
        continue;
      }
      const head = (this.heads[partition] ?? 0) + 1;
      this.heads[partition] = head;
      const position = String(head).padStart(16, "0");
      // A copy: the slices belong to the request.
      const bytes = Buffer.from(events.bytes.subarray(events.starts[i], events.ends[i]));
      this.stored.push({ partition: this.partitions[partition]!, position, bytes });
      positions.push(position);
    }
    const { partitions: names } = this;
    return { names, partitions, positions, ...(tooLarge.size > 0 ? { tooLarge } : {}) };
  }

  backlogBytes(): number {
    return this.backlog;
  }

  async close(): Promise<void> {
    this.closed = true;
  }
}
