import { type DescField, type DescMessage, type FileRegistry, ScalarType } from "@bufbuild/protobuf";
import { FeatureSet_FieldPresence as Presence } from "@bufbuild/protobuf/wkt";
import { type DuckDBStructType, DuckDBTypeId as Id } from "@duckdb/node-api";
import { TributaryError } from "../base/errors.js";
import type { ColumnReader } from "../columns/column-readers.js";
import { expectation } from "./json.js";
import {
  type Conversion,
  convert,
  convertEnum,
  entriesOf,
  listOf,
  type Source,
  TARGETS,
} from "./payload-conversions.js";
import { MapField, RepeatedField, SingularField } from "./payload-fields.js";
import { MessageWriter, WholeMessageWriter, WrapperWriter } from "./payload-messages.js";
import {
  type Mirror,
  mirrorOfEnum,
  mirrorOfScalar,
  same,
  structOf,
  TIMESTAMPS,
  zeroOf,
} from "./payload-mirror.js";
import {
  type FieldWriter,
  NumberWriter,
  type Refusal,
  TextWriter,
  type ValueWriter,
} from "./payload-values.js";
import { WELL_KNOWN } from "./scalar-columns.js";
import * as wire from "./wire.js";

/** A column, and who reads it. */
export interface Column {
  readonly sql: string;
  readonly reader: ColumnReader;
  /** SQL: the number of the refusal of a value that does not fit, else NULL. Absent: every value fits. */
  readonly wrong: string | undefined;
  /** The column is the source's own. */
  readonly same: boolean;
  /** Undefined where only the bytes tell what a decoder makes of them. */
  readonly mirror: Mirror | undefined;
}

interface ValueColumn extends Column {
  readonly writer: ValueWriter;
}

export interface MessageShape {
  readonly columns: readonly Column[];
  /** In the order of their numbers. */
  readonly fields: readonly FieldWriter[];
  readonly wrong: string | undefined;
  /** By the field's name, of those that are given: the number of its column, and what a decoder makes of it. */
  readonly mirrors: ReadonlyMap<string, readonly [number, Mirror | undefined]>;
}

/**
 * The columns and writers of a type's fields, of what they are to come from: the relation's own expressions, or within
 * them. Numbers the refusals, so that SQL can name one.
 */
export class Shapes {
  private lambdas = 0;
  /** The messages that hold the one that is looked at, and itself. */
  private readonly within: DescMessage[] = [];

  constructor(
    private readonly types: FileRegistry,
    private readonly refusals: Refusal[],
  ) {}

  message(type: DescMessage, sources: ReadonlyMap<string, Source>, path: readonly string[]): MessageShape {
    const given = new Map<DescField, Source>();
    for (const [name, source] of sources) {
      const field = type.fields.find((one) => one.name === name || one.jsonName === name);
      if (field === undefined) throw invalid([...path, name], `a field of ${type.typeName}`);
      if (given.has(field)) throw invalid([...path, field.name], "one column");
      given.set(field, source);
    }
    const required = type.fields.find(
      (field) => field.presence === Presence.LEGACY_REQUIRED && !given.has(field),
    );
    if (required !== undefined) throw invalid([...path, required.name], "a column, for it is required");
    this.within.push(type);
    const shapes = [...given].map(([field, source]) => ({
      field,
      ...this.field(field, source, [...path, field.name]),
    }));
    this.within.pop();
    const wrong = shapes.flatMap((shape) => shape.wrong ?? []);
    for (const { name, fields } of type.oneofs) {
      const members = fields.flatMap((field) => given.get(field)?.sql ?? []);
      if (members.length < 2) continue;
      const count = members.map((sql) => `(${sql} IS NOT NULL)::INTEGER`).join(" + ");
      const refused = this.refusal([...path, name], "one of its members");
      wrong.push(`CASE WHEN ${count} > 1 THEN ${refused.code} END`);
    }
    return {
      columns: shapes,
      fields: [...shapes].sort((a, b) => a.field.number - b.field.number).map(({ put }) => put),
      wrong: all(wrong),
      mirrors: new Map(shapes.map(({ field, mirror }, at) => [field.name, [at, mirror]])),
    };
  }

  private field(field: DescField, source: Source, path: readonly string[]): Column & { put: FieldWriter } {
    if (field.fieldKind === "map") return this.map(field, source, path);
    if (field.fieldKind === "list") return this.list(field, source, path);
    const value = this.value(field, source, path);
    const presence = field.message !== undefined || field.presence !== Presence.IMPLICIT;
    const required = field.presence === Presence.LEGACY_REQUIRED;
    const missing = required ? this.refusal(path, `${expectation(field)}, which is required`) : undefined;
    const { mirror } = value;
    return {
      ...value,
      mirror: mirror && !presence ? (sql) => `coalesce(${mirror(sql)}, ${zeroOf(field)})` : mirror,
      put: new SingularField(field.number, value.writer, presence, missing),
    };
  }

