import {
  BIGINT,
  BLOB,
  BOOLEAN,
  blobValue,
  DECIMAL,
  DOUBLE,
  DuckDBDecimalValue,
  DuckDBTimestampTZValue,
  type DuckDBType,
  type DuckDBValue,
  FLOAT,
  INTEGER,
  LIST,
  listValue,
  MAP,
  mapValue,
  STRUCT,
  structValue,
  TIMESTAMPTZ,
  VARCHAR,
} from "@duckdb/node-api";
import protobuf from "protobufjs";
import { TributaryError } from "../base/errors.js";
import { nameOf } from "./registry.js";
import * as wire from "./wire.js";

/**
 * Turns payload bytes into columns, field by field, without building message objects.
 *
 * | proto3                           | column                                                     |
 * |----------------------------------|------------------------------------------------------------|
 * | scalar without presence          | its type; the default where absent                         |
 * | optional, oneof member, message  | NULL where absent                                          |
 * | int32, sint32, sfixed32          | INTEGER                                                    |
 * | int64, …, uint32, fixed32        | BIGINT                                                     |
 * | uint64, fixed64                  | DECIMAL(20,0) (Delta has no unsigned types)                |
 * | enum                             | VARCHAR: the value's name, or its number when unknown      |
 * | bytes                            | BLOB                                                       |
 * | message                          | STRUCT; a message inside itself: BLOB, its bytes           |
 * | repeated, map                    | LIST, MAP; empty where absent                              |
 * | Timestamp, Duration              | TIMESTAMPTZ; BIGINT microseconds                           |
 * | Struct, Value, ListValue         | VARCHAR, as JSON                                           |
 * | wrappers (StringValue, …)        | the wrapped type                                           |
 */
export interface PayloadColumn {
  readonly name: string;
  readonly type: DuckDBType;
}

export class PayloadDecoder {
  readonly columns: readonly PayloadColumn[];
  private readonly shape: MessageShape;

  /** Errors: TRB-MODEL-INVALID for a type that has no fields. */
  constructor(type: protobuf.Type) {
    this.shape = shapeOf(type, []);
    if (this.shape.fields.length === 0) {
      throw new TributaryError("TRB-MODEL-INVALID", `${nameOf(type)} has no fields`);
    }
    this.columns = this.shape.fields.map(({ name, type }) => ({ name, type }));
  }

  /**
   * Decodes bytes[start, end) into row `row` of `columns`: one array per entry of `this.columns`, or undefined for a
   * column nobody asked for. False when the bytes do not decode; the row is then in no particular state.
   */
  decode(
    bytes: Buffer,
    start: number,
    end: number,
    columns: readonly (DuckDBValue[] | undefined)[],
    row: number,
  ): boolean {
    for (let i = 0; i < columns.length; i++) {
      const column = columns[i];
      if (column !== undefined) column[row] = this.shape.fields[i]!.absent;
    }
    const repeated: (DuckDBValue[] | undefined)[] = [];
    if (!readMessage(this.shape, bytes, start, end, columns, row, repeated)) return false;
    for (let i = 0; i < repeated.length; i++) {
      const values = repeated[i];
      if (values !== undefined) columns[i]![row] = this.shape.fields[i]!.collect!(values);
    }
    return true;
  }
}

type Scalar = (bytes: Buffer, pos: number, end: number) => DuckDBValue;

interface FieldShape {
  readonly name: string;
  readonly type: DuckDBType;
  readonly index: number;
  readonly wireType: number;
  /** Value of a row without the field. */
  readonly absent: DuckDBValue;
  /** Reads one value. For length-delimited types [pos, end) are its bytes; otherwise the value starts at pos. */
  readonly read: Scalar;
  /** Makes the value of a repeated or map field out of its elements. */
  readonly collect: ((values: DuckDBValue[]) => DuckDBValue) | undefined;
  readonly packable: boolean;
  /** Other members of the field's oneof, which a later member clears. */
  readonly siblings: readonly number[];
}

interface MessageShape {
  readonly fields: readonly FieldShape[];
  readonly byNumber: readonly (FieldShape | undefined)[];
}

class Undecodable extends Error {}

