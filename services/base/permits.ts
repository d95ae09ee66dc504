import { FairQueue } from "./fair-queue.js";

/** So many at once; the others wait, first come first served. */
export class Permits {
  private readonly waiting: (() => void)[] = [];

  constructor(private left: number) {}

  /** Resolves to what gives the permit back; calling that again does nothing. */
  async acquire(): Promise<() => void> {
    if (this.left > 0) this.left--;
    else await new Promise<void>((resolve) => this.waiting.push(resolve));
    let held = true;
    return () => {
      if (!held) return;
      held = false;
      const next = this.waiting.shift();
      if (next === undefined) this.left++;
      else next();
    };
  }
}

/** The same; of those that wait, another producer's comes next. */
export class FairPermits {
  private readonly waiting = new FairQueue<() => void>();

  constructor(private left: number) {}

  /** Runs `work` in its producer's turn. */
  async run<T>(producer: string, work: () => Promise<T>): Promise<T> {
    if (this.left > 0) this.left--;
    else await new Promise<void>((resolve) => this.waiting.add(producer, resolve));
    try {
      return await work();
    } finally {
      const next = this.waiting.take();
      if (next === undefined) this.left++;
      else next();
    }
  }
}
