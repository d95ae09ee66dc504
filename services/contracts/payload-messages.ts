import { type DescMessage, type FileRegistry, fromJson, type JsonValue, toBinary } from "@bufbuild/protobuf";
import { type ColumnReader, StructReader, TextReader } from "../columns/column-readers.js";
import { exactNumbers } from "./json-numbers.js";
import { GivenTwice, parseJson } from "./json-text.js";
import { PayloadChecker } from "./payload.js";
import type { PayloadRows } from "./payload-rows.js";
import {
  type FieldWriter,
  NUMBER_BYTES,
  type OneValue,
  putAll,
  type Refusal,
  type ValueWriter,
} from "./payload-values.js";
import * as wire from "./wire.js";
import type { WireWriter } from "./wire-writer.js";

/** How messages get out of columns into a payload. */

function writeAll(value: ValueWriter, { tag, presence, missing }: OneValue, out: PayloadRows): void {
  const put = (row: number, to: WireWriter) => {
    if (value.reader.isNull(row)) return missing;
    if (!presence && value.isZero(row)) return undefined;
    return value.write(row, to.varint(tag));
  };
  putAll({ put }, out);
}

/** A wrapper (StringValue, …): a message whose one field, number 1, has no presence. */
export class WrapperWriter implements ValueWriter {
  readonly reader: ColumnReader;
  readonly wireType = wire.LENGTH_DELIMITED;

  constructor(private readonly inner: ValueWriter) {
    this.reader = inner.reader;
  }

  writeAll(field: OneValue, out: PayloadRows): void {
    writeAll(this, field, out);
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

  writeAll(field: OneValue, out: PayloadRows): void {
    writeAll(this, field, out);
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

  writeAll(field: OneValue, out: PayloadRows): void {
    writeAll(this, field, out);
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
