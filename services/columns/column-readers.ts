import duckdb from "@duckdb/node-bindings";
import type { Vector } from "./column-writers.js";

/**
 * Columns that DuckDB hands over, read in place: no JavaScript value per cell, and no call per text. The reverse of
 * column-writers.ts, which says what is relied on.
 *
 * Readers look into the memory of the chunk whose vectors they took: whoever reads holds the chunk meanwhile.
 */
export abstract class ColumnReader {
  private validity: Uint8Array | null = null;

  /** Reads the vector's rows [0, rows) from now on. */
  take(vector: Vector, rows: number): void {
    // The bindings give null for a vector without a NULL, whatever their types say.
    this.validity = duckdb.vector_get_validity(vector, Math.ceil(rows / 64) * 8) as Uint8Array | null;
  }

  isNull(row: number): boolean {
    const { validity } = this;
    return validity !== null && (validity[row >> 3]! & (1 << (row & 7))) === 0;
  }
}

/** Types of a fixed width, in bytes: one or a multiple of four. */
export class FixedReader extends ColumnReader {
  /** Values of one byte. */
  bytes: Uint8Array = new Uint8Array(0);
  /** Others, in words of four bytes, the lowest first. */
  words: Int32Array = new Int32Array(0);

  constructor(private readonly width: number) {
    super();
  }

  override take(vector: Vector, rows: number): void {
    super.take(vector, rows);
    if (rows === 0) return;
    this.bytes = duckdb.vector_get_data(vector, rows * this.width);
    if (this.width >= 4) this.words = wordsOf(this.bytes);
  }
}

/** Longer texts lie elsewhere. */
export const INLINE_BYTES = 12;
const ENTRY_BYTES = 16;
/**
 * Texts that lie this close to each other are fetched together. What lies between two texts so near is in a memory
 * page of one of them, and so can be read.
 */
const GAP_BYTES = 64;
/** No more are fetched at once, but for a single text that is longer. */
const RUN_BYTES = 64 * 1024 * 1024;

/**
 * VARCHAR and BLOB. Following a pointer takes a call, and DuckDB puts the long texts of a chunk one after the other:
 * so the texts of a whole run of rows are fetched at once.
 */
export class TextReader extends ColumnReader {
  /** Four words a row: the length, and of a text of at most `INLINE_BYTES` the bytes themselves. */
  words: Int32Array = new Int32Array(0);

  private entries: Uint8Array = new Uint8Array(0);
  private runs: DataView[] = [];
  private runBytes: Uint8Array[] = [];
  /** Where each of them begins. */
  private bases: number[] = [];
  private runOf = new Uint32Array(0);
  /** Where the text of a row lies. */
  private addresses = new Float64Array(0);

  override take(vector: Vector, rows: number): void {
    super.take(vector, rows);
    this.runs = [];
    this.runBytes = [];
    this.bases = [];
    if (rows === 0) return;
    this.entries = duckdb.vector_get_data(vector, rows * ENTRY_BYTES);
    this.words = wordsOf(this.entries);
    if (this.runOf.length < rows) {
      this.runOf = new Uint32Array(rows);
      this.addresses = new Float64Array(rows);
    }
    const { words, runOf, addresses } = this;
    /** The row whose text the run begins with. */
    let first = -1;
    let from = 0;
    let to = 0;
    for (let row = 0; row < rows; row++) {
      const length = words[row * 4]!;
      if (length <= INLINE_BYTES || this.isNull(row)) continue;
      const at = words[row * 4 + 3]! * 0x1_0000_0000 + (words[row * 4 + 2]! >>> 0);
      const end = at + length;
      const span = Math.max(end, to) - Math.min(at, from);
      // Tables of the engine's keep texts the other way round: each before the one of the row above.
      const apart = at > to + GAP_BYTES || end < from - GAP_BYTES || span > RUN_BYTES;
      if (first < 0 || apart) {
        if (first >= 0) this.fetch(first, from, to);
        first = row;
        from = at;
        to = end;
      } else {
        if (at < from) {
          first = row;
          from = at;
        }
        if (end > to) to = end;
      }
      runOf[row] = this.runs.length;
      addresses[row] = at;
    }
    if (first >= 0) this.fetch(first, from, to);
  }

  /** Adds the bytes of rows [first, end). */
  addLengths(first: number, end: number, to: Uint32Array): void {
    const { words } = this;
    for (let row = first; row < end; row++) if (!this.isNull(row)) to[row]! += words[row * 4]!;
  }

  /** The run of bytes that begins with the text of row `first`. */
  private fetch(first: number, from: number, to: number): void {
    const { buffer, byteOffset } = this.entries;
    const at = byteOffset + first * ENTRY_BYTES + 8;
    const run = duckdb.get_data_from_pointer(buffer as ArrayBuffer, at, to - from);
    this.runs.push(new DataView(run.buffer, run.byteOffset, to - from));
    this.runBytes.push(run);
    this.bases.push(from);
  }

  /** What the text of a row lies in that is not NULL and longer than `INLINE_BYTES`; at `offset`. */
  run(row: number): DataView {
    return this.runs[this.runOf[row]!]!;
  }

  offset(row: number): number {
    return this.addresses[row]! - this.bases[this.runOf[row]!]!;
  }

  /** The bytes among which the text of a row lies that is not NULL: from `startOf` the row, as many as its words tell. */
  bytesOf(row: number): Uint8Array {
    return this.words[row * 4]! <= INLINE_BYTES ? this.entries : this.runBytes[this.runOf[row]!]!;
  }

  startOf(row: number): number {
    return this.words[row * 4]! <= INLINE_BYTES ? row * ENTRY_BYTES + 4 : this.offset(row);
  }

  /** The text of a row that is not NULL; a view of its own, so not for every row. */
  view(row: number): Uint8Array {
    const length = this.words[row * 4]!;
    if (length <= INLINE_BYTES) {
      return this.entries.subarray(row * ENTRY_BYTES + 4, row * ENTRY_BYTES + 4 + length);
    }
    const run = this.run(row);
    return new Uint8Array(run.buffer, run.byteOffset + this.offset(row), length);
  }
}

export class StructReader extends ColumnReader {
  constructor(private readonly children: readonly ColumnReader[]) {
    super();
  }

  override take(vector: Vector, rows: number): void {
    super.take(vector, rows);
    for (const [index, child] of this.children.entries()) {
      child.take(duckdb.struct_vector_get_child(vector, index), rows);
    }
  }
}

/** LIST and MAP, whose elements are structs of a key and a value. */
export class ListReader extends ColumnReader {
  private words: Int32Array = new Int32Array(0);

  constructor(readonly element: ColumnReader) {
    super();
  }

  override take(vector: Vector, rows: number): void {
    super.take(vector, rows);
    if (rows === 0) return;
    this.words = wordsOf(duckdb.vector_get_data(vector, rows * 16));
    this.element.take(duckdb.list_vector_get_child(vector), duckdb.list_vector_get_size(vector));
  }

  /** Row of the element's reader that the list begins with. */
  first(row: number): number {
    return this.words[row * 4]!;
  }

  length(row: number): number {
    return this.words[row * 4 + 2]!;
  }
}

/** Signed ones: unsigned numbers beyond 2^31 become objects wherever they are handed on. */
const wordsOf = (bytes: Uint8Array): Int32Array =>
  new Int32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength >> 2);
