import { fromBinary, ScalarType } from "@bufbuild/protobuf";
import {
  type ListValue,
  ListValueSchema,
  type Struct,
  StructSchema,
  ValueSchema,
  type Value as WktValue,
} from "@bufbuild/protobuf/wkt";
import { BLOB } from "@duckdb/node-api";
import { type ColumnWriter, FixedColumn, TextColumn } from "../columns/column-writers.js";
import * as wire from "./wire.js";

/** How single values of a payload get into columns: scalars and Google's well-known types. */

/** Reads one value into a row; false when the bytes are no such value. */
export type Read = (bytes: Buffer, from: number, to: number, row: number) => boolean;

export interface Value {
  readonly writer: ColumnWriter;
  readonly wireType: number;
  /** A message: NULL until it occurs. */
  readonly message: boolean;
  readonly read: Read;
  /** Whether a value counts; what does not is an unknown field (closed enums). Absent: every value does. */
  readonly counts?: (bytes: Buffer, from: number, to: number) => boolean;
}

const scalar = (writer: ColumnWriter, wireType: number, read: Read): Value => ({
  writer,
  wireType,
  message: false,
  read,
});

/** A varint that `put` takes out of wire.low and wire.high. */
function varint(writer: FixedColumn, put: (row: number) => void): Value {
  return scalar(writer, wire.VARINT, (bytes, from, to, row) => {
    wire.readVarint(bytes, from, to);
    put(row);
    return true;
  });
}

function integer(decode: () => number): () => Value {
  return () => {
    const writer = FixedColumn.integer();
    return varint(writer, (row) => {
      writer.int32[row] = decode();
      writer.setValid(row);
    });
  };
}

function wide(make: () => FixedColumn, put: (writer: FixedColumn, row: number) => void): () => Value {
  return () => {
    const writer = make();
    return varint(writer, (row) => put(writer, row));
  };
}

function zigzag64(writer: FixedColumn, row: number): void {
  const flip = -(wire.low & 1);
  writer.set64(row, (((wire.low >>> 1) | (wire.high << 31)) ^ flip) >>> 0, ((wire.high >>> 1) ^ flip) >>> 0);
}

function fixed(
  make: () => FixedColumn,
  wireType: number,
  put: (w: FixedColumn, row: number, b: Buffer, at: number) => void,
) {
  return (): Value => {
    const writer = make();
    return scalar(writer, wireType, (bytes, from, _, row) => {
      put(writer, row, bytes, from);
      writer.setValid(row);
      return true;
    });
  };
}

const read64 = (writer: FixedColumn, row: number, bytes: Buffer, at: number): void =>
  writer.set64(row, bytes.readUInt32LE(at), bytes.readUInt32LE(at + 4));

export const SCALARS: Readonly<Record<ScalarType, () => Value>> = {
  [ScalarType.DOUBLE]: fixed(FixedColumn.double, wire.FIXED64, (w, row, b, at) => {
    w.float64[row] = b.readDoubleLE(at);
  }),
  [ScalarType.FLOAT]: fixed(FixedColumn.float, wire.FIXED32, (w, row, b, at) => {
    w.float32[row] = b.readFloatLE(at);
  }),
  [ScalarType.INT32]: integer(() => wire.low | 0),
  [ScalarType.SINT32]: integer(() => (wire.low >>> 1) ^ -(wire.low & 1)),
  [ScalarType.UINT32]: wide(FixedColumn.bigint, (w, row) => w.set64(row, wire.low, 0)),
  [ScalarType.INT64]: wide(FixedColumn.bigint, (w, row) => w.set64(row, wire.low, wire.high)),
  [ScalarType.SINT64]: wide(FixedColumn.bigint, zigzag64),
  [ScalarType.UINT64]: wide(FixedColumn.unsigned64, (w, row) => w.set64(row, wire.low, wire.high)),
  [ScalarType.FIXED32]: fixed(FixedColumn.bigint, wire.FIXED32, (w, row, b, at) =>
    w.set64(row, b.readUInt32LE(at), 0),
  ),
  [ScalarType.SFIXED32]: fixed(FixedColumn.integer, wire.FIXED32, (w, row, b, at) => {
    w.int32[row] = b.readInt32LE(at);
  }),
  [ScalarType.FIXED64]: fixed(FixedColumn.unsigned64, wire.FIXED64, read64),
  [ScalarType.SFIXED64]: fixed(FixedColumn.bigint, wire.FIXED64, read64),
  [ScalarType.BOOL]: () => {
    const writer = FixedColumn.boolean();
    return varint(writer, (row) => {
      writer.bytes[row] = wire.low === 0 && wire.high === 0 ? 0 : 1;
      writer.setValid(row);
    });
  },
  [ScalarType.STRING]: () => {
    const writer = new TextColumn();
    return scalar(writer, wire.LENGTH_DELIMITED, (bytes, from, to, row) => {
      if (!wire.isUtf8(bytes, from, to)) return false;
      writer.set(row, bytes, from, to);
      return true;
    });
  },
  [ScalarType.BYTES]: () => {
    const writer = new TextColumn(BLOB);
    return scalar(writer, wire.LENGTH_DELIMITED, (bytes, from, to, row) => {
      writer.set(row, bytes, from, to);
      return true;
    });
  },
};

