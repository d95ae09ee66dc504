import { type DescEnum, type DescField, type DescMessage, ScalarType } from "@bufbuild/protobuf";
import { FeatureSet_FieldPresence as Presence } from "@bufbuild/protobuf/wkt";
import { BLOB, type DuckDBType, VARCHAR } from "@duckdb/node-api";
import { TributaryError } from "../base/errors.js";
import { type ColumnWriter, TextColumn } from "../columns/column-writers.js";
import { ListColumn, StructColumn } from "../columns/nested-columns.js";
import { looseText, type Read, SCALARS, type Value, WELL_KNOWN } from "./scalar-columns.js";
import * as wire from "./wire.js";

/**
 * Turns payload bytes into columns, field by field, without building message objects.
 *
 * | field                            | column                                                     |
 * |----------------------------------|------------------------------------------------------------|
 * | without presence (proto3 scalar) | its type; the zero where absent                            |
 * | with presence                    | NULL where absent, also where a default is declared: the   |
 * |                                  | default is the reader's, not the event's                   |
 * | int32, sint32, sfixed32          | INTEGER                                                    |
 * | int64, …, uint32, fixed32        | BIGINT                                                     |
 * | uint64, fixed64                  | DECIMAL(20,0) (Delta has no unsigned types)                |
 * | enum                             | VARCHAR: the value's name, or its number when unknown; an  |
 * |                                  | unknown value of a closed enum (proto2) is as if absent    |
 * | string                           | VARCHAR; what need not be UTF-8 and is not: U+FFFD         |
 * | bytes                            | BLOB                                                       |
 * | message, group                   | STRUCT; a message inside itself: BLOB, its bytes           |
 * | repeated, map                    | LIST, MAP; empty where absent; of equal keys the last      |
 * | Timestamp, Duration              | TIMESTAMPTZ; BIGINT microseconds                           |
 * | Struct, Value, ListValue         | VARCHAR, as JSON                                           |
 * | wrappers (StringValue, …)        | the wrapped type                                           |
 *
 * With presence are: `optional`, `required`, members of a oneof, messages, and in proto2 and editions every singular
 * field that does not say otherwise. A required field that is absent is NULL too: old events may lack it. Extensions
 * are no columns.
 */
export class PayloadDecoder {
  readonly columns: readonly PayloadColumn[];
  private readonly shape: MessageShape;

