/**
 * Makes a thing once, whoever asks first; those who ask meanwhile get the same one. After a failure the next to ask
 * tries again.
 */
export class Once<T> {
  private making: Promise<T> | undefined;

  constructor(private readonly make: () => Promise<T>) {}

  get(): Promise<T> {
    if (this.making === undefined) {
      const making = this.make();
      this.making = making;
      making.catch(() => this.forget(making));
    }
    return this.making;
  }

  /** The next to ask has it made anew; with `which` only where that is what is at hand. */
  forget(which = this.making): void {
    if (this.making === which) this.making = undefined;
  }
}
