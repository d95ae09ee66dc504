import { type DuckDBConnection, DuckDBDataChunk, INTEGER, UINTEGER } from "@duckdb/node-api";
import { literal } from "../base/duckdb.js";
import type { DeltaTable } from "./delta-table.js";
import type { EntityKeys } from "./entity-keys.js";
import { scanKeys, scanned } from "./key-scan.js";
import { FILE_SHIFT, FLAGS, ROW, SLOT } from "./order.js";
import { withFiles } from "./scan.js";
import { holds, type Slots } from "./slot-ranges.js";
import type { TableFile } from "./types.js";

const CHUNK_ROWS = 2048;

/** SQL for the stored rows of one piece that are live, tombstones for tombstone files. */
export type PieceSql = (piece: number, columns: readonly string[]) => string;

/**
 * Divides the rows of some files by slots. `use` is given SQL for each of `pieces`, which can be run until it ends. The
 * engine does not know slots: keys are read once, and which row goes where is handed over as a table.
 */
export async function withPieces<T>(
  table: DeltaTable,
  connection: DuckDBConnection,
  keys: EntityKeys,
  sources: readonly TableFile[],
  pieces: readonly Slots[],
  use: (sql: PieceSql) => Promise<T>,
): Promise<T> {
  await connection.run(
    "CREATE OR REPLACE TEMP TABLE compact_pieces (file INTEGER, row UINTEGER, piece INTEGER)",
  );
  try {
    await placePieces(table, connection, keys, sources, pieces);
    return await withFiles(table, sources, (paths) =>
      use((piece, columns) =>
        paths
          .map(
            (path, file) =>
              `SELECT ${columns.join(", ")}
               FROM read_parquet(${literal(path)}, file_row_number=true, hive_partitioning=false)
               WHERE file_row_number IN (SELECT row FROM compact_pieces WHERE file = ${file} AND piece = ${piece})`,
          )
          .join("\nUNION ALL\n"),
      ),
    );
  } finally {
    await connection.run("DROP TABLE IF EXISTS compact_pieces");
  }
}

/** Puts down which row of which source goes into which piece. */
async function placePieces(
  table: DeltaTable,
  connection: DuckDBConnection,
  keys: EntityKeys,
  sources: readonly TableFile[],
  pieces: readonly Slots[],
): Promise<void> {
  const columns: [number[], number[], number[]] = [[], [], []];
  const places = await Promise.all(sources.map((file, i) => scanned(table, file, i << FILE_SHIFT)));
  await scanKeys(table, connection, keys, places, (record) => {
    columns[0].push(record[FLAGS]! >>> FILE_SHIFT);
    columns[1].push(record[ROW]!);
    columns[2].push(pieces.findIndex((slots) => holds(slots, record[SLOT]!)));
  });
  // Only now: what is appended while rows are being read ends the reading, as if there were no more.
  const appender = await connection.createAppender("compact_pieces", null, "temp");
  try {
    for (let at = 0; at < columns[0].length; at += CHUNK_ROWS) {
      const rows = columns.map((values) => values.slice(at, at + CHUNK_ROWS));
      const chunk = DuckDBDataChunk.create([INTEGER, UINTEGER, INTEGER], rows[0]!.length);
      chunk.setColumns(rows);
      appender.appendDataChunk(chunk);
    }
  } finally {
    appender.closeSync();
  }
}
