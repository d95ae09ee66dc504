import type { Logger } from "pino";
import type { Checkpoint, StreamConsumer } from "../stream/change-stream.js";

/** A consumer's low-water record: writes of it that wait are made one, as each may cost a request and the time of one. */
export class LowWaterRecord {
  private writing: Promise<void> = Promise.resolve();
  /** What the next write will say, beside what stands there. */
  private next = new Map<string, string>();

  constructor(private readonly log: Pick<Logger, "warn">) {}

  /** Nothing without a consumer: it begins where the record stands. */
  move(consumer: StreamConsumer | undefined, end: Checkpoint): void {
    if (consumer === undefined) return;
    const waits = this.next.size > 0;
    for (const [partition, position] of end) this.next.set(partition, position);
    if (waits) return;
    this.writing = this.writing
      .then(() => {
        const { next } = this;
        this.next = new Map();
        return consumer.commit(next);
      })
      .catch((error: unknown) => this.log.warn({ err: error }, "the low-water record was not written"));
  }

  /** They are another's to move. */
  forget(partitions: Iterable<string>): void {
    for (const partition of partitions) this.next.delete(partition);
  }

  /** Resolves when nothing is being written. */
  settled(): Promise<void> {
    return this.writing;
  }
}