/** Text that need not be UTF-8 (proto2, `utf8_validation = NONE`): what is not becomes U+FFFD, as readers show it. */
export function looseText(): Value {
  const writer = new TextColumn();
  return scalar(writer, wire.LENGTH_DELIMITED, (bytes, from, to, row) => {
    if (wire.isUtf8(bytes, from, to)) writer.set(row, bytes, from, to);
    else writer.setString(row, bytes.toString("utf8", from, to));
    return true;
  });
}

/** seconds and nanos of a Timestamp or Duration, as microseconds rounded down, within the bounds in seconds. */
function micros(make: () => FixedColumn, least: number, most: number): () => Value {
  return () => {
    const writer = make();
    const read: Read = (bytes, from, to, row) => {
      let seconds = 0;
      let nanos = 0;
      for (let pos = from; pos < to; ) {
        pos = wire.readTag(bytes, pos, to);
        if (pos < 0) return false;
        const tag = wire.low;
        pos = wire.skipValue(bytes, pos, to, tag & 7);
        if (pos < 0) return false;
        if (tag === 8) seconds = wire.signed64();
        else if (tag === 16) nanos = wire.low | 0;
        else if (tag < 24) return false;
      }
      if (seconds < least || seconds > most || Math.abs(nanos) > 999_999_999) return false;
      writer.setMicros(row, seconds, Math.floor(nanos / 1000));
      return true;
    };
    return { writer, wireType: wire.LENGTH_DELIMITED, message: true, read };
  };
}

/** Years 1 to 9999. */
const timestamp = micros(FixedColumn.timestamp, -62_135_596_800, 253_402_300_799);
/** 10,000 years either way (google/protobuf/duration.proto). */
const duration = micros(FixedColumn.bigint, -315_576_000_000, 315_576_000_000);

/** JSON has message types of its own; the slow way is fine for them. */
function json(plain: (bytes: Buffer) => unknown): () => Value {
  return () => {
    const writer = new TextColumn();
    const read: Read = (bytes, from, to, row) => {
      let text: string;
      try {
        text = JSON.stringify(plain(bytes.subarray(from, to)));
      } catch {
        // The library throws on what is no message; that is the answer here.
        return false;
      }
      writer.setString(row, text);
      return true;
    };
    return { writer, wireType: wire.LENGTH_DELIMITED, message: true, read };
  };
}

const plainStruct = ({ fields }: Struct): unknown =>
  Object.fromEntries(Object.entries(fields).map(([key, value]) => [key, plainValue(value)]));
const plainList = ({ values }: ListValue): unknown => values.map(plainValue);

function plainValue({ kind }: WktValue): unknown {
  if (kind.case === "structValue") return plainStruct(kind.value);
  if (kind.case === "listValue") return plainList(kind.value);
  return kind.case === undefined || kind.case === "nullValue" ? null : kind.value;
}

/** A wrapper's one field, number 1; absent it is the scalar's zero. */
function wrapper(of: ScalarType): () => Value {
  return () => {
    const inner = SCALARS[of]!();
    const read: Read = (bytes, from, to, row) => {
      inner.writer.setZero(row);
      for (let pos = from; pos < to; ) {
        pos = wire.readTag(bytes, pos, to);
        if (pos < 0) return false;
        const tag = wire.low;
        const start = pos;
        pos = wire.skipValue(bytes, pos, to, tag & 7);
        if (pos < 0) return false;
        if (tag >>> 3 !== 1) continue;
        if ((tag & 7) !== inner.wireType) return false;
        if (!inner.read(bytes, inner.wireType === wire.LENGTH_DELIMITED ? pos - wire.low : start, pos, row))
          return false;
      }
      return true;
    };
    return { writer: inner.writer, wireType: wire.LENGTH_DELIMITED, message: true, read };
  };
}

export const WELL_KNOWN: Readonly<Record<string, () => Value>> = {
  "google.protobuf.Timestamp": timestamp,
  "google.protobuf.Duration": duration,
  "google.protobuf.Struct": json((bytes) => plainStruct(fromBinary(StructSchema, bytes))),
  "google.protobuf.Value": json((bytes) => plainValue(fromBinary(ValueSchema, bytes))),
  "google.protobuf.ListValue": json((bytes) => plainList(fromBinary(ListValueSchema, bytes))),
  "google.protobuf.StringValue": wrapper(ScalarType.STRING),
  "google.protobuf.BytesValue": wrapper(ScalarType.BYTES),
  "google.protobuf.BoolValue": wrapper(ScalarType.BOOL),
  "google.protobuf.Int32Value": wrapper(ScalarType.INT32),
  "google.protobuf.UInt32Value": wrapper(ScalarType.UINT32),
  "google.protobuf.Int64Value": wrapper(ScalarType.INT64),
  "google.protobuf.UInt64Value": wrapper(ScalarType.UINT64),
  "google.protobuf.FloatValue": wrapper(ScalarType.FLOAT),
  "google.protobuf.DoubleValue": wrapper(ScalarType.DOUBLE),
};
