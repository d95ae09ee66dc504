import { isUtf8 } from "node:buffer";
import { ScalarType } from "@bufbuild/protobuf";
import { type ColumnReader, FixedReader, INLINE_BYTES, TextReader } from "../columns/column-readers.js";
import type { PayloadRows } from "./payload-rows.js";
import * as wire from "./wire.js";
import { WireWriter } from "./wire-writer.js";

/** How single values get out of columns into a payload: what comes behind their tag. */

/** Why a row is no payload. */
export interface Refusal {
  /** Names of fields, from the payload's own to the one at fault: "inner.text". */
  readonly field: string;
  /** "payload.inner.text: expected string" */
  readonly message: string;
}

export interface ValueWriter {
  readonly reader: ColumnReader;
  readonly wireType: number;
  /** Whether the value, which is not NULL, is what a field without presence leaves out. */
  isZero(row: number): boolean;
  /** Writes a value that is not NULL; room for a number is there. */
  write(row: number, out: WireWriter): Refusal | undefined;
  /** Writes a field of one value of all rows. */
  writeAll(field: OneValue, out: PayloadRows): void;
}

/** How a field of one value is written. */
export interface OneValue {
  readonly tag: number;
  /** A zero is written too. */
  readonly presence: boolean;
  /** Refuses NULL, where the field is required. */
  readonly missing: Refusal | undefined;
}

/** What one row's field becomes before it goes where its row is. */
const scratch = new WireWriter(4096);

/** All rows of what is written with its tag or not at all. */
export function putAll(field: Pick<FieldWriter, "put">, out: PayloadRows): void {
  const { skipped, end } = out;
  for (let row = out.first; row < end; row++) {
    if (skipped[row] !== 0) continue;
    const refusal = field.put(row, scratch.reset().ensure(NUMBER_BYTES));
    if (refusal === undefined) out.append(row, scratch);
    else out.refuse(row, refusal);
  }
}

/** A tag and a number, or two numbers and the length of both, take less. */
export const NUMBER_BYTES = 40;

const TIMESTAMP = 100;
const DURATION = 101;
/** What a fixed width holds: a scalar type or one of the two above. */
type Kind = ScalarType | typeof TIMESTAMP | typeof DURATION;

const WIDTHS: Readonly<Partial<Record<Kind, number>>> = {
  [ScalarType.BOOL]: 1,
  [ScalarType.FLOAT]: 4,
  [ScalarType.INT32]: 4,
  [ScalarType.SINT32]: 4,
  [ScalarType.UINT32]: 4,
  [ScalarType.FIXED32]: 4,
  [ScalarType.SFIXED32]: 4,
};
const WIRE_TYPES: Readonly<Partial<Record<Kind, number>>> = {
  [ScalarType.FLOAT]: wire.FIXED32,
  [ScalarType.FIXED32]: wire.FIXED32,
  [ScalarType.SFIXED32]: wire.FIXED32,
  [ScalarType.DOUBLE]: wire.FIXED64,
  [ScalarType.FIXED64]: wire.FIXED64,
  [ScalarType.SFIXED64]: wire.FIXED64,
  [TIMESTAMP]: wire.LENGTH_DELIMITED,
  [DURATION]: wire.LENGTH_DELIMITED,
};
/** 10,000 years either way (google/protobuf/duration.proto). */
const MOST_SECONDS = 315_576_000_000;

const MICROS = 1_000_000;

/** Microseconds that a double cannot hold, as two halves: whole seconds (rounded down, or towards 0), and the rest. */
function exactly(low: number, high: number, down: boolean): readonly [number, number] {
  const micros = (BigInt(high) << 32n) | BigInt(low >>> 0);
  const most = BigInt(MICROS);
  const seconds = micros / most - (down && micros % most < 0n ? 1n : 0n);
  return [Number(seconds), Number(micros - seconds * most)];
}