  /** Errors: TRB-MODEL-INVALID for a type that has no fields. */
  constructor(type: DescMessage) {
    this.shape = shapeOf(type, []);
    if (this.shape.fields.length === 0) {
      throw new TributaryError("TRB-MODEL-INVALID", `${type.typeName} has no fields`);
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
  readonly counts: Value["counts"];
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
    const number = wire.low >>> 3;
    const field = shape.byNumber[number];
    let from = pos;
    pos =
      wireType === wire.GROUP
        ? wire.skipGroup(bytes, pos, end, number, 1)
        : wire.skipValue(bytes, pos, end, wireType);
    if (pos < 0) return false;
    if (field === undefined) continue;
    if (wireType === wire.LENGTH_DELIMITED) from = pos - wire.low;
    if (wireType === field.wireType) {
      const to = wireType === wire.GROUP ? wire.groupEnd : pos;
      if (field.counts !== undefined && !field.counts(bytes, from, to)) continue;
      if (!field.read(bytes, from, to, row)) return false;
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
    if (pos < 0) return false;
    if (field.counts !== undefined && !field.counts(bytes, from, pos)) continue;
    if (!field.read(bytes, from, pos, row)) return false;
  }
  return true;
}

function shapeOf(type: DescMessage, outer: readonly DescMessage[]): MessageShape {
  const all = type.fields.map((field) => fieldShape(field, [...outer, type]));
  const byNumber: (FieldShape | undefined)[] = [];
  for (const [index, field] of type.fields.entries()) {
    byNumber[field.number] = all[index];
    const members = field.oneof?.fields ?? [];
    all[index]!.siblings = members
      .filter((member) => member !== field)
      .map((member) => all[type.fields.indexOf(member)]!.writer);
  }
  return { fields: all, byNumber };
}

function fieldShape(field: DescField, outer: readonly DescMessage[]): FieldShape {
  const value = valueShape(field, outer);
  const { name } = field;
  if (field.fieldKind === "map") return { name, ...mapShape(scalarValue(field.mapKey, field), value) };
  const { writer, read, counts } = value;
  const wireType = field.message !== undefined && field.delimitedEncoding ? wire.GROUP : value.wireType;
  if (field.fieldKind !== "list") {
    const presence = value.message || field.presence !== Presence.IMPLICIT;
    return { name, writer, wireType, packable: false, presence, read, counts, siblings: [] };
  }
  const list = ListColumn.of(writer);
  return {
    name,
    writer: list,
    wireType,
    packable: value.wireType !== wire.LENGTH_DELIMITED,
    presence: false,
    read: (bytes, from, to, row) => {
      const element = list.append(row);
      prepare(value, element);
      return read(bytes, from, to, element);
    },
    counts,
    siblings: [],
  };
}

function valueShape(field: DescField, outer: readonly DescMessage[]): Value {
  if (field.enum !== undefined) return enumValue(field.enum);
  if (field.message === undefined) return scalarValue(field.scalar, field);
  const known = WELL_KNOWN[field.message.typeName];
  if (known !== undefined) return known();
  if (outer.includes(field.message) || field.message.fields.length === 0) {
    const writer = new TextColumn(BLOB);
    const read: Read = (bytes, from, to, row) => {
      writer.set(row, bytes, from, to);
      return true;
    };
    return { writer, wireType: wire.LENGTH_DELIMITED, message: true, read };
  }
  const shape = shapeOf(field.message, outer);
  const writer = new StructColumn(shape.fields.map((inner) => ({ name: inner.name, writer: inner.writer })));
  const read: Read = (bytes, from, to, row) => {
    // A second occurrence is merged into the first ("Last One Wins").
    if (writer.isNull(row)) enter(shape, writer, row);
    return readMessage(shape, bytes, from, to, row);
  };
  return { writer, wireType: wire.LENGTH_DELIMITED, message: true, read };
}

const scalarValue = (scalar: ScalarType, field: DescField): Value =>
  scalar === ScalarType.STRING && !field.utf8Validation ? looseText() : SCALARS[scalar]();

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
    let unknown = false;
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
        if (value.counts !== undefined && !value.counts(bytes, inner, pos)) unknown = true;
        valueFrom = inner;
        valueTo = pos;
      }
    }
    // An unknown value of a closed enum makes the whole entry an unknown field.
    if (unknown) return true;
    if (list.length(row) === 0) seen.clear();
    const element = seen.place(keyText(key.wireType, bytes, keyFrom, keyTo), () => list.append(row));
    key.writer.setZero(element);
    prepare(value, element);
    if (keyFrom < keyTo && !key.read(bytes, keyFrom, keyTo, element)) return false;
    if (valueFrom >= 0) return value.read(bytes, valueFrom, valueTo, element);
    // An absent value is the type's own: a message without fields, if it is one.
    return !value.message || value.read(bytes, from, from, element);
  };
  return {
    writer: list,
    wireType: wire.LENGTH_DELIMITED,
    packable: false,
    presence: false,
    read,
    counts: undefined,
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

function enumValue(type: DescEnum): Value {
  const names = new Map<number, Buffer>();
  const declared = new Set<number>();
  for (const { number, name } of type.values) {
    // Of two names of one number the first stands.
    if (!names.has(number)) names.set(number, Buffer.from(name));
    declared.add(number);
  }
  const most = declared.size + 4096;
  const nameOf = (value: number): Buffer => {
    let known = names.get(value);
    if (known === undefined) {
      known = Buffer.from(String(value));
      if (names.size < most) names.set(value, known);
    }
    return known;
  };
  const writer = new TextColumn(VARCHAR, nameOf(type.values[0]!.number));
  const value: Value = {
    writer,
    wireType: wire.VARINT,
    message: false,
    read: (bytes, from, to, row) => {
      wire.readVarint(bytes, from, to);
      const text = nameOf(wire.low | 0);
      writer.set(row, text, 0, text.length);
      return true;
    },
  };
  if (type.open) return value;
  const counts = (bytes: Buffer, from: number, to: number): boolean => {
    wire.readVarint(bytes, from, to);
    return declared.has(wire.low | 0);
  };
  return { ...value, counts };
}
