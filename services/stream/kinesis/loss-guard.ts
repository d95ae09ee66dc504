import { TributaryError } from "../../base/errors.js";
import type { Fetched } from "./shard-source.js";

/**
 * Watches that nothing is trimmed from a shard before it is read. Kinesis does not tell: an iterator whose place has been
 * trimmed goes on at the oldest record that is left. What proves that nothing is missing is either the last record read,
 * which is still there, or a time since which nothing can have been trimmed.
 */
export class LossGuard {
  private pending = false;
  private expected: string | undefined;

  constructor(
    private readonly retentionMs: number,
    /** Everything that arrived before then has been read (ms since the epoch); undefined: what is gone is gone. */
    private covered: number | undefined,
  ) {}

  /** Reading begins at `sequence`, the last record read; without one, at the oldest. */
  placed(sequence: string | undefined): void {
    this.expected = sequence;
    this.pending = this.covered !== undefined;
  }

  /** Whether so much time has passed that what comes next may not be what followed. */
  get doubts(): boolean {
    return !this.pending && this.covered !== undefined && this.covered < Date.now() - this.retentionMs;
  }

  get coveredUntil(): number | undefined {
    return this.covered;
  }

  /** Errors: TRB-STREAM-FORGOTTEN. */
  check({ records, behindMs, ended }: Fetched, shard: string): void {
    const [first] = records;
    if (first === undefined && behindMs > 0 && !ended) return;
    const found = first !== undefined && first.sequence === this.expected;
    if (this.pending && !found && (this.covered ?? 0) < Date.now() - this.retentionMs) {
      throw forgotten(shard);
    }
    this.pending = false;
    this.covered = Date.now() - behindMs;
  }
}

export const forgotten = (shard: string): TributaryError =>
  new TributaryError(
    "TRB-STREAM-FORGOTTEN",
    `${shard}: records after the last one read are older than the stream's retention and may be gone`,
  );
