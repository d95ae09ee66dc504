import type { DuckDBConnection } from "@duckdb/node-api";
import { literal, rowsOf } from "../base/duckdb.js";
import type { DeltaTable } from "./delta-table.js";
import { withFiles } from "./scan.js";
import type { TableFile } from "./types.js";

/** What the engine keeps of a value beside its bytes. */
const VALUE_BYTES = 16;

/**
 * Bytes that the rows of each file take once they are read, in the order of `files`. By the files' own footers: what
 * repeats is stored once, however often it is read. Of a file by another writer that does not tell how many values
 * are distinct, it may be more.
 */
export async function decodedBytes(
  table: DeltaTable,
  connection: DuckDBConnection,
  files: readonly TableFile[],
): Promise<number[]> {
  if (files.length === 0) return [];
  return withFiles(table, files, async (paths) => {
    const rows = await rowsOf(
      connection,
      `SELECT file_name, sum(num_values * ${VALUE_BYTES} + total_uncompressed_size *
         CASE WHEN stats_distinct_count > 0 THEN num_values / stats_distinct_count ELSE 1 END)::DOUBLE
       FROM parquet_metadata([${paths.map(literal).join(", ")}]) GROUP BY file_name`,
    );
    const bytes = new Map(rows.map(([path, sum]) => [String(path), Number(sum)]));
    return paths.map((path) => bytes.get(path) ?? 0);
  });
}
