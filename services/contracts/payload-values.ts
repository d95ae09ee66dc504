import { isUtf8 } from "node:buffer";
import {
  type DescMessage,
  type FileRegistry,
  fromJson,
  type JsonValue,
  ScalarType,
  toBinary,
} from "@bufbuild/protobuf";
import {
  type ColumnReader,
  FixedReader,
  INLINE_BYTES,
  StructReader,
  TextReader,
} from "../columns/column-readers.js";
import { exactNumbers } from "./json-numbers.js";
import { GivenTwice, parseJson } from "./json-text.js";
import { PayloadChecker } from "./payload.js";
import * as wire from "./wire.js";
import type { WireWriter } from "./wire-writer.js";

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
}

/** A wrapper (StringValue, …): a message whose one field, number 1, has no presence. */
export class WrapperWriter implements ValueWriter {
  readonly reader: ColumnReader;
  readonly wireType = wire.LENGTH_DELIMITED;

  constructor(private readonly inner: ValueWriter) {
    this.reader = inner.reader;
  }

  isZero(): boolean {
    return false;
  }

  write(row: number, out: WireWriter): Refusal | undefined {
    const opened = out.open();
    const refusal = this.inner.isZero(row)
      ? undefined
      : this.inner.write(row, out.varint(8 + this.inner.wireType));
    out.close(opened);
    return refusal;
  }
}

export interface FieldWriter {
  readonly reader: ColumnReader;
  /** Writes the field with its tag, or nothing where it is absent. */
  put(row: number, out: WireWriter): Refusal | undefined;
}

/** A message, of the fields that its struct has. */
export class MessageWriter implements ValueWriter {
  readonly reader: ColumnReader;
  readonly wireType: number;

  /** `fields` in the order of the wire, `children` in that of the struct; `endTag` is that of a group, else 0. */
  constructor(
    private readonly fields: readonly FieldWriter[],
    children: readonly ColumnReader[],
    private readonly endTag: number,
  ) {
    this.reader = new StructReader(children);
    this.wireType = endTag === 0 ? wire.LENGTH_DELIMITED : wire.GROUP;
  }

  isZero(): boolean {
    return false;
  }

  write(row: number, out: WireWriter): Refusal | undefined {
    const opened = this.endTag === 0 ? out.open() : 0;
    for (const field of this.fields) {
      const refusal = field.put(row, out);
      if (refusal !== undefined) return refusal;
    }
    if (this.endTag === 0) out.close(opened);
    else out.ensure(NUMBER_BYTES).varint(this.endTag);
    return undefined;
  }
}

/** A message that comes as one value: its bytes, or proto3 JSON. */
export class WholeMessageWriter implements ValueWriter {
  readonly reader = new TextReader();
  readonly wireType: number;
  private readonly checker: PayloadChecker;

  constructor(
    private readonly type: DescMessage,
    /** Those of a message in JSON, to look Any up in; undefined for bytes. */
    private readonly types: FileRegistry | undefined,
    private readonly endTag: number,
    private readonly refusal: Refusal,
  ) {
    this.checker = new PayloadChecker(type);
    this.wireType = endTag === 0 ? wire.LENGTH_DELIMITED : wire.GROUP;
  }

  isZero(): boolean {
    return false;
  }

  write(row: number, out: WireWriter): Refusal | undefined {
    const { reader, types, endTag } = this;
    const given = reader.view(row);
    const bytes = types === undefined ? given : this.parse(given, types);
    if (bytes === undefined || !this.checker.check(bytes, 0, bytes.length)) return this.refusal;
    out.ensure(bytes.length + NUMBER_BYTES);
    if (endTag === 0) out.varint(bytes.length).raw(bytes);
    else out.raw(bytes).varint(endTag);
    return undefined;
  }

  private parse(text: Uint8Array, types: FileRegistry): Uint8Array | undefined {
    const value = parseJson(text);
    if (value === undefined || value instanceof GivenTwice) return undefined;
    try {
      const exact = exactNumbers(this.type, value as JsonValue, types);
      return toBinary(this.type, fromJson(this.type, exact, { registry: types }));
    } catch {
      // The library throws on what is no such message.
      return undefined;
    }
  }
}
