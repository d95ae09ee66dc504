import { BLOB, DuckDBDataChunk } from "@duckdb/node-api";
import duckdb from "@duckdb/node-bindings";
import fc from "fast-check";
import { expect, test } from "vitest";
import { Duck } from "../base/duckdb.js";
import { type ColumnReader, FixedReader, ListReader, StructReader, TextReader } from "./column-readers.js";
import { type ColumnWriter, FixedColumn, TextColumn } from "./column-writers.js";
import { ListColumn, StructColumn } from "./nested-columns.js";

/** Hands a chunk that `writer` has filled to `reader`, and the chunk to be held while that is read. */
function handOver(writer: ColumnWriter, reader: ColumnReader, rows: number): DuckDBDataChunk {
  const chunk = DuckDBDataChunk.create([writer.type], rows);
  const vector = duckdb.data_chunk_get_vector(chunk.chunk, 0);
  writer.flush(vector, rows);
  reader.take(vector, rows);
  return chunk;
}

const rowsOf = <T>(of: fc.Arbitrary<T>) => fc.array(of, { minLength: 1, maxLength: 300 });
const nullable = <T>(of: fc.Arbitrary<T>) => fc.option(of, { nil: null, freq: 4 });

test("texts and NULLs are read as they were written, by one reader chunk after chunk", () => {
  const writer = new TextColumn(BLOB);
  const reader = new TextReader();
  const bytes = fc.oneof(fc.uint8Array({ maxLength: 14 }), fc.uint8Array({ maxLength: 400 }));
  fc.assert(
    fc.property(rowsOf(nullable(bytes)), (values) => {
      writer.begin(values.length, true);
      for (const [row, value] of values.entries()) {
        if (value !== null) writer.set(row, Buffer.from(value), 0, value.length);
      }
      const chunk = handOver(writer, reader, values.length);
      const read = values.map((_, row) => (reader.isNull(row) ? null : Uint8Array.from(reader.view(row))));
      expect(chunk.rowCount).toBe(values.length);
      expect(read).toEqual(values.map((value) => value && Uint8Array.from(value)));
    }),
  );
});

test("texts that a table of the engine keeps, in falling order, are fetched together", async () => {
  const duck = await Duck.create({ memoryBytes: 64 * 1024 * 1024 });
  const connection = await duck.connect();
  await connection.run(
    "CREATE TABLE kept AS SELECT 'a text that lies elsewhere, ' || i AS t FROM range(2000) r(i)",
  );
  const chunk = (await (await connection.stream("SELECT t FROM kept")).fetchChunk())!;
  const reader = new TextReader();
  reader.take(duckdb.data_chunk_get_vector(chunk.chunk, 0), chunk.rowCount);
  const read = Array.from({ length: chunk.rowCount }, (_, row) => Buffer.from(reader.view(row)).toString());
  expect(read).toEqual(Array.from({ length: 2000 }, (_, i) => `a text that lies elsewhere, ${i}`));
  expect(new Set(read.map((_, row) => reader.run(row))).size).toBeLessThan(20);
  connection.closeSync();
  duck.close();
});

test("lists of structs of numbers and texts, more elements than a chunk has rows", () => {
  const number = FixedColumn.integer();
  const text = new TextColumn();
  const list = ListColumn.of(
    new StructColumn([
      { name: "n", writer: number },
      { name: "t", writer: text },
    ]),
  );
  const numbers = new FixedReader(4);
  const texts = new TextReader();
  const reader = new ListReader(new StructReader([numbers, texts]));
  const element = fc.tuple(nullable(fc.integer()), fc.string({ maxLength: 30 }));
  fc.assert(
    fc.property(rowsOf(nullable(fc.array(element, { maxLength: 20 }))), (rows) => {
      list.begin(rows.length);
      for (const [row, elements] of rows.entries()) {
        if (elements === null) list.setNull(row);
        for (const [n, t] of elements ?? []) {
          const at = list.append(row);
          text.setString(at, t);
          if (n === null) number.setNull(at);
          else number.int32[at] = n;
        }
      }
      const chunk = handOver(list, reader, rows.length);
      const read = rows.map((_, row) => {
        if (reader.isNull(row)) return null;
        return Array.from({ length: reader.length(row) }, (_, index) => {
          const at = reader.first(row) + index;
          return [
            numbers.isNull(at) ? null : numbers.words[at],
            Buffer.from(texts.view(at)).toString("utf8"),
          ];
        });
      });
      expect(chunk.rowCount).toBe(rows.length);
      expect(read).toEqual(rows);
    }),
    { numRuns: 50 },
  );
});