/** Numbers, enums (as INT32), truth values and times. One class, so that calls of it stay fast. */
export class NumberWriter implements ValueWriter {
  readonly reader: FixedReader;
  readonly wireType: number;

  private constructor(
    private readonly kind: Kind,
    private readonly refusal: Refusal,
  ) {
    this.reader = new FixedReader(WIDTHS[kind] ?? 8);
    this.wireType = WIRE_TYPES[kind] ?? wire.VARINT;
    this.single = WIDTHS[kind] !== undefined;
  }

  private readonly single: boolean;

  static readonly scalar = (type: ScalarType, refusal: Refusal) => new NumberWriter(type, refusal);
  static readonly timestamp = (refusal: Refusal) => new NumberWriter(TIMESTAMP, refusal);
  static readonly duration = (refusal: Refusal) => new NumberWriter(DURATION, refusal);

  isZero(row: number): boolean {
    const { bytes, words } = this.reader;
    if (this.kind === ScalarType.BOOL) return bytes[row] === 0;
    return this.single ? words[row] === 0 : (words[row * 2]! | words[row * 2 + 1]!) === 0;
  }

  write(row: number, out: WireWriter): Refusal | undefined {
    const { words } = this.reader;
    switch (this.kind) {
      case ScalarType.BOOL:
        out.varint(this.reader.bytes[row]!);
        break;
      case ScalarType.INT32: {
        const value = words[row]!;
        // Negative ones take ten bytes, whatever their width.
        if (value >= 0) out.varint(value);
        else out.varint64(value, -1);
        break;
      }
      case ScalarType.UINT32:
        out.varint64(words[row]!, 0);
        break;
      case ScalarType.SINT32:
        out.varint64((words[row]! << 1) ^ (words[row]! >> 31), 0);
        break;
      case ScalarType.INT64:
      case ScalarType.UINT64:
        out.varint64(words[row * 2]!, words[row * 2 + 1]!);
        break;
      case ScalarType.SINT64: {
        const low = words[row * 2]!;
        const high = words[row * 2 + 1]!;
        const flip = high >> 31;
        out.varint64((low << 1) ^ flip, ((high << 1) | (low >>> 31)) ^ flip);
        break;
      }
      case ScalarType.FLOAT:
      case ScalarType.FIXED32:
      case ScalarType.SFIXED32:
        out.fixed32(words[row]!);
        break;
      case TIMESTAMP:
      case DURATION:
        return this.time(words[row * 2]!, words[row * 2 + 1]!, out);
      default:
        out.fixed32(words[row * 2]!).fixed32(words[row * 2 + 1]!);
    }
    return undefined;
  }

  writeAll({ tag, presence, missing }: OneValue, out: PayloadRows): void {
    const { skipped, end } = out;
    const { reader } = this;
    for (let row = out.first; row < end; row++) {
      if (skipped[row] !== 0) continue;
      if (reader.isNull(row)) {
        if (missing !== undefined) out.refuse(row, missing);
        continue;
      }
      if (!presence && this.isZero(row)) continue;
      const refusal = this.write(row, scratch.reset().varint(tag));
      if (refusal === undefined) out.append(row, scratch);
      else out.refuse(row, refusal);
    }
  }

  /** The microseconds of a Timestamp count from the second before, those of a Duration have its sign. */
  private time(low: number, high: number, out: WireWriter): Refusal | undefined {
    const down = this.kind === TIMESTAMP;
    const micros = high * 0x1_0000_0000 + (low >>> 0);
    let seconds: number;
    let rest: number;
    if (Number.isSafeInteger(micros)) {
      seconds = down ? Math.floor(micros / MICROS) : Math.trunc(micros / MICROS);
      rest = micros - seconds * MICROS;
    } else [seconds, rest] = exactly(low, high, down);
    const fits = down ? wire.isInstant(seconds, rest) : Math.abs(seconds) <= MOST_SECONDS;
    if (!fits) return this.refusal;
    out.seconds(seconds, rest * 1000);
    return undefined;
  }
}

