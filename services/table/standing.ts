import { KeyIndex } from "./key-index.js";
import { compareOrder, ROW, WORDS } from "./order.js";
import type { TableSnapshot } from "./types.js";

/** The standing records of a batch, where there are any: of record i at the same place in `found`. */
export class Standing {
  readonly found: Uint32Array;
  private readonly has: Uint8Array;
  /** Records that the index does not cover; they are looked up by themselves. */
  readonly apart: number[] = [];
  private ordOf: KeyIndex | undefined;
  /** Whether a record takes the place of its equal. */
  again = false;

  constructor(
    readonly records: Uint32Array,
    /** As of which they stand so. */
    public snapshot: TableSnapshot,
  ) {
    this.found = new Uint32Array(records.length);
    this.has = new Uint8Array(records.length / WORDS);
  }

  get count(): number {
    return this.has.length;
  }

  knows(ord: number): boolean {
    return this.has[ord] === 1;
  }

  /** Whether a record of the batch is greater than what stands. */
  isBeatenBy(ord: number): boolean {
    if (this.has[ord] === 0) return true;
    const at = ord * WORDS;
    const order = compareOrder(this.records, at, this.found, at);
    return order > 0 || (this.again && order === 0);
  }

  set(ord: number, from: Uint32Array, start: number): void {
    const at = ord * WORDS;
    for (let word = 0; word < WORDS; word++) this.found[at + word] = from[start + word]!;
    this.has[ord] = 1;
  }

  clear(ord: number): void {
    this.has[ord] = 0;
  }

  /** Ordinal of the record among those apart that has this key; undefined when there is none. */
  apartOf(record: Uint32Array): number | undefined {
    if (this.ordOf === undefined) {
      this.ordOf = new KeyIndex(this.apart.length);
      const { records } = this;
      for (const ord of this.apart) this.ordOf.put(records, ord * WORDS);
    }
    const at = this.ordOf.find(record, 0);
    // A batch's records have their ordinals as their rows.
    return at < 0 ? undefined : this.ordOf.records[at + ROW]!;
  }
}
