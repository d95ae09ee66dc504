import { isUtf8 } from "node:buffer";
import type { Code } from "../base/codes.js";
import { REJECT_BYTES, type Reject } from "./formats.js";

/** Records of a file as they lie in `bytes`: columns are [start, end) each, start < 0 for NULL. */
export interface Records {
  readonly bytes: Buffer;
  readonly count: number;
  /** Numbers of the records in the file. */
  readonly ordinals: readonly number[];
  /** Where they begin in the file, unpacked. */
  readonly offsets: readonly number[];
  /** Start and end of each column of each record. */
  readonly fields: readonly number[];
  readonly columns: number;
}

/** Where a file is read from: the number of a record, and, in a file that is not packed, where it begins. */
export interface Mark {
  readonly row: number;
  readonly offset?: number | undefined;
}

export interface SplitterOptions {
  readonly maxRecordBytes: number;
  /** Records before this one are passed over. */
  readonly from: Mark;
  /** Where the bytes begin that `push` gets first; the record there has number `startRow`. */
  readonly start: number;
  readonly startRow: number;
}

/** What a record costs beside its bytes; all of a batch may be rejected. */
const RECORD_OVERHEAD = 256;

/**
 * Cuts a stream of bytes into records, as they come, and holds no more of them than a batch and one record. A record
 * that is too long is let go of piece by piece, and rejected where it ends.
 */
export abstract class Splitter {
  protected arena: Buffer = Buffer.allocUnsafeSlow(1024 * 1024);
  protected used = 0;
  /** Where the record begins that has not ended yet, and how far it has been looked through. */
  protected begin = 0;
  protected scanned = 0;
  private fields: number[] = [];
  private ordinals: number[] = [];
  private offsets: number[] = [];
  private rejected: Reject[] = [];
  private row: number;
  /** Of the arena's first byte, in the file. */
  private base: number;
  /** The beginning of a record that is too long, and its place; undefined when it is not. */
  private long: { readonly bytes: Buffer; readonly offset: number } | undefined;
  private cost = 0;
  /** What `take` gave last, and what it may give again. */
  private given: Buffer | undefined;
  private spare: Buffer | undefined;

  constructor(
    readonly columns: number,
    protected readonly options: SplitterOptions,
  ) {
    this.row = options.startRow;
    this.base = options.start;
  }

  /** Takes in bytes, and cuts what is whole. */
  push(piece: Buffer): void {
    this.append(piece);
    this.scan();
    this.shorten();
  }

  /** After the last byte. Returns what is wrong with the end, in words of ours. */
  end(): string | undefined {
    if (this.used === this.begin && this.long === undefined) return undefined;
    return this.finish();
  }

  /** Bytes that what has been cut holds. */
  get held(): number {
    return this.cost;
  }

  /** Number of the record that comes next, and where it begins. */
  get mark(): { readonly row: number; readonly offset: number } {
    return { row: this.row, offset: this.long?.offset ?? this.base + this.begin };
  }

  /** How far in the file nothing is held but what has been cut: beyond `mark` amid a record that is too long. */
  get passed(): number {
    return this.base + this.begin;
  }

  /** What has been cut since the last call. Its bytes are the caller's, until it gives them back. */
  take(): { readonly records: Records; readonly rejects: Reject[] } {
    const { arena, ordinals, offsets, fields, columns, rejected } = this;
    const rest = arena.subarray(this.begin, this.used);
    const { spare } = this;
    this.spare = undefined;
    // The next batch mostly takes as much: growing to that anew costs more than all the rest here.
    const alike = this.used > arena.length / 2 ? arena.length : 0;
    this.arena =
      spare !== undefined && spare.length >= 2 * rest.length
        ? spare
        : Buffer.allocUnsafeSlow(Math.max(1024 * 1024, 2 * rest.length, alike));
    rest.copy(this.arena);
    this.given = arena;
    this.base += this.begin;
    this.scanned -= this.begin;
    this.used = rest.length;
    this.begin = 0;
    this.ordinals = [];
    this.offsets = [];
    this.fields = [];
    this.rejected = [];
    this.cost = 0;
    return {
      records: { bytes: arena, count: ordinals.length, ordinals, offsets, fields, columns },
      rejects: rejected,
    };
  }

  /** Nobody looks any more at the bytes that `take` gave last: memory for what is to come. */
  giveBack(): void {
    this.spare = this.given;
    this.given = undefined;
  }

