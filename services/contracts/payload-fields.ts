import { type ColumnReader, ListReader, StructReader } from "../columns/column-readers.js";
import type { PayloadRows } from "./payload-rows.js";
import { type FieldWriter, NUMBER_BYTES, putAll, type Refusal, type ValueWriter } from "./payload-values.js";
import * as wire from "./wire.js";
import type { WireWriter } from "./wire-writer.js";

/** How the fields of a message get out of columns: a tag, and what comes behind it. */

/** A field of one value. */
export class SingularField implements FieldWriter {
  readonly reader: ColumnReader;
  readonly tag: number;

  constructor(
    number: number,
    private readonly value: ValueWriter,
    /** A zero is written too. */
    readonly presence: boolean,
    /** Refuses NULL, where the field is required. */
    readonly missing: Refusal | undefined,
  ) {
    this.reader = value.reader;
    this.tag = number * 8 + value.wireType;
  }

  put(row: number, out: WireWriter): Refusal | undefined {
    const { reader, value } = this;
    if (reader.isNull(row)) return this.missing;
    if (!this.presence && value.isZero(row)) return undefined;
    return value.write(row, out.ensure(NUMBER_BYTES).varint(this.tag));
  }

  putAll(out: PayloadRows): void {
    this.value.writeAll(this, out);
  }
}

/** A repeated field. NULL is an empty one; an element that is NULL is no value. */
export class RepeatedField implements FieldWriter {
  readonly reader: ListReader;
  private readonly tag: number;

  constructor(
    number: number,
    private readonly value: ValueWriter,
    private readonly packed: boolean,
    private readonly refusal: Refusal,
  ) {
    this.reader = new ListReader(value.reader);
    this.tag = number * 8 + (packed ? wire.LENGTH_DELIMITED : value.wireType);
  }

  putAll(out: PayloadRows): void {
    putAll(this, out);
  }

  put(row: number, out: WireWriter): Refusal | undefined {
    const { reader, value, packed, tag } = this;
    if (reader.isNull(row)) return undefined;
    const first = reader.first(row);
    const end = first + reader.length(row);
    if (first === end) return undefined;
    const opened = packed ? out.ensure(NUMBER_BYTES).varint(tag).open() : 0;
    for (let element = first; element < end; element++) {
      if (value.reader.isNull(element)) return this.refusal;
      out.ensure(NUMBER_BYTES);
      if (!packed) out.varint(tag);
      const refusal = value.write(element, out);
      if (refusal !== undefined) return refusal;
    }
    if (packed) out.close(opened);
    return undefined;
  }
}

/** A map: entries of key (field 1) and value (field 2), both written whatever they are. */
export class MapField implements FieldWriter {
  readonly reader: ListReader;

  constructor(
    private readonly number: number,
    private readonly key: ValueWriter,
    private readonly value: ValueWriter,
    private readonly refusal: Refusal,
  ) {
    this.reader = new ListReader(new StructReader([key.reader, value.reader]));
  }

  putAll(out: PayloadRows): void {
    putAll(this, out);
  }

  put(row: number, out: WireWriter): Refusal | undefined {
    const { reader, key, value } = this;
    if (reader.isNull(row)) return undefined;
    const first = reader.first(row);
    const end = first + reader.length(row);
    for (let entry = first; entry < end; entry++) {
      if (reader.element.isNull(entry) || key.reader.isNull(entry) || value.reader.isNull(entry))
        return this.refusal;
      const opened = out
        .ensure(2 * NUMBER_BYTES)
        .varint(this.number * 8 + wire.LENGTH_DELIMITED)
        .open();
      const refusal =
        key.write(entry, out.varint(8 + key.wireType)) ??
        value.write(entry, out.ensure(NUMBER_BYTES).varint(16 + value.wireType));
      if (refusal !== undefined) return refusal;
      out.close(opened);
    }
    return undefined;
  }
}
