import { type DuckDBType, LIST, MAP, STRUCT } from "@duckdb/node-api";
import duckdb from "@duckdb/node-bindings";
import { CHUNK_ROWS, ColumnWriter, capacity, type Vector } from "./column-writers.js";

export class StructColumn extends ColumnWriter {
  readonly type: DuckDBType;

  constructor(readonly children: readonly { readonly name: string; readonly writer: ColumnWriter }[]) {
    super();
    this.type = STRUCT(Object.fromEntries(children.map(({ name, writer }) => [name, writer.type])));
  }

  /** A NULL struct's members are NULL too: DuckDB reads them without asking the struct. */
  override begin(rows: number, allNull = false): void {
    super.begin(rows, allNull);
    for (const { writer } of this.children) writer.begin(rows, allNull);
  }

  override reserve(rows: number): void {
    super.reserve(rows);
    for (const { writer } of this.children) writer.reserve(rows);
  }

  override setNull(row: number): void {
    super.setNull(row);
    for (const { writer } of this.children) writer.setNull(row);
  }

  setZero(row: number): void {
    this.setValid(row);
    for (const { writer } of this.children) writer.setZero(row);
  }

  override flush(vector: Vector, rows: number): void {
    for (const [index, { writer }] of this.children.entries()) {
      writer.flush(duckdb.struct_vector_get_child(vector, index), rows);
    }
    super.flush(vector, rows);
  }
}

/** LIST and MAP: a row's elements follow each other in `element`, in the order in which `append` was called. */
export class ListColumn extends ColumnWriter {
  readonly type: DuckDBType;
  /** Offset and length a row, each as two words. */
  private entries = new Uint32Array(CHUNK_ROWS * 4);
  private elements = 0;

  private constructor(
    type: DuckDBType,
    readonly element: ColumnWriter,
  ) {
    super();
    this.type = type;
  }

  static of(element: ColumnWriter): ListColumn {
    return new ListColumn(LIST(element.type), element);
  }

  static map(key: ColumnWriter, value: ColumnWriter): ListColumn {
    const entry = new StructColumn([
      { name: "key", writer: key },
      { name: "value", writer: value },
    ]);
    return new ListColumn(MAP(key.type, value.type), entry);
  }

  override begin(rows: number, allNull = false): void {
    super.begin(rows, allNull);
    this.entries.fill(0);
    this.elements = 0;
    this.element.begin(0);
  }

  override reserve(rows: number): void {
    super.reserve(rows);
    if (rows * 4 <= this.entries.length) return;
    const grown = new Uint32Array(capacity(rows) * 4);
    grown.set(this.entries);
    this.entries = grown;
  }

  /** Adds an element to a row and returns its row within `element`, there to be written. */
  append(row: number): number {
    const index = this.elements++;
    this.growElement();
    const at = row * 4;
    if (this.entries[at + 2] === 0) this.entries[at] = index;
    this.entries[at + 2]!++;
    this.setValid(row);
    return index;
  }

  /** Elements of the row so far. */
  length(row: number): number {
    return this.entries[row * 4 + 2]!;
  }

  /** An empty list. */
  setZero(row: number): void {
    this.entries[row * 4 + 2] = 0;
    this.setValid(row);
  }

  /** Begun elements are zero and not NULL, a growing step at a time. */
  private growElement(): void {
    const { elements } = this;
    if ((elements & (elements - 1)) !== 0 && elements !== 1) return;
    this.element.reserve(elements * 2);
  }

  override flush(vector: Vector, rows: number): void {
    if (rows === 0) return;
    duckdb.list_vector_reserve(vector, Math.max(this.elements, 1));
    duckdb.list_vector_set_size(vector, this.elements);
    this.element.flush(duckdb.list_vector_get_child(vector), this.elements);
    duckdb.copy_data_to_vector(vector, 0, this.entries.buffer as ArrayBuffer, 0, rows * 16);
    super.flush(vector, rows);
  }
}
