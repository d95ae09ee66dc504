import { BLOB, type DuckDBType, VARCHAR } from "@duckdb/node-api";
import protobuf from "protobufjs";
import { TributaryError } from "../base/errors.js";
import { type ColumnWriter, TextColumn } from "../columns/column-writers.js";
import { ListColumn, StructColumn } from "../columns/nested-columns.js";
import { nameOf } from "./registry.js";
import { type Read, SCALARS, type Value, WELL_KNOWN } from "./scalar-columns.js";
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
 * | repeated, map                    | LIST, MAP; empty where absent; of equal keys the last      |
 * | Timestamp, Duration              | TIMESTAMPTZ; BIGINT microseconds                           |
 * | Struct, Value, ListValue         | VARCHAR, as JSON                                           |
 * | wrappers (StringValue, …)        | the wrapped type                                           |
 */
export class PayloadDecoder {
  readonly columns: readonly PayloadColumn[];
  private readonly shape: MessageShape;

  /** Errors: TRB-MODEL-INVALID for a type that has no fields. */
  constructor(type: protobuf.Type) {
    this.shape = shapeOf(type, []);
    if (this.shape.fields.length === 0) {
      throw new TributaryError("TRB-MODEL-INVALID", `${nameOf(type)} has no fields`);
    }
    this.columns = this.shape.fields.map(({ name, writer, presence }) => ({
      name,
      type: writer.type,
      writer,
      nullable: presence,
    }));
  }

  /**
   * Decodes bytes[start, end) into row `row` of the columns' writers, in which a chunk was begun (all NULL where the
   * column is nullable). False when the bytes do not decode; the row is then in no particular state.
   */
  decode(bytes: Buffer, start: number, end: number, row: number): boolean {
    return readMessage(this.shape, bytes, start, end, row);
  }
}

export interface PayloadColumn {
  readonly name: string;
  readonly type: DuckDBType;
  readonly writer: ColumnWriter;
  /** A row without the field is NULL. */
  readonly nullable: boolean;
}

interface FieldShape {
  readonly name: string;
  readonly writer: ColumnWriter;
  readonly wireType: number;
  readonly packable: boolean;
  readonly presence: boolean;
  /** Reads one occurrence into the row. For length-delimited types [from, to) are the bytes inside. */
  readonly read: Read;
  /** Other members of the field's oneof, which a later member clears. */
  siblings: readonly ColumnWriter[];
}

interface MessageShape {
  readonly fields: readonly FieldShape[];
  readonly byNumber: readonly (FieldShape | undefined)[];
}

function readMessage(shape: MessageShape, bytes: Buffer, start: number, end: number, row: number): boolean {
  let pos = start;
  while (pos < end) {
    pos = wire.readTag(bytes, pos, end);
    if (pos < 0) return false;
    const wireType = wire.low & 7;
    const field = shape.byNumber[wire.low >>> 3];
    let from = pos;
    pos = wire.skipValue(bytes, pos, end, wireType);
    if (pos < 0) return false;
    if (field === undefined) continue;
    if (wireType === wire.LENGTH_DELIMITED) from = pos - wire.low;
    if (wireType === field.wireType) {
      if (!field.read(bytes, from, pos, row)) return false;
      for (const sibling of field.siblings) sibling.setNull(row);
    } else if (!field.packable || wireType !== wire.LENGTH_DELIMITED) return false;
    else if (!readPacked(field, bytes, from, pos, row)) return false;
  }
  return true;
}

function readPacked(field: FieldShape, bytes: Buffer, start: number, end: number, row: number): boolean {
  for (let pos = start; pos < end; ) {
    const from = pos;
    pos = wire.skipValue(bytes, pos, end, field.wireType);
    if (pos < 0 || !field.read(bytes, from, pos, row)) return false;
  }
  return true;
}

function shapeOf(type: protobuf.Type, outer: readonly protobuf.Type[]): MessageShape {
  const all = type.fieldsArray.map((field) => fieldShape(field.resolve(), [...outer, type]));
  const byNumber: (FieldShape | undefined)[] = [];
  for (const [index, field] of type.fieldsArray.entries()) {
    byNumber[field.id] = all[index];
    const members = field.partOf?.fieldsArray ?? [];
    all[index]!.siblings = members
      .filter((member) => member !== field)
      .map((member) => all[type.fieldsArray.indexOf(member)]!.writer);
  }
  return { fields: all, byNumber };
}

function fieldShape(field: protobuf.Field, outer: readonly protobuf.Type[]): FieldShape {
  const value = valueShape(field, outer);
  const { name } = field;
  if (field instanceof protobuf.MapField) return { name, ...mapShape(SCALARS[field.keyType]!(), value) };
  if (!field.repeated) {
    const presence = value.message || (field.partOf !== null && field.partOf !== undefined);
    const { writer, wireType, read } = value;
    return { name, writer, wireType, packable: false, presence, read, siblings: [] };
  }
  const list = ListColumn.of(value.writer);
  return {
    name,
    writer: list,
    wireType: value.wireType,
    packable: value.wireType !== wire.LENGTH_DELIMITED,
    presence: false,
    read: (bytes, from, to, row) => {
      const element = list.append(row);
      prepare(value, element);
      return value.read(bytes, from, to, element);
    },
    siblings: [],
  };
}

