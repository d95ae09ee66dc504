/**
 * Which reads of the stream have landed. The low-water record may move to a read's end once it and every read before
 * it has landed in full, however its events were spread over batches.
 */
export class ProgressTracker {
  private readonly reads: { readonly end: ReadonlyMap<string, string>; open: number; sealed: boolean }[] = [];
  private first = 0;
  private readonly landed = new Map<string, string>();

  /** Begins a read that ends at `end`; returns its number. */
  begin(end: ReadonlyMap<string, string>): number {
    this.reads.push({ end, open: 0, sealed: false });
    return this.first + this.reads.length - 1;
  }

  /** One more part of the read is on its way. */
  hold(read: number): void {
    this.reads[read - this.first]!.open++;
  }

  /** All parts of the read are known. */
  seal(read: number): void {
    this.reads[read - this.first]!.sealed = true;
  }

  release(read: number): void {
    this.reads[read - this.first]!.open--;
  }

  /**
   * Where every read up to the first unfinished one has ended, over all partitions so far; undefined when that has
   * not moved.
   */
  advance(): ReadonlyMap<string, string> | undefined {
    let moved = false;
    while (this.reads.length > 0 && this.reads[0]!.sealed && this.reads[0]!.open === 0) {
      // A read tells of the partitions it met; of the others an earlier one has told.
      for (const [partition, position] of this.reads.shift()!.end) this.landed.set(partition, position);
      this.first++;
      moved = true;
    }
    return moved ? new Map(this.landed) : undefined;
  }
}
