import type { Checkpoint } from "../stream/change-stream.js";

interface Read {
  /** Partition → last position, of those that are still ours. */
  readonly end: Map<string, string>;
  /** When its oldest event came, in ms since the epoch. */
  readonly oldest: number;
  open: number;
  sealed: boolean;
}

/**
 * Which reads of the stream have landed. A partition's low-water record may move to a read's end once it and every
 * read of the partition before it have landed in full, however their events were spread over batches.
 */
export class ProgressTracker {
  private readonly reads = new Map<number, Read>();
  private next = 0;
  /** Partition → the reads of it that have not been passed, oldest first. */
  private readonly waiting = new Map<string, number[]>();
  private readonly landed = new Map<string, string>();
  private moved = false;

  /** Begins a read that ends at `end`, and whose oldest event came at `oldest` (ms); returns its number. */
  begin(end: ReadonlyMap<string, string>, oldest = Date.now()): number {
    const number = this.next++;
    this.reads.set(number, { end: new Map(end), oldest, open: 0, sealed: false });
    for (const partition of end.keys()) {
      const reads = this.waiting.get(partition);
      if (reads === undefined) this.waiting.set(partition, [number]);
      else reads.push(number);
    }
    return number;
  }

  /** One more part of the read is on its way. */
  hold(read: number): void {
    this.reads.get(read)!.open++;
  }

  /** All parts of the read are known. */
  seal(read: number): void {
    this.reads.get(read)!.sealed = true;
    this.pass(read);
  }

  release(read: number): void {
    this.reads.get(read)!.open--;
    this.pass(read);
  }

  /** Moves the partitions of a read that has landed beyond it, where no earlier read stands in the way. */
  private pass(number: number): void {
    const { end, open, sealed } = this.reads.get(number)!;
    if (!sealed || open > 0) return;
    for (const partition of [...end.keys()]) this.passAlong(partition);
    this.drop(number);
  }

  private passAlong(partition: string): void {
    const reads = this.waiting.get(partition)!;
    while (reads.length > 0) {
      const oldest = this.reads.get(reads[0]!)!;
      if (!oldest.sealed || oldest.open > 0) return;
      this.landed.set(partition, oldest.end.get(partition)!);
      oldest.end.delete(partition);
      this.moved = true;
      this.drop(reads.shift()!);
    }
    this.waiting.delete(partition);
  }

  private drop(number: number): void {
    const read = this.reads.get(number);
    if (read?.sealed === true && read.open === 0 && read.end.size === 0) this.reads.delete(number);
  }

  /** True while something of one of these partitions has been read and has not landed. */
  awaits(partitions: Iterable<string>): boolean {
    for (const partition of partitions) if (this.waiting.has(partition)) return true;
    return false;
  }

  /** When the oldest event came of what has been read and has not landed, in ms since the epoch; undefined for none. */
  get oldest(): number | undefined {
    let oldest: number | undefined;
    for (const { end, oldest: came } of this.reads.values()) {
      if (end.size > 0) oldest = Math.min(oldest ?? came, came);
    }
    return oldest;
  }

  /** They are another's now: nothing that was read of them moves a record any more, also when they come back. */
  forget(partitions: Iterable<string>): void {
    for (const partition of partitions) {
      this.landed.delete(partition);
      const reads = this.waiting.get(partition) ?? [];
      this.waiting.delete(partition);
      for (const number of reads) {
        this.reads.get(number)!.end.delete(partition);
        this.drop(number);
      }
    }
  }

  /** Up to where each partition has landed, over all that are ours; undefined when that has not moved. */
  advance(): Checkpoint | undefined {
    if (!this.moved) return undefined;
    this.moved = false;
    return new Map(this.landed);
  }
}
