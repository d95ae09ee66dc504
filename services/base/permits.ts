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
