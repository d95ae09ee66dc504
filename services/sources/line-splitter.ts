import { Splitter } from "./splitter.js";

const NEWLINE = 0x0a;
const RETURN = 0x0d;
const SPACES: readonly (number | undefined)[] = [0x20, 0x09, RETURN];
const BRACE = 0x7b;

export const NO_OBJECT = { code: "TRB-ROW-JSON", message: "line: expected one JSON object" } as const;

/**
 * Lines as records of one column, without their breaks; empty ones are none. Of JSON's values all but objects are
 * rejected, by how they begin.
 */
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
    if (end === this.begin && !this.isLong) {
      this.pass(next);
      return;
    }
    let first = this.begin;
    while (first < end && SPACES.includes(this.arena[first])) first++;
    if (this.arena[first] === BRACE && first < end) this.emit(end, next, [this.begin, end]);
    else this.reject(end, next, NO_OBJECT.code, NO_OBJECT.message);
  }
}
