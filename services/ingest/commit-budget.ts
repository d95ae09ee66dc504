/**
 * How many commits may be made, so that many entity types do not make thousands of tiny files: a rate, with a second's
 * worth in reserve. Who has waited longest comes first; and who has waited for long goes whatever the rate says, as
 * fast as a few lanes at a time can: with hundreds of active types it is their work that sets the pace, not the rate.
 */
export class CommitBudget {
  private tokens: number;
  private refilledAt: number;

  constructor(
    private readonly perSecond: number,
    private readonly now: () => number = () => performance.now(),
  ) {
    this.tokens = perSecond;
    this.refilledAt = now();
  }

  /** Whether a batch that has waited so long (ms) may flush while so many others do. */
  allows(waitedMs: number, flushing: number): boolean {
    return this.left() >= 1 || (waitedMs >= OVERDUE_MS && flushing < OVERDUE_LANES);
  }

  /** Milliseconds until `allows` may say yes to a batch that has waited so long. */
  until(waitedMs: number): number {
    const left = this.left();
    if (left >= 1) return 0;
    return Math.max(0, Math.min(((1 - left) * 1000) / this.perSecond, OVERDUE_MS - waitedMs));
  }

  /** What full and overdue batches overdraw must not keep later ones waiting for long. */
  spend(commits: number): void {
    this.tokens = Math.max(this.left() - commits, -this.perSecond);
  }

  private left(): number {
    const now = this.now();
    this.tokens = Math.min(this.perSecond, this.tokens + ((now - this.refilledAt) * this.perSecond) / 1000);
    this.refilledAt = now;
    return this.tokens;
  }
}

export const OVERDUE_MS = 1_000;
/** Landing is CPU for the most part; more at once would only make each slower. */
export const OVERDUE_LANES = 4;
