import { TributaryError } from "../../base/errors.js";
import type { Appended } from "../change-stream.js";
import { PositionFormatter } from "../positions.js";

/** One call of `append`, whose events go into several batches: it is settled when the last of them is. */
export class PendingAppend {
  private readonly positions: (string | undefined)[];
  private left: number;
  private stored = 0;
  private doubtful = false;
  private failure: unknown;
  private readonly tooLarge = new Set<number>();

  constructor(
    private readonly names: readonly string[],
    readonly partitions: Uint16Array,
    readonly bytes: number,
    private readonly resolve: (appended: Appended) => void,
    private readonly reject: (error: unknown) => void,
  ) {
    this.left = partitions.length;
    this.positions = new Array<string | undefined>(partitions.length).fill(undefined);
  }

  keep(event: number, position: string): void {
    this.positions[event] = position;
    this.stored++;
    this.done();
  }

  /** It is certainly not in the stream; without a cause, there was no room for it. */
  refuse(cause?: unknown): void {
    this.failure ??= cause;
    this.done();
  }

  /** It is certainly not in the stream, and never will be. */
  refuseLarge(event: number): void {
    this.tooLarge.add(event);
    this.done();
  }

  /** It may be in the stream. */
  doubt(cause: unknown): void {
    this.doubtful = true;
    this.failure = cause;
    this.done();
  }

  private done(): void {
    if (--this.left > 0) return;
    // What is in doubt may not be called refused: the producer would write it twice without having been told so. And
    // where nothing at all was stored, the stream is down rather than short of room.
    if (this.doubtful || (this.stored === 0 && this.failure !== undefined)) {
      const { failure } = this;
      this.reject(
        failure instanceof TributaryError
          ? failure
          : new TributaryError("TRB-BUS-STREAM-DOWN", "the Kafka brokers did not take the events in time", {
              cause: failure,
            }),
      );
    } else {
      const { names, partitions, positions, tooLarge } = this;
      this.resolve({ names, partitions, positions, ...(tooLarge.size > 0 ? { tooLarge } : {}) });
    }
  }
}

/** The events of a batch, by the appends they came with. */
export class BatchOwners {
  private readonly appends: PendingAppend[] = [];
  /** Events of the batch up to which each append's reach. */
  private readonly ends: number[] = [];
  private readonly events: number[] = [];

  add(append: PendingAppend, event: number): void {
    if (this.appends.at(-1) !== append) {
      this.appends.push(append);
      this.ends.push(0);
    }
    this.events.push(event);
    this.ends[this.ends.length - 1] = this.events.length;
  }

  keep(first: number): void {
    const formatter = new PositionFormatter();
    this.each((append, event, i) => append.keep(event, formatter.format(first + i)));
  }

  refuse(cause?: unknown): void {
    this.each((append) => append.refuse(cause));
  }

  refuseLarge(): void {
    this.each((append, event) => append.refuseLarge(event));
  }

  doubt(cause: unknown): void {
    this.each((append) => append.doubt(cause));
  }

  private each(tell: (append: PendingAppend, event: number, i: number) => void): void {
    let i = 0;
    for (const [a, append] of this.appends.entries()) {
      for (; i < this.ends[a]!; i++) tell(append, this.events[i]!, i);
    }
  }
}