/** Longer texts are copied, and looked at, by calls that cost something themselves. */
const COPY_LOOP_BYTES = 512;
/** Of four bytes the bits that ASCII has not. */
const BEYOND_ASCII = 0x80808080;

/** Text and bytes. */
export class TextWriter implements ValueWriter {
  readonly reader = new TextReader();
  readonly wireType = wire.LENGTH_DELIMITED;

  /** With a refusal for what is not UTF-8. */
  constructor(private readonly notUtf8: Refusal | undefined) {}

  isZero(row: number): boolean {
    return this.reader.words[row * 4] === 0;
  }

  write(row: number, out: WireWriter): Refusal | undefined {
    const { reader, notUtf8 } = this;
    const { words } = reader;
    const at = row * 4;
    const length = words[at]!;
    out.ensure(length + NUMBER_BYTES).varint(length);
    let seen = BEYOND_ASCII;
    if (length <= INLINE_BYTES) {
      const first = words[at + 1]!;
      const second = words[at + 2]!;
      const third = words[at + 3]!;
      seen = first | second | third;
      out.inline(length, first, second, third);
    } else if (length <= COPY_LOOP_BYTES) seen = out.words(reader.run(row), reader.offset(row), length);
    else out.raw(reader.view(row));
    if (notUtf8 === undefined || (seen & BEYOND_ASCII) === 0 || isUtf8(reader.view(row))) return undefined;
    return notUtf8;
  }

  writeAll({ tag, presence, missing }: OneValue, out: PayloadRows): void {
    const { reader, notUtf8 } = this;
    const { words } = reader;
    const { skipped, ends, end } = out;
    for (let row = out.first; row < end; row++) {
      if (skipped[row] !== 0) continue;
      if (reader.isNull(row)) {
        if (missing !== undefined) out.refuse(row, missing);
        continue;
      }
      const length = words[row * 4]!;
      if (length === 0 && !presence) continue;
      out.room(row, length + HEAD_BYTES);
      const { bytes, data } = out;
      let at = ends[row]!;
      for (let rest = tag; ; rest >>>= 7) {
        bytes[at++] = rest > 127 ? (rest & 127) | 128 : rest;
        if (rest <= 127) break;
      }
      for (let rest = length; ; rest >>>= 7) {
        bytes[at++] = rest > 127 ? (rest & 127) | 128 : rest;
        if (rest <= 127) break;
      }
      let seen = BEYOND_ASCII;
      if (length <= INLINE_BYTES) {
        const first = words[row * 4 + 1]!;
        const second = words[row * 4 + 2]!;
        const third = words[row * 4 + 3]!;
        seen = first | second | third;
        data.setInt32(at, first, true);
        data.setInt32(at + 4, second, true);
        data.setInt32(at + 8, third, true);
      } else if (length <= COPY_LOOP_BYTES) {
        const run = reader.run(row);
        const from = reader.offset(row);
        const last = length - 4;
        seen = run.getInt32(from + last, true);
        data.setInt32(at + last, seen, true);
        for (let i = 0; i < last; i += 4) {
          const word = run.getInt32(from + i, true);
          seen |= word;
          data.setInt32(at + i, word, true);
        }
      } else bytes.set(reader.view(row), at);
      if (notUtf8 !== undefined && (seen & BEYOND_ASCII) !== 0 && !isUtf8(reader.view(row)))
        out.refuse(row, notUtf8);
      else ends[row] = at + length;
    }
  }
}

/** Bytes of the tag and the length of a text. */
const HEAD_BYTES = 10;

export interface FieldWriter {
  readonly reader: ColumnReader;
  /** Writes the field with its tag, or nothing where it is absent. */
  put(row: number, out: WireWriter): Refusal | undefined;
  /** As `put`, of all rows. */
  putAll(out: PayloadRows): void;
}
