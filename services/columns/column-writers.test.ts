import {
  BLOB,
  DuckDBBlobValue,
  DuckDBDataChunk,
  DuckDBDecimalValue,
  DuckDBTimestampTZValue,
  type DuckDBType,
  type DuckDBValue,
  listValue,
  mapValue,
  structValue,
  VARCHAR,
} from "@duckdb/node-api";
import duckdb from "@duckdb/node-bindings";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { assertTextLayout } from "./column-layout.js";
import { type ColumnWriter, FixedColumn, TextColumn } from "./column-writers.js";
import { ListColumn, StructColumn } from "./nested-columns.js";

/** What DuckDB reads of a chunk that a writer has filled. */
function readBack(writer: ColumnWriter, rows: number): DuckDBValue[] {
  const chunk = DuckDBDataChunk.create([writer.type], rows);
  writer.flush(duckdb.data_chunk_get_vector(chunk.chunk, 0), rows);
  return kept(chunk.getColumnValues(0));
}

/** Blobs are views of the chunk's memory, which goes with the chunk. */
const kept = (values: DuckDBValue[]): DuckDBValue[] =>
  values.map((value) =>
    value instanceof DuckDBBlobValue ? Buffer.from(value.bytes).toString("hex") : value,
  );

/** The same values, handed over by the bindings' own setters. */
function reference(type: DuckDBType, values: readonly DuckDBValue[]): DuckDBValue[] {
  const chunk = DuckDBDataChunk.create([type], values.length);
  chunk.setColumns([values]);
  return kept(chunk.getColumnValues(0));
}

const text = fc.oneof(
  fc.string({ unit: "binary", maxLength: 40 }),
  fc.string({ minLength: 11, maxLength: 14 }),
  fc.string({ minLength: 100, maxLength: 3000 }),
);
const nullable = <T>(of: fc.Arbitrary<T>) => fc.option(of, { nil: null, freq: 4 });
const rowsOf = <T>(of: fc.Arbitrary<T>) => fc.array(of, { minLength: 1, maxLength: 400 });
const half = fc.nat(0xffffffff);

describe("column writers agree with the bindings' setters", () => {
  it("text and NULL, several chunks with one writer", () => {
    const writer = new TextColumn();
    fc.assert(
      fc.property(rowsOf(nullable(text)), (values) => {
        writer.begin(values.length, true);
        for (const [row, value] of values.entries()) if (value !== null) writer.setString(row, value);
        expect(readBack(writer, values.length)).toEqual(reference(VARCHAR, values));
      }),
    );
  });

  it("bytes, zeros among them", () => {
    fc.assert(
      fc.property(rowsOf(fc.uint8Array({ maxLength: 300 })), (values) => {
        const writer = new TextColumn(BLOB);
        writer.begin(values.length);
        for (const [row, value] of values.entries()) writer.set(row, Buffer.from(value), 0, value.length);
        expect(readBack(writer, values.length)).toEqual(
          values.map((value) => Buffer.from(value).toString("hex")),
        );
      }),
    );
  });

  it("rows that nothing was written to hold the column's zero, also a long one", () => {
    for (const zero of ["", "short", "UNSPECIFIED_AND_LONG"]) {
      const writer = new TextColumn(VARCHAR, Buffer.from(zero));
      writer.begin(5);
      writer.setString(1, "written");
      writer.setString(3, "written, and longer than twelve");
      writer.setNull(4);
      expect(readBack(writer, 5)).toEqual([zero, "written", zero, "written, and longer than twelve", null]);
    }
  });

  it("64-bit numbers, times and unsigned numbers", () => {
    fc.assert(
      fc.property(rowsOf(fc.tuple(half, half)), (halves) => {
        const signed = FixedColumn.bigint();
        const unsigned = FixedColumn.unsigned64();
        signed.begin(halves.length);
        unsigned.begin(halves.length);
        for (const [row, [low, high]] of halves.entries()) {
          signed.set64(row, low, high);
          unsigned.set64(row, low, high);
        }
        const wide = halves.map(([low, high]) => (BigInt(high) << 32n) | BigInt(low));
        expect(readBack(signed, halves.length)).toEqual(wide.map((value) => BigInt.asIntN(64, value)));
        expect(readBack(unsigned, halves.length)).toEqual(
          wide.map((value) => new DuckDBDecimalValue(value, 20, 0)),
        );
      }),
    );
  });

  it("times of all years", () => {
    const seconds = fc.integer({ min: -62_135_596_800, max: 253_402_300_799 });
    fc.assert(
      fc.property(rowsOf(fc.tuple(seconds, fc.nat(999_999))), (values) => {
        const writer = FixedColumn.timestamp();
        writer.begin(values.length, true);
        for (const [row, [second, micros]] of values.entries()) writer.setMicros(row, second, micros);
        const expected = values.map(
          ([s, m]) => new DuckDBTimestampTZValue(BigInt(s) * 1_000_000n + BigInt(m)),
        );
        expect(readBack(writer, values.length)).toEqual(expected);
      }),
    );
  });

  it("lists of structs, with more elements than a chunk has rows", () => {
    const element = fc.tuple(text, nullable(fc.integer()));
    const writer = (() => {
      const name = new TextColumn();
      const count = FixedColumn.integer();
      const struct = new StructColumn([
        { name: "name", writer: name },
        { name: "count", writer: count },
      ]);
      return { list: ListColumn.of(struct), name, count };
    })();
    fc.assert(
      fc.property(rowsOf(nullable(fc.array(element, { maxLength: 30 }))), (rows) => {
        writer.list.begin(rows.length);
        for (const [row, elements] of rows.entries()) {
          if (elements === null) writer.list.setNull(row);
          for (const [name, count] of elements ?? []) {
            const at = writer.list.append(row);
            writer.name.setString(at, name);
            if (count === null) writer.count.setNull(at);
            else writer.count.int32[at] = count;
          }
        }
        const expected = rows.map((elements) =>
          elements === null ? null : listValue(elements.map(([name, count]) => structValue({ name, count }))),
        );
        expect(readBack(writer.list, rows.length)).toEqual(reference(writer.list.type, expected));
      }),
      { numRuns: 50 },
    );
  });

  it("maps", () => {
    const key = new TextColumn();
    const value = FixedColumn.double();
    const map = ListColumn.map(key, value);
    map.begin(3);
    for (const [row, name, number] of [
      [0, "a", 1.5],
      [0, "a key of more than twelve bytes", -0],
      [2, "b", Number.NaN],
    ] as const) {
      const at = map.append(row);
      key.setString(at, name);
      value.float64[at] = number;
    }
    const expected = [
      mapValue([
        { key: "a", value: 1.5 },
        { key: "a key of more than twelve bytes", value: -0 },
      ]),
      mapValue([]),
      mapValue([{ key: "b", value: Number.NaN }]),
    ];
    expect(readBack(map, 3)).toEqual(expected);
  });

  it("a NULL struct's members are NULL", () => {
    const inner = new TextColumn();
    const struct = new StructColumn([{ name: "inner", writer: inner }]);
    struct.begin(2, true);
    struct.setValid(1);
    inner.setString(1, "there");
    expect(readBack(struct, 2)).toEqual([null, structValue({ inner: "there" })]);
  });

  it("the layout check passes on the pinned bindings", () => {
    expect(() => assertTextLayout()).not.toThrow();
  });
});