function readMessage(
  shape: MessageShape,
  bytes: Buffer,
  start: number,
  end: number,
  columns: readonly (DuckDBValue[] | undefined)[],
  row: number,
  repeated: (DuckDBValue[] | undefined)[],
): boolean {
  try {
    let pos = start;
    while (pos < end) {
      pos = wire.readTag(bytes, pos, end);
      if (pos < 0) return false;
      const wireType = wire.low & 7;
      const field = shape.byNumber[wire.low >>> 3];
      const column = field === undefined ? undefined : columns[field.index];
      let from = pos;
      pos = wire.skipValue(bytes, pos, end, wireType);
      if (pos < 0) return false;
      if (field === undefined || column === undefined) continue;
      if (wireType === wire.LENGTH_DELIMITED) from = pos - wire.low;
      if (field.collect !== undefined) {
        let values = repeated[field.index];
        if (values === undefined) {
          values = [];
          repeated[field.index] = values;
        }
        if (wireType === field.wireType) values.push(field.read(bytes, from, pos));
        else if (!field.packable || wireType !== wire.LENGTH_DELIMITED) return false;
        else if (!readPacked(field, bytes, from, pos, values)) return false;
        continue;
      }
      if (wireType !== field.wireType) return false;
      column[row] = field.read(bytes, from, pos);
      for (const sibling of field.siblings) {
        const other = columns[sibling];
        if (other !== undefined) other[row] = null;
      }
    }
    return true;
  } catch (error) {
    if (error instanceof Undecodable) return false;
    throw error;
  }
}

function readPacked(
  field: FieldShape,
  bytes: Buffer,
  start: number,
  end: number,
  values: DuckDBValue[],
): boolean {
  for (let pos = start; pos < end; ) {
    const from = pos;
    pos = wire.skipValue(bytes, pos, end, field.wireType);
    if (pos < 0) return false;
    values.push(field.read(bytes, from, pos));
  }
  return true;
}

/** A nested message as one value. */
function structReader(shape: MessageShape): Scalar {
  return (bytes, start, end) => {
    const columns = shape.fields.map((field): DuckDBValue[] => [field.absent]);
    const repeated: (DuckDBValue[] | undefined)[] = [];
    if (!readMessage(shape, bytes, start, end, columns, 0, repeated)) throw new Undecodable();
    const entries: Record<string, DuckDBValue> = {};
    for (const field of shape.fields) {
      const elements = repeated[field.index];
      entries[field.name] = elements === undefined ? columns[field.index]![0]! : field.collect!(elements);
    }
    return structValue(entries);
  };
}

function shapeOf(type: protobuf.Type, outer: readonly protobuf.Type[]): MessageShape {
  const fields = type.fieldsArray.map((field, index) => fieldShape(field.resolve(), index, [...outer, type]));
  const byNumber: (FieldShape | undefined)[] = [];
  for (const [index, field] of type.fieldsArray.entries()) byNumber[field.id] = fields[index];
  return { fields, byNumber };
}

function fieldShape(field: protobuf.Field, index: number, outer: readonly protobuf.Type[]): FieldShape {
  const base = { name: field.name, index };
  const element = elementShape(field, outer);
  if (field instanceof protobuf.MapField) {
    const key = SCALARS[field.keyType]!;
    const entry = entryReader(key, element);
    return {
      ...base,
      type: MAP(key.type, element.type),
      wireType: wire.LENGTH_DELIMITED,
      absent: mapValue([]),
      read: entry,
      collect: collectMap,
      packable: false,
      siblings: [],
    };
  }
  if (field.repeated) {
    return {
      ...base,
      type: LIST(element.type),
      wireType: element.wireType,
      absent: listValue([]),
      read: element.read,
      collect: listValue,
      packable: element.wireType !== wire.LENGTH_DELIMITED,
      siblings: [],
    };
  }
  const members = field.partOf?.fieldsArray ?? [];
  const all = field.parent instanceof protobuf.Type ? field.parent.fieldsArray : [];
  return {
    ...base,
    type: element.type,
    wireType: element.wireType,
    absent: field.partOf !== null && field.partOf !== undefined ? null : element.absent,
    read: element.read,
    collect: undefined,
    packable: false,
    siblings: members.filter((member) => member !== field).map((member) => all.indexOf(member)),
  };
}

interface ElementShape {
  readonly type: DuckDBType;
  readonly wireType: number;
  readonly absent: DuckDBValue;
  readonly read: Scalar;
}

function elementShape(field: protobuf.Field, outer: readonly protobuf.Type[]): ElementShape {
  const resolved = field.resolvedType;
  if (resolved === null) return SCALARS[field.type]!;
  if (resolved instanceof protobuf.Enum) return enumShape(resolved);
  const known = WELL_KNOWN[nameOf(resolved)];
  if (known !== undefined) return { ...known(resolved), wireType: wire.LENGTH_DELIMITED, absent: null };
  const delimited = { wireType: wire.LENGTH_DELIMITED, absent: null };
  if (outer.includes(resolved) || resolved.fieldsArray.length === 0)
    return { ...delimited, type: BLOB, read: readBytes };
  const shape = shapeOf(resolved, outer);
  const types = Object.fromEntries(shape.fields.map(({ name, type }) => [name, type]));
  return { ...delimited, type: STRUCT(types), read: structReader(shape) };
}

