import type { Refusal } from "./payload-values.js";
import type { WireWriter } from "./wire-writer.js";

/** Bytes of payloads that are written side by side, but for a single one that is larger. */
const SIDE_BY_SIDE = 8 * 1024 * 1024;
/** What is kept free behind what is written: whole words are. */
const SLACK = 16;

/**
 * Payloads of consecutive rows that are written field by field, each behind what its row has so far: a loop over one
 * column knows what it meets, which one over the fields of a row does not, and that is most of what encoding costs.
 * A row that needs more room than it was given moves behind the others.
 */
export class PayloadRows {
  bytes: Buffer = Buffer.allocUnsafe(64 * 1024);
  data: DataView = viewOf(this.bytes);
  /** Where a row's next byte goes, and where its room ends. */
  ends = new Uint32Array(0);
  limits = new Uint32Array(0);
  /** One for rows that are refused; nothing more is written of them. */
  skipped = new Uint8Array(0);
  first = 0;
  /** The row behind the last. */
  end = 0;
  private readonly refusals = new Map<number, Refusal>();
  private starts = new Uint32Array(0);
  private used = 0;

  /** `prefix` stands before each payload. */
  constructor(private readonly prefix: Uint8Array = new Uint8Array(0)) {}

  /** Begins rows from `first` on, of those below `rows`: as many as go together, of which each takes about so much. */
  begin(first: number, rows: number, expected: Uint32Array): void {
    if (this.ends.length < rows) {
      this.starts = new Uint32Array(rows);
      this.ends = new Uint32Array(rows);
      this.limits = new Uint32Array(rows);
      this.skipped = new Uint8Array(rows);
    }
    this.refusals.clear();
    this.skipped.fill(0);
    this.first = first;
    const { starts, ends, limits, prefix } = this;
    let used = 0;
    let end = first;
    for (; end < rows && (end === first || used + expected[end]! <= SIDE_BY_SIDE); end++) {
      starts[end] = used;
      ends[end] = used + prefix.length;
      used += prefix.length + expected[end]! + SLACK;
      limits[end] = used;
    }
    this.end = end;
    this.used = used;
    if (this.bytes.length < used) {
      this.bytes = Buffer.allocUnsafe(used);
      this.data = viewOf(this.bytes);
    }
    if (prefix.length > 0) for (let row = first; row < end; row++) this.bytes.set(prefix, starts[row]);
  }

  refuse(row: number, refusal: Refusal): void {
    this.skipped[row] = 1;
    this.refusals.set(row, refusal);
  }

  refusal(row: number): Refusal | undefined {
    return this.skipped[row] === 0 ? undefined : this.refusals.get(row);
  }

  /** Makes room for so many bytes of a row, and a few more. `bytes` and `data` may be others then. */
  room(row: number, bytes: number): void {
    const { starts, ends, limits } = this;
    if (ends[row]! + bytes + SLACK <= limits[row]!) return;
    const start = starts[row]!;
    const length = ends[row]! - start;
    const at = this.used;
    const size = 2 * (length + bytes) + SLACK;
    const before = this.bytes;
    if (at + size > before.length) {
      this.bytes = Buffer.allocUnsafe(Math.max(2 * before.length, at + size));
      this.data = viewOf(this.bytes);
      before.copy(this.bytes, 0, 0, at);
    }
    this.bytes.copyWithin(at, start, start + length);
    starts[row] = at;
    ends[row] = at + length;
    limits[row] = at + size;
    this.used = at + size;
  }

  /** Puts what a writer holds behind what the row has. */
  append(row: number, written: WireWriter): void {
    const { length } = written;
    if (length === 0) return;
    this.room(row, length);
    const { data } = this;
    const at = this.ends[row]!;
    if (length <= 64) for (let i = 0; i < length; i += 4) data.setInt32(at + i, written.word(i), true);
    else this.bytes.set(written.view(), at);
    this.ends[row] = at + length;
  }

  /** The row's payload. */
  from(row: number): number {
    return this.starts[row]! + this.prefix.length;
  }

  /** The prefix and the payload; holds until more is written. */
  whole(row: number): Buffer {
    return this.bytes.subarray(this.starts[row]!, this.ends[row]!);
  }
}

const viewOf = ({ buffer, byteOffset, length }: Buffer): DataView => new DataView(buffer, byteOffset, length);
