import { within } from "./within.js";

/**
 * What was found last, for however many ask: they share one look, which is none that is made again within `everyMs`, and
 * wait for it `patienceMs` at most. A look that fails leaves what was found before.
 */
export class Recent<T> {
  private found: T | undefined;
  private lookedAt = Number.NEGATIVE_INFINITY;
  private looking: Promise<void> | undefined;

  constructor(
    private readonly look: () => Promise<T>,
    private readonly everyMs: number,
    private readonly patienceMs: number,
  ) {}

  /** Undefined before anything was found. Never rejects. */
  async get(): Promise<T | undefined> {
    if (performance.now() - this.lookedAt > this.everyMs) this.looking ??= this.lookOnce();
    if (this.looking !== undefined) await within(this.patienceMs, this.looking);
    return this.found;
  }

  private async lookOnce(): Promise<void> {
    try {
      this.found = await this.look();
    } catch {
      // The next one who asks late enough looks again.
    } finally {
      this.lookedAt = performance.now();
      this.looking = undefined;
    }
  }
}
