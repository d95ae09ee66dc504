/**
 * Measures what moves against a least rate of bytes a second. Who starts may be behind by `graceMs`, and who was faster
 * gets no further ahead than that. A timer calls `each` with the bytes that are owed since the last time.
 */
export class LeastRate {
  /** Bytes by which one may be ahead. */
  readonly allowance: number;
  private readonly timer: NodeJS.Timeout;
  private last = performance.now();

  constructor(bytesPerSecond: number, graceMs: number, mostMs: number, each: (owed: number) => void) {
    this.allowance = (bytesPerSecond * graceMs) / 1000;
    const tickMs = Math.min(mostMs, graceMs / 4);
    this.timer = setInterval(() => {
      const now = performance.now();
      // A turn of the event loop that took long is nobody's fault.
      const owed = (bytesPerSecond * Math.min(now - this.last, 2 * tickMs)) / 1000;
      this.last = now;
      each(owed);
    }, tickMs);
    this.timer.unref();
  }

  /** How far ahead one is after `came` bytes where `owed` were due; below zero it is too slow. */
  after(ahead: number, came: number, owed: number): number {
    return Math.min(this.allowance, ahead + came - owed);
  }

  stop(): void {
    clearInterval(this.timer);
  }
}
