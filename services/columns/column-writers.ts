import {
  BIGINT,
  type BLOB,
  BOOLEAN,
  DECIMAL,
  DOUBLE,
  type DuckDBType,
  FLOAT,
  INTEGER,
  TIMESTAMPTZ,
  TINYINT,
  VARCHAR,
} from "@duckdb/node-api";
import duckdb from "@duckdb/node-bindings";

/**
 * Columns that are filled from bytes and handed to DuckDB a vector at a time: one copy per column and chunk, no
 * JavaScript value per cell (setting values one by one costs four times as much).
 *
 * Text relies on DuckDB's in-memory string layout: 16 bytes, length first, up to 12 bytes inline, else a 4-byte
 * prefix and a pointer. The bindings' version is pinned for that, `assertTextLayout` looks at it once a process, and a
 * property test compares every writer with the bindings' own setters. Such text bypasses DuckDB's UTF-8 check: callers
 * check what they write.
 *
 * Rows are written in ascending order; within a chunk a row may be written again, the last value stands.
 */
export type Vector = ReturnType<typeof duckdb.data_chunk_get_vector>;

export const CHUNK_ROWS = 2048;
const INLINE_BYTES = 12;
const COPY_LOOP_BYTES = 40;

export abstract class ColumnWriter {
  abstract readonly type: DuckDBType;
  /** One bit a row, 1 = not NULL. */
  private validity = new Uint8Array(CHUNK_ROWS / 8);
  private nulls = false;

  /** Starts a chunk: `rows` rows of the type's zero (empty text, 0, empty list), or all NULL. */
  begin(rows: number, allNull = false): void {
    this.reserve(rows);
    this.validity.fill(allNull ? 0 : 0xff);
    this.nulls = allNull;
  }

  /** Makes room for `rows` rows; those beyond what there was are zero and not NULL. */
  reserve(rows: number): void {
    if (rows <= this.validity.length * 8) return;
    const grown = new Uint8Array(capacity(rows) / 8).fill(0xff);
    grown.set(this.validity);
    this.validity = grown;
  }

  setNull(row: number): void {
    this.validity[row >> 3]! &= ~(1 << (row & 7));
    this.nulls = true;
  }

  /** Whoever sets a value says so; the value itself is the subclass's. */
  setValid(row: number): void {
    this.validity[row >> 3]! |= 1 << (row & 7);
  }

  /** Makes the row its type's zero. */
  abstract setZero(row: number): void;

  isNull(row: number): boolean {
    return (this.validity[row >> 3]! & (1 << (row & 7))) === 0;
  }

  /** Hands rows [0, rows) to DuckDB. */
  flush(vector: Vector, rows: number): void {
    if (!this.nulls || rows === 0) return;
    duckdb.vector_ensure_validity_writable(vector);
    duckdb.copy_data_to_vector_validity(
      vector,
      0,
      this.validity.buffer as ArrayBuffer,
      0,
      Math.ceil(rows / 64) * 8,
    );
  }
}

/** Rows that buffers are made for: a chunk's, or the next power of two. */
export const capacity = (rows: number): number => {
  let size = CHUNK_ROWS;
  while (size < rows) size *= 2;
  return size;
};

/** VARCHAR and BLOB. `zero` is the text of a row that nothing was written to. */
export class TextColumn extends ColumnWriter {
  private entries = new Uint8Array(CHUNK_ROWS * 16);
  private words = new Uint32Array(this.entries.buffer);
  private offsets = new Uint32Array(CHUNK_ROWS);
  private arena = Buffer.allocUnsafeSlow(64 * 1024);
  private used = 0;
  private zeroOffset = 0;

  constructor(
    readonly type: typeof VARCHAR | typeof BLOB = VARCHAR,
    private readonly zero: Buffer = Buffer.alloc(0),
  ) {
    super();
  }

  override begin(rows: number, allNull = false): void {
    super.begin(rows, allNull);
    this.entries.fill(0);
    this.used = 0;
    const { zero } = this;
    if (zero.length === 0) return;
    // Its bytes lie in the arena once, whatever number of rows points at them.
    if (zero.length > INLINE_BYTES) this.zeroOffset = this.allocate(zero.length);
    zero.copy(this.arena, this.zeroOffset);
    if (!allNull) for (let row = 0; row < rows; row++) this.setZero(row);
  }

  setZero(row: number): void {
    const { zero } = this;
    if (zero.length <= INLINE_BYTES) {
      this.set(row, zero, 0, zero.length);
      return;
    }
    this.words[row * 4] = zero.length;
    this.words[row * 4 + 1] = zero.readUInt32LE(0);
    this.offsets[row] = this.zeroOffset;
    this.setValid(row);
  }

  override reserve(rows: number): void {
    super.reserve(rows);
    if (rows * 16 <= this.entries.length) return;
    const entries = new Uint8Array(capacity(rows) * 16);
    entries.set(this.entries);
    const offsets = new Uint32Array(capacity(rows));
    offsets.set(this.offsets);
    this.entries = entries;
    this.words = new Uint32Array(entries.buffer);
    this.offsets = offsets;
  }

