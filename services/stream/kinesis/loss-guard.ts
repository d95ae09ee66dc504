import { TributaryError } from "../../base/errors.js";
import type { Fetched } from "./shard-source.js";

/** How long a stream keeps its records, as far as it is known. */
export interface Retention {
  /** The shortest that was seen: what is gone does not come back when a stream keeps more again. */
  readonly shortestMs: number;
  /** Asks the stream, unless it was asked just now. One that does not answer leaves it as it was. */
  lookAgain(): Promise<void>;
}

/** No stream keeps less. */
const ALWAYS_KEPT_MS = 24 * 3_600_000;

/**
 * Watches that nothing is trimmed from a shard before it is read. Kinesis does not tell: an iterator whose place has been
 * trimmed goes on at the oldest record that is left. What proves that nothing is missing is either the last record read,
 * which is still there, or a time since which nothing can have been trimmed.
 */
export class LossGuard {
  private pending = false;
  private expected: string | undefined;

  constructor(
    private readonly retention: Retention,
    /** Everything that arrived before then has been read (ms since the epoch); undefined: what is gone is gone. */
    private covered: number | undefined,
  ) {}

  /** Reading begins at `sequence`, the last record read; without one, at the oldest. */
  placed(sequence: string | undefined): void {
    this.expected = sequence;
    this.pending = this.covered !== undefined;
  }

  /** Whether so much time has passed that what comes next may not be what followed. */
  async doubts(): Promise<boolean> {
    return !this.pending && (await this.mayMiss());
  }

  private async mayMiss(): Promise<boolean> {
    const { covered, retention } = this;
    if (covered === undefined || covered >= Date.now() - Math.min(ALWAYS_KEPT_MS, retention.shortestMs)) {
      return false;
    }
    // Operators may have made it shorter; it matters here alone.
    await retention.lookAgain();
    return covered < Date.now() - retention.shortestMs;
  }

  get coveredUntil(): number | undefined {
    return this.covered;
  }

  /** Errors: TRB-STREAM-FORGOTTEN. */
  async check({ records, behindMs, ended }: Fetched, shard: string): Promise<void> {
    const [first] = records;
    if (first === undefined && behindMs > 0 && !ended) return;
    const found = first !== undefined && first.sequence === this.expected;
    if (this.pending && !found && (await this.mayMiss())) throw forgotten(shard);
    this.pending = false;
    // A shard that has ended is not behind, however long ago it did: its children may hold all that came since.
    if (ended) this.covered = Math.max(records.at(-1)?.arrivedAt ?? 0, this.covered ?? 0) || undefined;
    else this.covered = Date.now() - behindMs;
  }
}

export const forgotten = (shard: string): TributaryError =>
  new TributaryError(
    "TRB-STREAM-FORGOTTEN",
    `${shard}: records after the last one read are older than the stream's retention and may be gone`,
  );
