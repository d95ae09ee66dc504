/**
 * The masked rows of one data file, one bit a row, most significant bit first: the layout of DuckDB's BIT, so that
 * a scan's predicate is built from the bytes as they are.
 */
export class Mask {
  private constructor(
    readonly rows: number,
    readonly bits: Uint8Array,
    private masked: number,
  ) {}

  static none(rows: number): Mask {
    return new Mask(rows, new Uint8Array((rows + 7) >> 3), 0);
  }

  static all(rows: number): Mask {
    const mask = Mask.none(rows);
    for (let row = 0; row < rows; row++) mask.set(row);
    return mask;
  }

  static of(rows: number, masked: Iterable<number>): Mask {
    const mask = Mask.none(rows);
    for (const row of masked) mask.set(row);
    return mask;
  }

  get count(): number {
    return this.masked;
  }

  has(row: number): boolean {
    return (this.bits[row >> 3]! & (0x80 >> (row & 7))) !== 0;
  }

  /** False when the row was masked already. */
  set(row: number): boolean {
    if (row < 0 || row >= this.rows) throw new RangeError(`row ${row} of a file of ${this.rows}`);
    if (this.has(row)) return false;
    this.bits[row >> 3]! |= 0x80 >> (row & 7);
    this.masked++;
    return true;
  }

  copy(): Mask {
    return new Mask(this.rows, this.bits.slice(), this.masked);
  }

  /** Masked rows, ascending. */
  toRows(): Uint32Array {
    const rows = new Uint32Array(this.masked);
    let count = 0;
    for (let at = 0; at < this.bits.length; at++) {
      const byte = this.bits[at]!;
      if (byte === 0) continue;
      for (let bit = 0; bit < 8; bit++) if ((byte & (0x80 >> bit)) !== 0) rows[count++] = at * 8 + bit;
    }
    return rows;
  }
}
