import type { DescMessage, FileRegistry } from "@bufbuild/protobuf";
import type { DuckDBConnection, DuckDBDataChunk, DuckDBType } from "@duckdb/node-api";
import duckdb from "@duckdb/node-bindings";
import { assert } from "../base/errors.js";
import { type ColumnReader, FixedReader, TextReader } from "../columns/column-readers.js";
import { PayloadDecoder } from "./payload-columns.js";
import type { Source } from "./payload-conversions.js";
import { absentOf, type Mirror } from "./payload-mirror.js";
import type { PayloadRows } from "./payload-rows.js";
import { Shapes } from "./payload-shapes.js";
import type { FieldWriter, Refusal } from "./payload-values.js";

type Chunk = DuckDBDataChunk["chunk"];

/** By which rows may differ in what they hold beside texts, before they have to move. */
const MARGIN = 64;

/**
 * Turns rows of foreign columns into payload bytes, without building message objects: the reverse of `PayloadDecoder`.
 * Columns as that one makes them become the payload that it read. Beside these a field takes
 *
 * | field                     | from                                                                              |
 * |---------------------------|-----------------------------------------------------------------------------------|
 * | number                    | any number that is one of its values, as it is or as text                         |
 * | bool                      | BOOLEAN, 0 and 1, text                                                            |
 * | enum                      | name or number                                                                    |
 * | string                    | text, and what has one: numbers, times, UUID, truth values; BLOB that is UTF-8    |
 * | bytes                     | BLOB, base64                                                                      |
 * | Timestamp                 | times, of UTC where they have no zone; DATE; text                                 |
 * | Duration                  | microseconds, INTERVAL without months, text of proto3 JSON ("1.5s")               |
 * | message, group            | STRUCT by names of fields (proto or JSON), BLOB of its bytes, text of proto3 JSON |
 * | Struct, Value, ListValue  | text of JSON, any nested value                                                    |
 * | repeated                  | LIST, ARRAY, text of a JSON array                                                 |
 * | map                       | MAP, LIST of STRUCT(key, value), text of a JSON object                            |
 *
 * A value is taken exactly or refused, and with it its row. NULL is an absent field, an empty list or map; an element
 * that is NULL is refused, as are two members of one oneof. The encoding is canonical: fields in the order of their
 * numbers, zeros of fields without presence left out, lists packed where the file says so; maps as they come.
 */
export class PayloadEncoder {
  /** What to select of the relation, for `take` to find it in this order. */
  readonly columns: readonly string[];
  private readonly wrong = new FixedReader(4);
  private readonly readers: readonly ColumnReader[];
  private readonly fields: readonly FieldWriter[];
  private readonly refusals: readonly Refusal[];
  private readonly mirrors: ReadonlyMap<string, readonly [number, Mirror | undefined]>;
  private readonly texts: readonly TextReader[];
  /** Readers look into its memory. */
  private chunk: Chunk | undefined;
  private rows = 0;
  /** About so many bytes each row has, and those beside texts. */
  private expected = new Uint32Array(0);
  private others = 4 * MARGIN;

  private constructor(
    private readonly type: DescMessage,
    types: FileRegistry,
    sources: ReadonlyMap<string, Source>,
  ) {
    const refusals: Refusal[] = [];
    const { columns, fields, wrong, mirrors } = new Shapes(types, refusals).message(type, sources, []);
    this.mirrors = mirrors;
    this.columns = [wrong ?? "NULL::INTEGER", ...columns.map(({ sql }) => sql)];
    this.readers = [this.wrong, ...columns.map(({ reader }) => reader)];
    this.texts = this.readers.filter((reader) => reader instanceof TextReader);
    this.fields = fields;
    this.refusals = refusals;
  }

  /**
   * An encoder of payloads of a type whose fields, by name, are these SQL expressions over the columns of `relation`
   * (what stands behind FROM; it is bound, not read). `types` is where Any looks its messages up.
   * Errors: TRB-MODEL-INVALID for a field that the type has not, one of another type than its column can give, or a
   * required one that is left out; the engine's own for expressions that it does not bind.
   */
  static async bind(
    connection: DuckDBConnection,
    relation: string,
    type: DescMessage,
    types: FileRegistry,
    expressions: Readonly<Record<string, string>>,
  ): Promise<PayloadEncoder> {
    const names = Object.keys(expressions);
    if (names.length === 0) return new PayloadEncoder(type, types, new Map());
    const list = names.map((name) => `(${expressions[name]!})`);
    const result = await connection.run(`SELECT ${list.join(", ")} FROM ${relation} LIMIT 0`);
    const sources = names.map((name, at): [string, Source] => [
      name,
      { sql: list[at]!, type: result.columnType(at) },
    ]);
    return new PayloadEncoder(type, types, new Map(sources));
  }

  /**
   * SQL of what a `PayloadDecoder` makes of each field of a payload that was encoded, over `columns` by what they are
   * called; undefined where only its bytes tell.
   */
  decoded(
    names: readonly string[],
  ): ReadonlyMap<string, { readonly type: DuckDBType; readonly sql: string | undefined }> {
    return new Map(
      new PayloadDecoder(this.type).columns.map(({ name, type }, at) => {
        const [column, mirror] = this.mirrors.get(name) ?? [];
        const sql = column === undefined ? absentOf(this.type.fields[at]!) : mirror?.(names[column + 1]!);
        return [name, { type, sql: sql && `(${sql})::${type}` }];
      }),
    );
  }

  /** Why the engine says that a row is no payload, in `columns[0]`. */
  refusal(code: number): Refusal {
    return this.refusals[code]!;
  }

  /** Encodes rows of this chunk from now on, whose columns from `first` on are `columns`. */
  take({ chunk, rowCount }: DuckDBDataChunk, first: number): void {
    this.takeVectors(chunk, rowCount, first);
  }

  /** As `take`, of a chunk as the engine hands it to a function. */
  takeVectors(chunk: Chunk, rows: number, first: number): void {
    this.chunk = chunk;
    this.rows = rows;
    for (const [index, reader] of this.readers.entries()) {
      reader.take(duckdb.data_chunk_get_vector(chunk, first + index), rows);
    }
  }

  /** Lets go of the chunk. */
  release(): void {
    this.chunk = undefined;
  }

  /**
   * Writes payloads of rows from `first` on, as many as go together; `out` has them, and what the others were refused
   * with.
   */
  encode(first: number, out: PayloadRows): void {
    assert(this.chunk !== undefined, "a payload is encoded of a chunk that is held");
    const { wrong, rows, texts } = this;
    if (this.expected.length < rows) this.expected = new Uint32Array(rows);
    const { expected } = this;
    expected.fill(this.others, first, rows);
    for (const text of texts) text.addLengths(first, rows, expected);
    out.begin(first, rows, expected);
    for (let row = first; row < out.end; row++)
      if (!wrong.isNull(row)) out.refuse(row, this.refusals[wrong.words[row]!]!);
    for (const field of this.fields) field.putAll(out);
    this.learn(out);
  }

  /** What there was beside texts will be there of rows to come. */
  private learn(out: PayloadRows): void {
    let [bytes, rows] = [0, 0];
    for (let row = out.first; row < out.end; row++) {
      if (out.skipped[row] !== 0) continue;
      bytes += out.ends[row]! - out.from(row) - (this.expected[row]! - this.others);
      rows++;
    }
    if (rows > 0) this.others = Math.ceil(Math.max(0, bytes / rows) * 1.25) + MARGIN;
  }
}
