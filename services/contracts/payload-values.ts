import { isUtf8 } from "node:buffer";
import {
  type DescMessage,
  type FileRegistry,
  fromJson,
  type JsonValue,
  ScalarType,
  toBinary,
} from "@bufbuild/protobuf";
import { type ColumnReader, FixedReader, StructReader, TextReader } from "../columns/column-readers.js";
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

/** Of the last time that was taken apart. */
let seconds = 0;
let nanos = 0;

/** Takes microseconds apart, as two halves: `nanos` from 0 on, or of the sign of `seconds`. */
function takeApart(low: number, high: number, down: boolean): void {
  const micros = (high | 0) * 0x1_0000_0000 + low;
  if (Number.isSafeInteger(micros)) {
    seconds = down ? Math.floor(micros / 1e6) : Math.trunc(micros / 1e6);
    nanos = (micros - seconds * 1e6) * 1000;
    return;
  }
  const exact = BigInt.asIntN(64, (BigInt(high) << 32n) | BigInt(low));
  let rest = exact % 1_000_000n;
  if (down && rest < 0n) rest += 1_000_000n;
  seconds = Number((exact - rest) / 1_000_000n);
  nanos = Number(rest) * 1000;
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
        if (value < 0x8000_0000) out.varint(value);
        else out.varint64(value, 0xffff_ffff);
        break;
      }
      case ScalarType.UINT32:
        out.varint(words[row]!);
        break;
      case ScalarType.SINT32:
        out.varint(((words[row]! << 1) ^ (words[row]! >> 31)) >>> 0);
        break;
      case ScalarType.INT64:
      case ScalarType.UINT64:
        out.varint64(words[row * 2]!, words[row * 2 + 1]!);
        break;
      case ScalarType.SINT64: {
        const low = words[row * 2]!;
        const high = words[row * 2 + 1]!;
        const flip = high >> 31;
        out.varint64(((low << 1) ^ flip) >>> 0, (((high << 1) | (low >>> 31)) ^ flip) >>> 0);
        break;
      }
      case ScalarType.FLOAT:
      case ScalarType.FIXED32:
      case ScalarType.SFIXED32:
        out.fixed32(words[row]!);
        break;
      case TIMESTAMP:
        takeApart(words[row * 2]!, words[row * 2 + 1]!, true);
        if (!wire.isInstant(seconds, nanos)) return this.refusal;
        out.seconds(seconds, nanos);
        break;
      case DURATION:
        takeApart(words[row * 2]!, words[row * 2 + 1]!, false);
        if (Math.abs(seconds) > MOST_SECONDS) return this.refusal;
        out.seconds(seconds, nanos);
        break;
      default:
        out.fixed32(words[row * 2]!).fixed32(words[row * 2 + 1]!);
    }
    return undefined;
  }
}

/** Longer texts are copied, and looked at, by calls that cost something themselves. */
const COPY_LOOP_BYTES = 64;

/** Text and bytes. */
export class TextWriter implements ValueWriter {
  readonly reader = new TextReader();
  readonly wireType = wire.LENGTH_DELIMITED;

  /** With a refusal for what is not UTF-8. */
  constructor(private readonly notUtf8: Refusal | undefined) {}

  isZero(row: number): boolean {
    return this.reader.length(row) === 0;
  }

  write(row: number, out: WireWriter): Refusal | undefined {
    const { reader, notUtf8 } = this;
    reader.find(row);
    const { source, start, end } = reader;
    const length = end - start;
    out.ensure(length + NUMBER_BYTES).varint(length);
    if (length > COPY_LOOP_BYTES) {
      const bytes = source.subarray(start, end);
      out.raw(bytes);
      return notUtf8 !== undefined && !isUtf8(bytes) ? notUtf8 : undefined;
    }
    const seen = out.short(source, start, end);
    return notUtf8 !== undefined && seen >= 0x80 && !wire.isUtf8(source, start, end) ? notUtf8 : undefined;
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
    reader.find(row);
    const given = reader.source.subarray(reader.start, reader.end);
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
