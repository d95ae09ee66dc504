import type { Code } from "../base/codes.js";
import { TributaryError } from "../base/errors.js";
import { FairQueue } from "../base/fair-queue.js";
import { FairPermits } from "../base/permits.js";
import { unpackAside, unpackAtOnce } from "../contracts/unpack.js";

/** How long requests may occupy the event loop in one of its turns before others get to run. */
const SLICE_MS = 5;
/** How much is done between two looks at the clock: bytes, with what an event costs beside its bytes. */
const LOOK_BYTES = 32 * 1024;
const EVENT_BYTES = 256;
/** Payloads inflated at once; libuv has four threads, and the log's syncs need some of them. */
const INFLATING = 2;

/**
 * Shares the event loop between requests: what all of them do in one turn of the loop takes a few milliseconds, and
 * whoever wants more waits for its turn, producer by producer. So no body, and no number of them, keeps others waiting.
 */
export class Workshop {
  private readonly waiting = new FairQueue<() => void>();
  private readonly inflating = new FairPermits(INFLATING);
  private spentMs = 0;

  /** True when there is time left in this turn, and nobody waits for it. */
  get free(): boolean {
    return this.waiting.size === 0 && this.spentMs < SLICE_MS;
  }

  /** Notes time that was spent in this turn. */
  spend(ms: number): void {
    if (this.spentMs === 0 && ms > 0) setImmediate(this.renew);
    this.spentMs += ms;
  }

  /** Resolves when it is this producer's turn. */
  turn(producer: string): Promise<void> {
    return new Promise((resolve) => {
      this.waiting.add(producer, resolve);
      setImmediate(this.grant);
    });
  }

  /** Runs `work`, which is done on another thread, with few others beside it. */
  aside<T>(producer: string, work: () => Promise<T>): Promise<T> {
    return this.inflating.run(producer, work);
  }

  private readonly renew = (): void => {
    this.spentMs = 0;
  };

  /** Runs once for each that waits. What one does when it is let in, it does before the next of these is called. */
  private readonly grant = (): void => {
    if (this.spentMs >= SLICE_MS) setImmediate(this.grant);
    else this.waiting.take()?.();
  };
}

/** The work on one request: done in slices, and no more of it than its budget of decoded bytes allows. */
export class Work {
  private since = 0;
  private done = 0;
  private decoded = 0;

  constructor(
    private readonly workshop: Workshop,
    private readonly producer: string,
    private readonly maxDecodedBytes: number,
  ) {}

  /** Begins at once where there is time; otherwise what is returned resolves when there is. */
  begin(): Promise<void> | undefined {
    if (!this.workshop.free) return this.nextTurn();
    this.since = performance.now();
    return undefined;
  }

  /** Notes an event of so many bytes. True when it is time to `rest`. */
  tired(bytes: number): boolean {
    this.done += bytes + EVENT_BYTES;
    if (this.done < LOOK_BYTES) return false;
    this.done = 0;
    return performance.now() - this.since > SLICE_MS;
  }

  /** Lets others run. */
  async rest(): Promise<void> {
    this.pause();
    await this.nextTurn();
  }

  /** Stops the clock, at the end or while something else is waited for. */
  pause(): void {
    this.workshop.spend(performance.now() - this.since);
  }

  /** Errors: TRB-REQ-TOO-LARGE once more was decoded than one request may ask for. */
  decode(bytes: number): void {
    this.decoded += bytes;
    if (this.decoded > this.maxDecodedBytes) {
      throw new TributaryError(
        "TRB-REQ-TOO-LARGE",
        `body: expected at most ${this.maxDecodedBytes} bytes with all payloads unpacked`,
      );
    }
  }

  /** The pieces of a body as one, which counts as decoded. Errors: TRB-REQ-TOO-LARGE. */
  async join(pieces: readonly Buffer[]): Promise<Buffer> {
    const length = pieces.reduce((sum, piece) => sum + piece.length, 0);
    this.decode(length);
    if (pieces.length === 1) return pieces[0]!;
    // A large one at once would take as long as ten slices: its memory comes page by page.
    const whole = Buffer.allocUnsafe(length);
    let at = 0;
    for (const piece of pieces) {
      at += piece.copy(whole, at);
      if (this.tired(piece.length)) await this.rest();
    }
    return whole;
  }

  /** A payload of at most `limit` bytes, or why there is none. Errors: TRB-REQ-TOO-LARGE. */
  async unpack(compression: number, packed: Uint8Array, limit: number): Promise<Uint8Array | Code> {
    let plain = unpackAtOnce(compression, packed, limit);
    if (plain === undefined) {
      this.pause();
      plain = await this.workshop.aside(this.producer, () => unpackAside(packed, limit));
      await this.begin();
    }
    // What turns out too large has been unpacked up to the limit all the same.
    if (typeof plain !== "string") this.decode(plain.length);
    else this.decode(plain === "TRB-EVENT-PAYLOAD-SIZE" ? limit : packed.length);
    return plain;
  }

  private async nextTurn(): Promise<void> {
    await this.workshop.turn(this.producer);
    this.since = performance.now();
  }
}
