/** Waiting items of several producers: each producer's in their order, and of the producers one after the other. */
export class FairQueue<T> {
  /** By producer, the one whose turn it is first. Never holds an empty list. */
  private readonly waiting = new Map<string, T[]>();
  private count = 0;

  get size(): number {
    return this.count;
  }

  add(producer: string, item: T): void {
    const items = this.waiting.get(producer);
    if (items === undefined) this.waiting.set(producer, [item]);
    else items.push(item);
    this.count++;
  }

  /** The next item, whose producer then waits for all others. */
  take(): T | undefined {
    for (const [producer, items] of this.waiting) {
      const item = items.shift();
      this.waiting.delete(producer);
      if (items.length > 0) this.waiting.set(producer, items);
      this.count--;
      return item;
    }
    return undefined;
  }
}
