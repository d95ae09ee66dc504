/**
 * Which reads of the stream have landed. The low-water record may move to a read's end once it and every read before
 * it has landed in full, however its events were spread over batches.
 */
export class ProgressTracker {
  private readonly reads: { readonly end: ReadonlyMap<string, string>; open: number; sealed: boolean }[] = [];
  private first = 0;

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

  /** End of the last read up to which everything has landed; undefined when nothing new has. */
  advance(): ReadonlyMap<string, string> | undefined {
    let end: ReadonlyMap<string, string> | undefined;
    while (this.reads.length > 0 && this.reads[0]!.sealed && this.reads[0]!.open === 0) {
      end = this.reads.shift()!.end;
      this.first++;
    }
    return end;
  }
}
