/**
 * Makes a thing once, whoever asks first; those who ask meanwhile get the same one. After a failure the next to ask
 * tries again.
 */
export class Once<T> {
  private making: Promise<T> | undefined;
  private made: T | undefined;

  constructor(private readonly make: () => Promise<T>) {}

  get(): Promise<T> {
    if (this.making === undefined) {
      const making = this.make();
      this.making = making;
      making.then(
        (made) => {
          if (this.making === making) this.made = made;
        },
        () => this.forget(making),
      );
    }
    return this.making;
  }

  /** What is at hand; undefined before it is made, and once it is forgotten. */
  get value(): T | undefined {
    return this.made;
  }

  /** The next to ask has it made anew; with `which` only where that is what is at hand. */
  forget(which = this.making): void {
    if (this.making !== which) return;
    this.making = undefined;
    this.made = undefined;
  }
}
