import type { CsvOptions } from "./formats.js";
import { Splitter, type SplitterOptions } from "./splitter.js";

const NEWLINE = 0x0a;
const RETURN = 0x0d;
const QUOTE = 0x22;

/** Where in a field a byte stands. */
const AT_START = 0;
const PLAIN = 1;
const QUOTED = 2;
/** After a quote within a quoted field: its end, or the first of two. */
const AFTER_QUOTE = 3;
/** After that end: only a line break may follow. */
const AFTER_RETURN = 4;
/** Of a file whose columns are not known yet. */
const MAX_COLUMNS = 4096;

/** The names in the first record, and where the next one begins in the file. */
export interface CsvHeader {
  readonly names: readonly string[];
  readonly head: number;
}

/**
 * Records of CSV (RFC 4180) with a number of columns: quoted fields may hold line breaks, delimiters and doubled quotes.
 * An unquoted field that reads `nullText` is NULL. Lines without a byte are no records.
 */
export class CsvSplitter extends Splitter {
  protected readonly isText = true;
  /** Of a file whose columns are not known, once its first record has been seen. */
  header: CsvHeader | undefined;
  private readonly anyColumns: boolean;
  private readonly delimiter: number;
  private readonly nullText: Buffer;
  private state = AT_START;
  /**
   * Of the open record: how many columns it has so far, where those lie that are wanted, relative to where it begins,
   * and which of them have doubled quotes.
   */
  private count = 0;
  private places: number[] = [];
  private doubled: number[] = [];
  private fieldStart = 0;
  private fieldDoubled = false;
  private wrongQuote = false;

  /** Of columns undefined records have as many as they have: what a header is read with. */
  constructor(columns: number | undefined, csv: CsvOptions, options: SplitterOptions) {
    super(columns ?? MAX_COLUMNS, options);
    this.anyColumns = columns === undefined;
    this.delimiter = csv.delimiter.charCodeAt(0);
    this.nullText = Buffer.from(csv.nullText);
  }

  protected scan(): void {
    const { delimiter } = this;
    let { state, scanned: at } = this;
    const bytes = this.arena;
    const { used } = this;
    for (; at < used; at++) {
      const byte = bytes[at]!;
      if (state === QUOTED) {
        if (byte === QUOTE) state = AFTER_QUOTE;
        continue;
      }
      if (byte === delimiter) {
        if (state === AFTER_RETURN) this.wrongQuote = true;
        // Of what is rejected anyway only the end matters.
        if (this.count < this.columns && !this.isLong) this.field(at, state);
        else this.count++;
        this.fieldStart = at + 1 - this.begin;
        state = AT_START;
      } else if (byte === NEWLINE) {
        this.record(at, at + 1, state);
        state = AT_START;
      } else if (byte === QUOTE) {
        if (state === AT_START) state = QUOTED;
        else if (state === AFTER_QUOTE) {
          this.fieldDoubled = true;
          state = QUOTED;
        } else this.wrongQuote = true;
      } else if (state === AFTER_QUOTE) {
        if (byte !== RETURN) this.wrongQuote = true;
        state = byte === RETURN ? AFTER_RETURN : PLAIN;
      } else if (state === AFTER_RETURN) this.wrongQuote = true;
      else if (state === AT_START) state = PLAIN;
    }
    this.state = state;
    this.scanned = at;
  }

  private textsAt(places: readonly number[]): string[] {
    const texts: string[] = [];
    for (let i = 0; i < places.length; i += 2) {
      texts.push(places[i]! < 0 ? "" : this.arena.toString("utf8", places[i], places[i + 1]));
    }
    return texts;
  }

  protected finish(): undefined {
    const { used, state } = this;
    if (state === QUOTED) {
      this.reject(
        used,
        used,
        "TRB-ROW-QUOTE",
        "record: expected a quote at the end of a field, found the file's",
      );
    } else this.record(used, used, state);
  }

  /** Ends the open field at `at`. */
  private field(at: number, state: number): void {
    const { fieldStart: start, fieldDoubled } = this;
    this.fieldDoubled = false;
    this.count++;
    if (this.count > this.columns || this.isLong) return;
    const end = at - this.begin;
    if (state === AFTER_QUOTE || state === AFTER_RETURN) {
      if (fieldDoubled) this.doubled.push(this.places.length);
      this.places.push(start + 1, end - 1);
    } else if (this.nullText.compare(this.arena, this.begin + start, at) === 0) {
      this.places.push(-1, -1);
    } else this.places.push(start, end);
  }

  private record(at: number, next: number, state: number): void {
    const end = at > this.begin && this.arena[at - 1] === RETURN ? at - 1 : at;
    if (end === this.begin && this.count === 0 && !this.isLong) this.pass(next);
    else {
      this.field(end, state);
      this.whole(end, next);
    }
    this.count = 0;
    this.places = [];
    this.doubled = [];
    this.fieldStart = 0;
    this.wrongQuote = false;
  }

  private whole(end: number, next: number): void {
    const { begin, count, doubled } = this;
    if (this.wrongQuote) {
      this.reject(end, next, "TRB-ROW-QUOTE", "record: expected quotes around whole fields, doubled within");
    } else if (this.anyColumns ? count > MAX_COLUMNS : count !== this.columns) {
      const expected = this.anyColumns ? `at most ${MAX_COLUMNS}` : this.columns;
      this.reject(end, next, "TRB-ROW-COLUMNS", `record: expected ${expected} fields, found ${count}`);
    } else {
      const places = this.places.map((place) => (place < 0 ? place : place + begin));
      this.emit(end, next, places, () => {
        for (const i of doubled) places[i + 1] = undouble(this.arena, places[i]!, places[i + 1]!);
        if (this.anyColumns) this.header ??= { names: this.textsAt(places), head: this.offsetOf(next) };
      });
    }
  }
}

/** Makes one of two quotes, in place. Returns where the field ends then. */
function undouble(bytes: Buffer, start: number, end: number): number {
  let to = start;
  for (let at = start; at < end; at++, to++) {
    bytes[to] = bytes[at]!;
    if (bytes[at] === QUOTE) at++;
  }
  return to;
}