function enumShape(type: protobuf.Enum): ElementShape {
  const name = (value: number) => type.valuesById[value] ?? String(value);
  return {
    type: VARCHAR,
    wireType: wire.VARINT,
    absent: name(0),
    read: (bytes, pos, end) => {
      wire.readVarint(bytes, pos, end);
      return name(wire.low | 0);
    },
  };
}

/** A map's entry as [key, value]; collectMap keeps the last value of a key. */
function entryReader(key: ElementShape, value: ElementShape): Scalar {
  const field = (index: number, shape: ElementShape): FieldShape => ({
    name: index === 0 ? "key" : "value",
    index,
    type: shape.type,
    wireType: shape.wireType,
    absent: shape.absent,
    read: shape.read,
    collect: undefined,
    packable: false,
    siblings: [],
  });
  const fields = [field(0, key), field(1, value)];
  return structReader({ fields, byNumber: [undefined, ...fields] });
}

function collectMap(entries: DuckDBValue[]): DuckDBValue {
  const last = new Map<DuckDBValue, DuckDBValue>();
  for (const entry of entries) {
    const { key, value } = (entry as unknown as { entries: { key: DuckDBValue; value: DuckDBValue } })
      .entries;
    last.set(key, value);
  }
  return mapValue([...last].map(([key, value]) => ({ key, value })));
}

const varint =
  (convert: () => DuckDBValue): Scalar =>
  (bytes, pos, end) => {
    wire.readVarint(bytes, pos, end);
    return convert();
  };

/** The last varint read, as int64. Numbers are safe while the high half has at most 21 bits. */
function signed64(): bigint {
  const high = wire.high | 0;
  if (high >= -0x100000 && high < 0x100000) return BigInt(high * 0x1_0000_0000 + wire.low);
  return (BigInt(high) << 32n) | BigInt(wire.low);
}

function zigzag64(): bigint {
  const value = (BigInt(wire.high) << 32n) | BigInt(wire.low);
  return (value >> 1n) ^ -(value & 1n);
}

const unsigned64 = (value: bigint): DuckDBValue => new DuckDBDecimalValue(BigInt.asUintN(64, value), 20, 0);
const readBytes: Scalar = (bytes, pos, end) => blobValue(Uint8Array.prototype.slice.call(bytes, pos, end));

const scalar = (type: DuckDBType, wireType: number, absent: DuckDBValue, read: Scalar): ElementShape => ({
  type,
  wireType,
  absent,
  read,
});

const SCALARS: Readonly<Record<string, ElementShape>> = {
  double: scalar(DOUBLE, wire.FIXED64, 0, (b, p) => b.readDoubleLE(p)),
  float: scalar(FLOAT, wire.FIXED32, 0, (b, p) => b.readFloatLE(p)),
  int32: scalar(
    INTEGER,
    wire.VARINT,
    0,
    varint(() => wire.low | 0),
  ),
  sint32: scalar(
    INTEGER,
    wire.VARINT,
    0,
    varint(() => (wire.low >>> 1) ^ -(wire.low & 1)),
  ),
  uint32: scalar(
    BIGINT,
    wire.VARINT,
    0n,
    varint(() => BigInt(wire.low)),
  ),
  int64: scalar(BIGINT, wire.VARINT, 0n, varint(signed64)),
  sint64: scalar(BIGINT, wire.VARINT, 0n, varint(zigzag64)),
  uint64: scalar(
    DECIMAL(20, 0),
    wire.VARINT,
    unsigned64(0n),
    varint(() => unsigned64(signed64())),
  ),
  fixed32: scalar(BIGINT, wire.FIXED32, 0n, (b, p) => BigInt(b.readUInt32LE(p))),
  sfixed32: scalar(INTEGER, wire.FIXED32, 0, (b, p) => b.readInt32LE(p)),
  fixed64: scalar(DECIMAL(20, 0), wire.FIXED64, unsigned64(0n), (b, p) => unsigned64(b.readBigUInt64LE(p))),
  sfixed64: scalar(BIGINT, wire.FIXED64, 0n, (b, p) => b.readBigInt64LE(p)),
  bool: scalar(
    BOOLEAN,
    wire.VARINT,
    false,
    varint(() => wire.low !== 0 || wire.high !== 0),
  ),
  string: scalar(VARCHAR, wire.LENGTH_DELIMITED, "", (b, p, e) => {
    if (!wire.isUtf8(b, p, e)) throw new Undecodable();
    return b.toString("utf8", p, e);
  }),
  bytes: scalar(BLOB, wire.LENGTH_DELIMITED, blobValue(new Uint8Array(0)), readBytes),
};