  set(row: number, bytes: Buffer, start: number, end: number): void {
    const length = end - start;
    const { words } = this;
    const at = row * 4;
    words[at] = length;
    this.setValid(row);
    if (length <= INLINE_BYTES) {
      words[at + 1] = 0;
      words[at + 2] = 0;
      words[at + 3] = 0;
      const target = this.entries;
      for (let i = start, to = row * 16 + 4; i < end; i++, to++) target[to] = bytes[i]!;
      return;
    }
    words[at + 1] =
      bytes[start]! | (bytes[start + 1]! << 8) | (bytes[start + 2]! << 16) | (bytes[start + 3]! << 24);
    const to = this.allocate(length);
    this.offsets[row] = to;
    if (length < COPY_LOOP_BYTES) {
      const { arena } = this;
      for (let i = start, k = to; i < end; i++, k++) arena[k] = bytes[i]!;
    } else bytes.copy(this.arena, to, start, end);
  }

  setString(row: number, text: string): void {
    const bytes = Buffer.from(text, "utf8");
    this.set(row, bytes, 0, bytes.length);
  }

  private allocate(length: number): number {
    const to = this.used;
    if (to + length > this.arena.length) {
      const grown = Buffer.allocUnsafeSlow(Math.max(this.arena.length * 2, to + length));
      this.arena.copy(grown, 0, 0, to);
      this.arena = grown;
    }
    this.used = to + length;
    return to;
  }

  override flush(vector: Vector, rows: number): void {
    if (rows === 0) return;
    if (this.used > 0) {
      // DuckDB copies the arena into the vector's own heap; entry 0 then tells where it lies.
      duckdb.vector_assign_string_element_len(vector, 0, this.arena.subarray(0, this.used));
      const entry = duckdb.vector_get_data(vector, 16);
      const pointer = new DataView(entry.buffer, entry.byteOffset, 16);
      const low = pointer.getUint32(8, true);
      const high = pointer.getUint32(12, true);
      const { words, offsets } = this;
      for (let row = 0, at = 0; row < rows; row++, at += 4) {
        if (words[at]! <= INLINE_BYTES) continue;
        const address = low + offsets[row]!;
        words[at + 2] = address;
        words[at + 3] = address > 0xffffffff ? high + 1 : high;
      }
    }
    duckdb.copy_data_to_vector(vector, 0, this.entries.buffer as ArrayBuffer, 0, rows * 16);
    super.flush(vector, rows);
  }
}

const halves = new Uint32Array(2);

/** seconds · 10^6 + micros as a signed 64-bit number: its low and high half, exactly. */
export function microsHalves(seconds: number, micros: number, into: Uint32Array): void {
  const total = seconds * 1e6 + micros;
  if (Number.isSafeInteger(total)) {
    // A typed array takes a number modulo 2^32.
    into[0] = total;
    into[1] = Math.floor(total / 0x1_0000_0000);
    return;
  }
  const exact = BigInt.asUintN(64, BigInt(seconds) * 1_000_000n + BigInt(micros));
  into[0] = Number(exact & 0xffffffffn);
  into[1] = Number(exact >> 32n);
}

/** Types of a fixed width. One view suits each; all look at the same bytes. */
export class FixedColumn extends ColumnWriter {
  private buffer: ArrayBuffer;
  bytes!: Uint8Array;
  int32!: Int32Array;
  float32!: Float32Array;
  float64!: Float64Array;
  /** Two (or, for DECIMAL(20,0), four) words a row, low word first. */
  words!: Uint32Array;

  private constructor(
    readonly type: DuckDBType,
    private readonly width: number,
  ) {
    super();
    this.buffer = new ArrayBuffer(CHUNK_ROWS * width);
    this.view();
  }

  static readonly boolean = () => new FixedColumn(BOOLEAN, 1);
  static readonly tinyint = () => new FixedColumn(TINYINT, 1);
  static readonly integer = () => new FixedColumn(INTEGER, 4);
  static readonly bigint = () => new FixedColumn(BIGINT, 8);
  static readonly float = () => new FixedColumn(FLOAT, 4);
  static readonly double = () => new FixedColumn(DOUBLE, 8);
  static readonly timestamp = () => new FixedColumn(TIMESTAMPTZ, 8);
  /** Unsigned 64-bit numbers, which Delta lacks. */
  static readonly unsigned64 = () => new FixedColumn(DECIMAL(20, 0), 16);

  private view(): void {
    this.bytes = new Uint8Array(this.buffer);
    // A one-byte type's buffer has a length that the wider views can take too.
    this.int32 = new Int32Array(this.buffer);
    this.float32 = new Float32Array(this.buffer);
    this.float64 = new Float64Array(this.buffer);
    this.words = new Uint32Array(this.buffer);
  }

  override begin(rows: number, allNull = false): void {
    super.begin(rows, allNull);
    this.bytes.fill(0);
  }

  override reserve(rows: number): void {
    super.reserve(rows);
    if (rows * this.width <= this.buffer.byteLength) return;
    const grown = new ArrayBuffer(capacity(rows) * this.width);
    new Uint8Array(grown).set(this.bytes);
    this.buffer = grown;
    this.view();
  }

  setZero(row: number): void {
    this.bytes.fill(0, row * this.width, (row + 1) * this.width);
    this.setValid(row);
  }

  /** Two's complement halves of a 64-bit value; of an unsigned one for DECIMAL(20,0). */
  set64(row: number, low: number, high: number): void {
    const at = (row * this.width) >> 2;
    this.words[at] = low;
    this.words[at + 1] = high;
    this.setValid(row);
  }

  /** seconds · 10^6 + micros, exactly. */
  setMicros(row: number, seconds: number, micros: number): void {
    microsHalves(seconds, micros, halves);
    this.set64(row, halves[0]!, halves[1]!);
  }

  override flush(vector: Vector, rows: number): void {
    if (rows === 0) return;
    duckdb.copy_data_to_vector(vector, 0, this.buffer, 0, rows * this.width);
    super.flush(vector, rows);
  }
}
