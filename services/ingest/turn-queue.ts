import { pauseAfter } from "../base/retry.js";

/** `more`: it went well and wants another turn. `failed`: it gets none for a while. */
export type Outcome = "done" | "more" | "failed";

/**
 * Jobs of many owners, one at a time: each owner stands in the queue once, and who wants another turn goes to its end.
 * So nobody waits longer than one job of each of the others, however much these have to do.
 */
export class TurnQueue {
  private readonly waiting = new Map<string, () => Promise<Outcome>>();
  private readonly failures = new Map<string, { count: number; notBefore: number }>();
  private running: Promise<void> | undefined;
  private closed = false;

  constructor(private readonly now: () => number = () => performance.now()) {}

  /** Asks for a turn. One that waits already keeps its place; one that has failed waits for its pause to end. */
  offer(owner: string, job: () => Promise<Outcome>): void {
    const failed = this.failures.get(owner);
    if (this.closed || (failed !== undefined && failed.notBefore > this.now())) return;
    this.waiting.set(owner, job);
    this.running ??= this.work().finally(() => {
      this.running = undefined;
    });
  }

  /** Runs `work` in a turn of its own; rejects as it does, or when the queue is closed. */
  run<T>(work: () => Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      if (this.closed) reject(new Error("assertion failed: the queue is closed"));
      const job = async (): Promise<Outcome> => {
        await work().then(resolve, reject);
        return "done";
      };
      this.offer(`work ${++this.works}`, job);
    });
  }
  private works = 0;

  private async work(): Promise<void> {
    while (!this.closed) {
      const [next] = this.waiting;
      if (next === undefined) return;
      const [owner, job] = next;
      this.waiting.delete(owner);
      const outcome = await job().catch((): Outcome => "failed");
      if (outcome === "failed") {
        const count = (this.failures.get(owner)?.count ?? 0) + 1;
        this.failures.set(owner, { count, notBefore: this.now() + pauseAfter(count) });
      } else {
        this.failures.delete(owner);
        // Not over one that was offered meanwhile: that keeps its place.
        if (outcome === "more" && !this.waiting.has(owner)) this.waiting.set(owner, job);
      }
    }
  }

  /** Waits for the running job. */
  async close(): Promise<void> {
    this.closed = true;
    this.waiting.clear();
    await this.running;
  }
}