  private list(
    field: DescField & { fieldKind: "list" },
    source: Source,
    path: readonly string[],
  ): Column & { put: FieldWriter } {
    const refused = this.refusal(path, expectation(field));
    const whole = listOf(source, isJson(field.message));
    if (whole === undefined) throw invalid(path, expectation(field));
    const each = this.lambda();
    const value = this.value(field, { sql: each, type: whole.type.valueType }, path);
    const put = new RepeatedField(field.number, value.writer, field.packed, refused);
    const sql = value.same ? whole.sql : `list_transform(${whole.sql}, lambda ${each}: ${value.sql})`;
    const wrong = all([
      whole.partial ? refused.unless(source.sql, whole.sql) : undefined,
      value.wrong && `list_min(list_transform(${whole.sql}, lambda ${each}: ${value.wrong}))`,
    ]);
    const { mirror: one } = value;
    const mirror = one && ((list: string): string => `coalesce(${this.each(list, one)}, [])`);
    return { sql, wrong, put, mirror, reader: put.reader, same: sql === source.sql };
  }

  private each(list: string, one: Mirror): string {
    if (one === same) return list;
    const each = this.lambda();
    return `list_transform(${list}, lambda ${each}: ${one(each)})`;
  }

  private map(
    field: DescField & { fieldKind: "map" },
    source: Source,
    path: readonly string[],
  ): Column & { put: FieldWriter } {
    const refused = this.refusal(path, expectation(field));
    const whole = entriesOf(source, isJson(field.message));
    if (whole === undefined) throw invalid(path, expectation(field));
    const each = this.lambda();
    const member = (at: number): Source => ({
      sql: `struct_extract_at(${each}, ${at + 1})`,
      type: whole.type.entryTypes[at]!,
    });
    const key = this.scalar(field.mapKey, field, member(0), path);
    const value = this.value(field, member(1), path);
    const put = new MapField(field.number, key.writer, value.writer, refused);
    const transformed = (of: string): string => `list_transform(${whole.sql}, lambda ${each}: ${of})`;
    const own = key.same && value.same;
    // DuckDB sees to it that keys of a map differ; of others, and of what keys are converted to, nobody does.
    const distinct = whole.map && key.same;
    const keys = transformed(key.sql);
    const wrong = all([
      whole.partial ? refused.unless(source.sql, whole.sql) : undefined,
      key.wrong && `list_min(${transformed(key.wrong)})`,
      value.wrong && `list_min(${transformed(value.wrong)})`,
      distinct ? undefined : `CASE WHEN len(list_distinct(${keys})) < len(${keys}) THEN ${refused.code} END`,
    ]);
    const sql = own ? whole.sql : transformed(`struct_pack(f0 := ${key.sql}, f1 := ${value.sql})`);
    const [keyMirror, valueMirror] = [key.mirror, value.mirror];
    const entry: Mirror | undefined =
      keyMirror === same && valueMirror === same
        ? same
        : keyMirror &&
          valueMirror &&
          ((of) =>
            `struct_pack(k := ${keyMirror(`struct_extract_at(${of}, 1)`)}, v := ${valueMirror(`struct_extract_at(${of}, 2)`)})`);
    const mirror =
      entry && ((list: string): string => `coalesce(map_from_entries(${this.each(list, entry)}), MAP {})`);
    return { sql, wrong, put, mirror, reader: put.reader, same: sql === source.sql };
  }

  /** One value: of a field, an element or a map. */
  private value(field: DescField, source: Source, path: readonly string[]): ValueColumn {
    const { message } = field;
    if (field.enum !== undefined) {
      const refused = this.refusal(path, expectation(field));
      const converted = convertEnum(source, field.enum) ?? refused.never();
      const writer = NumberWriter.scalar(ScalarType.INT32, refused);
      return column(source, converted, writer, refused, mirrorOfEnum(field.enum));
    }
    if (message === undefined) return this.scalar(field.scalar!, field, source, path);
    switch (message.typeName) {
      case "google.protobuf.Timestamp": {
        const refused = this.refusal(path, `${expectation(field)} of the years 1 to 9999`);
        const converted = convert(source, "TIMESTAMPTZ") ?? refused.never();
        return column(source, converted, NumberWriter.timestamp(refused), refused, TIMESTAMPS);
      }
      case "google.protobuf.Duration": {
        const refused = this.refusal(path, `${expectation(field)} of at most 10,000 years`);
        const converted = convert(source, "DURATION") ?? refused.never();
        return column(source, converted, NumberWriter.duration(refused), refused, same);
      }
    }
    if (!isJson(message)) {
      const inner = this.scalar(message.field.value!.scalar!, message.field.value!, source, path);
      return { ...inner, writer: new WrapperWriter(inner.writer) };
    }
    return source.type.typeId === Id.STRUCT && WELL_KNOWN[message.typeName] === undefined
      ? this.struct(field, message, { sql: source.sql, type: source.type as DuckDBStructType }, path)
      : this.wholeMessage(field, message, source, path);
  }