function valueShape(field: protobuf.Field, outer: readonly protobuf.Type[]): Value {
  const resolved = field.resolvedType;
  if (resolved === null) return SCALARS[field.type]!();
  if (resolved instanceof protobuf.Enum) return enumValue(resolved);
  const known = WELL_KNOWN[nameOf(resolved)];
  if (known !== undefined) return known(resolved);
  if (outer.includes(resolved) || resolved.fieldsArray.length === 0) {
    const writer = new TextColumn(BLOB);
    const read: Read = (bytes, from, to, row) => {
      writer.set(row, bytes, from, to);
      return true;
    };
    return { writer, wireType: wire.LENGTH_DELIMITED, message: true, read };
  }
  const shape = shapeOf(resolved, outer);
  const writer = new StructColumn(shape.fields.map((inner) => ({ name: inner.name, writer: inner.writer })));
  const read: Read = (bytes, from, to, row) => {
    // A second occurrence is merged into the first (proto3, "Last One Wins").
    if (writer.isNull(row)) enter(shape, writer, row);
    return readMessage(shape, bytes, from, to, row);
  };
  return { writer, wireType: wire.LENGTH_DELIMITED, message: true, read };
}

/** Makes a NULL row a message without fields. */
function enter(shape: MessageShape, writer: StructColumn, row: number): void {
  writer.setValid(row);
  for (const field of shape.fields) {
    if (field.presence) field.writer.setNull(row);
    else field.writer.setZero(row);
  }
}

/** Makes a row ready for its first value: a message is NULL until it is entered. */
const prepare = (value: Value, row: number): void =>
  value.message ? value.writer.setNull(row) : value.writer.setZero(row);

/** A map is a list of entries, each a message of key (field 1) and value (field 2). */
function mapShape(key: Value, value: Value): Omit<FieldShape, "name"> {
  const list = ListColumn.map(key.writer, value.writer);
  const seen = new SeenKeys();
  const read: Read = (bytes, from, to, row) => {
    let keyFrom = to;
    let keyTo = to;
    let valueFrom = -1;
    let valueTo = -1;
    for (let pos = from; pos < to; ) {
      pos = wire.readTag(bytes, pos, to);
      if (pos < 0) return false;
      const tag = wire.low;
      const start = pos;
      pos = wire.skipValue(bytes, pos, to, tag & 7);
      if (pos < 0) return false;
      const inner = (tag & 7) === wire.LENGTH_DELIMITED ? pos - wire.low : start;
      if (tag >>> 3 === 1) {
        if ((tag & 7) !== key.wireType) return false;
        keyFrom = inner;
        keyTo = pos;
      } else if (tag >>> 3 === 2) {
        if ((tag & 7) !== value.wireType) return false;
        valueFrom = inner;
        valueTo = pos;
      }
    }
    if (list.length(row) === 0) seen.clear();
    const element = seen.place(keyText(key.wireType, bytes, keyFrom, keyTo), () => list.append(row));
    key.writer.setZero(element);
    prepare(value, element);
    if (keyFrom < keyTo && !key.read(bytes, keyFrom, keyTo, element)) return false;
    return valueFrom < 0 || value.read(bytes, valueFrom, valueTo, element);
  };
  return {
    writer: list,
    wireType: wire.LENGTH_DELIMITED,
    packable: false,
    presence: false,
    read,
    siblings: [],
  };
}

/** Equal for equal keys, however they are written; an absent key is the zero. */
function keyText(wireType: number, bytes: Buffer, from: number, to: number): string {
  if (wireType === wire.LENGTH_DELIMITED) return bytes.toString("latin1", from, to);
  if (wireType !== wire.VARINT)
    return from === to ? "" : bytes.toString("latin1", from, to).replace(/^\0+$/, "");
  if (from === to) return "0:0";
  wire.readVarint(bytes, from, to);
  return `${wire.low}:${wire.high}`;
}

/** The keys of one map value so far: a key given again takes the place of the first. */
class SeenKeys {
  private readonly elements = new Map<string, number>();

  clear(): void {
    if (this.elements.size > 0) this.elements.clear();
  }

  place(key: string, append: () => number): number {
    let element = this.elements.get(key);
    if (element === undefined) {
      element = append();
      this.elements.set(key, element);
    }
    return element;
  }
}

function enumValue(type: protobuf.Enum): Value {
  const names = new Map<number, Buffer>();
  const name = (value: number): Buffer => {
    let known = names.get(value);
    if (known === undefined) {
      known = Buffer.from(type.valuesById[value] ?? String(value));
      if (names.size < 4096) names.set(value, known);
    }
    return known;
  };
  const writer = new TextColumn(VARCHAR, name(0));
  return {
    writer,
    wireType: wire.VARINT,
    message: false,
    read: (bytes, from, to, row) => {
      wire.readVarint(bytes, from, to);
      const text = name(wire.low | 0);
      writer.set(row, text, 0, text.length);
      return true;
    },
  };
}
