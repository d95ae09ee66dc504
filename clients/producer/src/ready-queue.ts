import type { Entry } from "./entry.js";

/** Entries that may be sent, in the order they are to go. */
export class ReadyQueue {
  private entries = new Set<Entry>();
  bytes = 0;

  get count(): number {
    return this.entries.size;
  }

  /** performance.now() of when the first was sent; infinite when there is none. */
  get since(): number {
    const [first] = this.entries;
    return first?.since ?? Number.POSITIVE_INFINITY;
  }

  add(entry: Entry): void {
    entry.place = "ready";
    this.entries.add(entry);
    this.bytes += entry.bytes.length;
  }

  /** Before all others. */
  putBack(entries: readonly Entry[]): void {
    const others = this.entries;
    this.entries = new Set();
    for (const entry of entries) this.add(entry);
    for (const entry of others) this.entries.add(entry);
  }

  remove(entry: Entry): void {
    if (this.entries.delete(entry)) this.bytes -= entry.bytes.length;
  }

  /** Takes the first ones away, at least one. */
  take(maxEvents: number, maxBytes: number): Entry[] {
    const taken: Entry[] = [];
    let bytes = 0;
    for (const entry of this.entries) {
      bytes += entry.bytes.length;
      if (taken.length > 0 && bytes > maxBytes) break;
      this.remove(entry);
      taken.push(entry);
      if (taken.length >= maxEvents) break;
    }
    return taken;
  }
}