/** seconds and nanos of a Timestamp or Duration, in microseconds, rounded down. */
function microseconds(bytes: Buffer, start: number, end: number): bigint {
  let seconds = 0n;
  let nanos = 0;
  for (let pos = start; pos < end; ) {
    pos = wire.readTag(bytes, pos, end);
    if (pos < 0) throw new Undecodable();
    const tag = wire.low;
    const from = pos;
    pos = wire.skipValue(bytes, pos, end, tag & 7);
    if (pos < 0) throw new Undecodable();
    if (tag === 8 || tag === 16) {
      wire.readVarint(bytes, from, pos);
      if (tag === 8) seconds = signed64();
      else nanos = wire.low | 0;
    } else if (tag < 24) throw new Undecodable();
  }
  return seconds * 1_000_000n + BigInt(Math.floor(nanos / 1000));
}

/** 0001-01-01 and 10000-01-01 in microseconds: outside, the bytes are no Timestamp. */
const MIN_MICROS = -62_135_596_800_000_000n;
const MAX_MICROS = 253_402_300_800_000_000n;

type KnownShape = (type: protobuf.Type) => Pick<ElementShape, "type" | "read">;

/** JSON has its own message types; the slow way is fine for them. */
const json: KnownShape = (type) => ({
  type: VARCHAR,
  read: (bytes, start, end) => {
    try {
      return JSON.stringify(plainJson(type.decode(bytes.subarray(start, end))));
    } catch {
      throw new Undecodable();
    }
  },
});

interface JsonMessage {
  readonly kind?: string;
  readonly fields?: Readonly<Record<string, JsonMessage>>;
  readonly values?: readonly JsonMessage[];
  readonly [member: string]: unknown;
}

function plainJson(message: unknown): unknown {
  const node = message as JsonMessage;
  if (node.fields !== undefined) {
    return Object.fromEntries(Object.entries(node.fields).map(([key, value]) => [key, plainJson(value)]));
  }
  if (node.values !== undefined) return node.values.map(plainJson);
  for (const member of ["numberValue", "stringValue", "boolValue"]) {
    if (Object.hasOwn(node, member)) return node[member];
    const kept = member.replace(/[A-Z]/, (letter) => `_${letter.toLowerCase()}`);
    if (Object.hasOwn(node, kept)) return node[kept];
  }
  const inner = node.structValue ?? node.struct_value ?? node.listValue ?? node.list_value;
  return inner === undefined || inner === null ? null : plainJson(inner);
}

const wrapper =
  (of: string): KnownShape =>
  () => {
    const inner = SCALARS[of]!;
    const shape: FieldShape = {
      name: "value",
      index: 0,
      type: inner.type,
      wireType: inner.wireType,
      absent: inner.absent,
      read: inner.read,
      collect: undefined,
      packable: false,
      siblings: [],
    };
    const message: MessageShape = { fields: [shape], byNumber: [undefined, shape] };
    return {
      type: inner.type,
      read: (bytes, start, end) => {
        const column: DuckDBValue[] = [inner.absent];
        if (!readMessage(message, bytes, start, end, [column], 0, [])) throw new Undecodable();
        return column[0]!;
      },
    };
  };

const WELL_KNOWN: Readonly<Record<string, KnownShape>> = {
  "google.protobuf.Timestamp": () => ({
    type: TIMESTAMPTZ,
    read: (bytes, start, end) => {
      const micros = microseconds(bytes, start, end);
      if (micros < MIN_MICROS || micros >= MAX_MICROS) throw new Undecodable();
      return new DuckDBTimestampTZValue(micros);
    },
  }),
  "google.protobuf.Duration": () => ({ type: BIGINT, read: microseconds }),
  "google.protobuf.Struct": json,
  "google.protobuf.Value": json,
  "google.protobuf.ListValue": json,
  "google.protobuf.StringValue": wrapper("string"),
  "google.protobuf.BytesValue": wrapper("bytes"),
  "google.protobuf.BoolValue": wrapper("bool"),
  "google.protobuf.Int32Value": wrapper("int32"),
  "google.protobuf.UInt32Value": wrapper("uint32"),
  "google.protobuf.Int64Value": wrapper("int64"),
  "google.protobuf.UInt64Value": wrapper("uint64"),
  "google.protobuf.FloatValue": wrapper("float"),
  "google.protobuf.DoubleValue": wrapper("double"),
};