  /** Whether records must be UTF-8. */
  protected abstract readonly isText: boolean;
  /** Looks through [scanned, used) for ends of records; calls `emit`, `reject` or `pass` at each. */
  protected abstract scan(): void;
  /** The file ends within a record. As `end`. */
  protected abstract finish(): string | undefined;
  /**
   * The record ends at `end`, the next one begins at `next`; `fields` are its columns, as they are or as `unfold` makes
   * them of what is kept.
   */
  protected emit(end: number, next: number, fields: readonly number[], unfold?: () => void): void {
    if (this.long === undefined && end - this.begin > this.options.maxRecordBytes) this.giveUp(end);
    if (this.long !== undefined) {
      this.rejectLong(next);
      return;
    }
    if (this.row >= this.options.from.row) {
      if (this.isText && !isUtf8(this.arena.subarray(this.begin, end))) {
        this.reject(end, next, "TRB-ROW-UTF8", "record: expected UTF-8");
        return;
      }
      this.ordinals.push(this.row);
      this.offsets.push(this.base + this.begin);
      unfold?.();
      for (const at of fields) this.fields.push(at);
      this.cost += next - this.begin + RECORD_OVERHEAD;
    }
    this.row++;
    this.begin = next;
  }

  protected reject(end: number, next: number, code: Code, message: string): void {
    if (this.long === undefined && end - this.begin > this.options.maxRecordBytes) this.giveUp(end);
    if (this.long !== undefined) {
      this.rejectLong(next);
      return;
    }
    const bytes = Buffer.from(this.arena.subarray(this.begin, Math.min(end, this.begin + REJECT_BYTES)));
    this.pushReject({ row: this.row, offset: this.base + this.begin, code, message, bytes });
    this.begin = next;
  }

  /** There is no record between `begin` and `next`. */
  protected pass(next: number): void {
    if (this.long !== undefined) this.rejectLong(next);
    else this.begin = next;
  }

  /** The open record is too long: its bytes are let go of. */
  protected giveUp(end: number): void {
    const bytes = Buffer.from(this.arena.subarray(this.begin, Math.min(end, this.begin + REJECT_BYTES)));
    this.long = { bytes, offset: this.base + this.begin };
  }

  /** Where in the file a place of the arena is. */
  protected offsetOf(at: number): number {
    return this.base + at;
  }

  protected get isLong(): boolean {
    return this.long !== undefined;
  }

  private rejectLong(next: number): void {
    const { bytes, offset } = this.long!;
    const message = `record: expected at most ${this.options.maxRecordBytes} bytes`;
    this.pushReject({ row: this.row, offset, code: "TRB-ROW-LENGTH", message, bytes });
    this.long = undefined;
    this.begin = next;
  }

  private pushReject(reject: Reject): void {
    this.row++;
    if (reject.row < this.options.from.row) return;
    this.rejected.push(reject);
    this.cost += reject.bytes.length + RECORD_OVERHEAD;
  }

  /** Lets go of what is not needed any more: of records passed over, and of one that is too long. */
  private shorten(): void {
    if (this.long === undefined && this.used - this.begin > this.options.maxRecordBytes)
      this.giveUp(this.used);
    if (this.long !== undefined) {
      // All of it has been looked through.
      const gone = this.used - this.begin;
      this.base += gone;
      this.used = this.begin;
      this.scanned = this.begin;
    }
    if (this.ordinals.length === 0 && this.begin > 0) {
      this.arena.copyWithin(0, this.begin, this.used);
      this.base += this.begin;
      this.scanned -= this.begin;
      this.used -= this.begin;
      this.begin = 0;
    }
  }

  private append(piece: Buffer): void {
    const needed = this.used + piece.length;
    if (needed > this.arena.length) {
      const grown = Buffer.allocUnsafeSlow(Math.max(2 * this.arena.length, needed));
      this.arena.copy(grown, 0, 0, this.used);
      this.arena = grown;
    }
    piece.copy(this.arena, this.used);
    this.used = needed;
  }
}

/** The records but those at some places. */
export function without(records: Records, places: { has(at: number): boolean }): Records {
  const { columns } = records;
  const kept = Array.from({ length: records.count }, (_, at) => at).filter((at) => !places.has(at));
  return {
    ...records,
    count: kept.length,
    ordinals: kept.map((at) => records.ordinals[at]!),
    offsets: kept.map((at) => records.offsets[at]!),
    fields: kept.flatMap((at) => records.fields.slice(at * columns * 2, (at + 1) * columns * 2)),
  };
}
