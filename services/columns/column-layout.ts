import { DuckDBDataChunk, VARCHAR } from "@duckdb/node-api";
import duckdb from "@duckdb/node-bindings";
import { assert } from "../base/errors.js";
import { TextColumn } from "./column-writers.js";

let checked = false;

/**
 * Makes sure, once a process, that DuckDB reads text as `TextColumn` lays it out: inline, at the border, and by
 * pointer. A process that would write garbage ends here instead.
 */
export function assertTextLayout(): void {
  if (checked) return;
  const texts = ["", "twelve bytes", "thirteen byte", "x".repeat(70_000), "ümläut, more than twelve bytes"];
  const chunk = DuckDBDataChunk.create([VARCHAR], texts.length);
  const column = new TextColumn();
  column.begin(texts.length);
  for (const [row, text] of texts.entries()) column.setString(row, text);
  column.flush(duckdb.data_chunk_get_vector(chunk.chunk, 0), texts.length);
  const read = chunk.getColumnValues(0);
  assert(
    texts.every((text, row) => read[row] === text),
    "DuckDB lays out text in another way than this version knows",
  );
  checked = true;
}
