import { Splitter } from "./splitter.js";

const NEWLINE = 0x0a;
const RETURN = 0x0d;

/** Lines as records of one column, without their breaks; empty ones are none. */
export class LineSplitter extends Splitter {
  protected readonly isText = true;

  protected scan(): void {
    const seen = this.arena.subarray(0, this.used);
    for (;;) {
      const at = seen.indexOf(NEWLINE, this.scanned);
      if (at < 0) break;
      this.line(at, at + 1);
      this.scanned = at + 1;
    }
    this.scanned = this.used;
  }

  /** The last line may lack its break: whether it is whole is for its JSON to tell. */
  protected finish(): undefined {
    this.line(this.used, this.used);
  }

  private line(at: number, next: number): void {
    const end = at > this.begin && this.arena[at - 1] === RETURN ? at - 1 : at;
    if (end === this.begin && !this.isLong) this.pass(next);
    else this.emit(end, next, [this.begin, end]);
  }
}
