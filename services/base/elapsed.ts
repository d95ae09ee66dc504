/**
 * Time since it was made. A machine that was suspended stops one clock or the other, and somebody may set the wall
 * clock: the one that has gone further counts.
 */
export class Elapsed {
  private readonly wall = Date.now();
  private readonly steady = performance.now();

  get ms(): number {
    return Math.max(Date.now() - this.wall, performance.now() - this.steady);
  }
}