  private scalar(type: ScalarType, field: DescField, source: Source, path: readonly string[]): ValueColumn {
    const refused = this.refusal(path, expectation(field));
    const converted = convert(source, TARGETS[type]) ?? refused.never();
    const utf8 = type === ScalarType.STRING && field.utf8Validation;
    const text = type === ScalarType.STRING || type === ScalarType.BYTES;
    const writer = text ? new TextWriter(utf8 ? refused : undefined) : NumberWriter.scalar(type, refused);
    const mirror = source.type.typeId === Id.BLOB && text ? blobMirror(type) : mirrorOfScalar(type);
    return column(source, converted, writer, refused, mirror);
  }

  private struct(
    field: DescField,
    message: DescMessage,
    { sql, type }: { sql: string; type: DuckDBStructType },
    path: readonly string[],
  ): ValueColumn {
    const sources = type.entryNames.map((name, at): [string, Source] => [
      name,
      { sql: `struct_extract_at(${sql}, ${at + 1})`, type: type.entryTypes[at]! },
    ]);
    const { columns, fields, wrong, mirrors } = this.message(message, new Map(sources), path);
    const members = columns.map((one, at) => `f${at} := ${one.sql}`);
    const own = columns.every((one) => one.same);
    const readers = columns.map(({ reader }) => reader);
    const writer = new MessageWriter(fields, readers, endTagOf(field));
    return {
      sql: own ? sql : `CASE WHEN ${sql} IS NOT NULL THEN struct_pack(${members.join(", ")}) END`,
      wrong,
      same: own,
      // A decoder leaves a message inside itself as bytes.
      mirror: this.within.includes(message) ? undefined : structOf(message, mirrors),
      writer,
      reader: writer.reader,
    };
  }

  /** Bytes, or JSON: as text, or of what can be written as such. */
  private wholeMessage(
    field: DescField,
    message: DescMessage,
    source: Source,
    path: readonly string[],
  ): ValueColumn {
    const refused = this.refusal(path, expectation(field));
    const { typeId } = source.type;
    const types = typeId === Id.BLOB ? undefined : this.types;
    const writer = new WholeMessageWriter(message, types, endTagOf(field), refused);
    let { sql } = source;
    if (typeId !== Id.VARCHAR && typeId !== Id.BLOB) {
      if (WELL_KNOWN[message.typeName] === undefined) refused.never();
      sql = `CASE WHEN ${sql} IS NOT NULL THEN to_json(${sql})::VARCHAR END`;
    }
    const stays = typeId === Id.BLOB && (message.fields.length === 0 || this.within.includes(message));
    return column(source, { sql, partial: false }, writer, refused, stays ? same : undefined);
  }

  private lambda(): string {
    return `element_${this.lambdas++}`;
  }

  private refusal(path: readonly string[], expected: string): CodedRefusal {
    const refusal = new CodedRefusal(this.refusals.length, path, expected);
    this.refusals.push(refusal);
    return refusal;
  }
}

class CodedRefusal implements Refusal {
  readonly field: string;
  readonly message: string;

  constructor(
    /** Its place among those of the encoder. */
    readonly code: number,
    private readonly path: readonly string[],
    private readonly expected: string,
  ) {
    this.field = path.join(".");
    this.message = `payload.${this.field}: expected ${expected}`;
  }

  /** SQL: this refusal's number where a value became NULL. */
  unless(before: string, after: string): string {
    return `CASE WHEN ${before} IS NOT NULL AND ${after} IS NULL THEN ${this.code} END`;
  }

  /** No value of the column is one of the field. */
  never(): never {
    throw invalid(this.path, this.expected);
  }
}

const invalid = (path: readonly string[], expected: string): TributaryError =>
  new TributaryError("TRB-MODEL-INVALID", `payload.${path.join(".")}: expected ${expected}`);

const column = <W extends ValueWriter>(
  source: Source,
  { sql, partial }: Conversion,
  writer: W,
  refused: CodedRefusal,
  mirror: Mirror | undefined,
): ValueColumn => ({
  sql,
  writer,
  mirror,
  reader: writer.reader,
  same: sql === source.sql,
  wrong: partial ? refused.unless(source.sql, sql) : undefined,
});

/** Bytes stay bytes on their way into a payload, also those that are text. */
const blobMirror = (type: ScalarType): Mirror | undefined =>
  type === ScalarType.STRING ? undefined : mirrorOfScalar(type);

/** SQL: the first of these that is not NULL. */
function all(wrong: readonly (string | undefined)[]): string | undefined {
  const some = wrong.filter((one) => one !== undefined);
  return some.length === 0 ? undefined : `coalesce(${some.join(", ")})`;
}

/** Whether a text that stands for a value of the type is JSON, rather than the text of a scalar or a time. */
const isJson = (message: DescMessage | undefined): boolean =>
  message !== undefined && (JSON_TYPES.has(message.typeName) || WELL_KNOWN[message.typeName] === undefined);
const JSON_TYPES: ReadonlySet<string> = new Set([
  "google.protobuf.Struct",
  "google.protobuf.Value",
  "google.protobuf.ListValue",
]);

/** The tag that ends a group; 0 for what is no group. */
const endTagOf = (field: DescField): number =>
  field.fieldKind !== "map" && field.message !== undefined && field.delimitedEncoding
    ? field.number * 8 + wire.END_GROUP
    : 0;
