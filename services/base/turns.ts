/** Runs pieces of asynchronous work one after the other, in the order of the calls; a failed one holds up nobody. */
export class Turns {
  private last: Promise<unknown> = Promise.resolve();

  run<T>(work: () => Promise<T>): Promise<T> {
    const result = this.last.then(work);
    this.last = result.catch(() => undefined);
    return result;
  }

  /** Resolves when all work asked for so far has ended. */
  async settled(): Promise<void> {
    await this.last;
  }
}
