/** Requests under way at once for the keys of one folder, at most. */
const MOST = 64;

/**
 * How many requests run at once for the keys below one prefix: as many as go well, half as many once the server asks
 * to slow down, then one more for every round that goes well (as TCP does it).
 */
export class Pace {
  private limit = MOST;
  private running = 0;
  private readonly waiting: (() => void)[] = [];
  /** Counts the times it was slowed down: those that began before the last one say nothing new. */
  private era = 0;

  /** Whether nothing is to be remembered of it. */
  get idle(): boolean {
    return this.running === 0 && this.limit === MOST;
  }

  /** Requests that may run at once now. */
  get width(): number {
    return Math.floor(this.limit);
  }

  /** Runs `request` in its turn; `slowDown` reads from an error whether the server has asked for less. */
  async run<T>(request: () => Promise<T>, slowDown: (error: unknown) => boolean): Promise<T> {
    while (this.running >= this.width) await new Promise<void>((resolve) => this.waiting.push(resolve));
    this.running++;
    const { era } = this;
    try {
      const answer = await request();
      this.limit = Math.min(MOST, this.limit + 1 / this.limit);
      return answer;
    } catch (error) {
      if (era === this.era && slowDown(error)) {
        this.era++;
        this.limit = Math.max(1, this.limit / 2);
      }
      throw error;
    } finally {
      this.running--;
      // Each looks for itself whether there is room.
      for (const wake of this.waiting.splice(0, Math.max(1, this.width - this.running))) wake();
    }
  }
}

/** A pace for every prefix. */
export class Paces {
  private readonly paces = new Map<string, Pace>();

  async run<T>(prefix: string, request: () => Promise<T>, slowDown: (error: unknown) => boolean): Promise<T> {
    const pace = this.paces.get(prefix) ?? new Pace();
    this.paces.set(prefix, pace);
    try {
      return await pace.run(request, slowDown);
    } finally {
      if (pace.idle) this.paces.delete(prefix);
    }
  }

  /** Requests that may run at once for a prefix now. */
  width(prefix: string): number {
    return this.paces.get(prefix)?.width ?? MOST;
  }
}
