import type { DuckDBConnection, DuckDBDataChunk } from "@duckdb/node-api";
import duckdb from "@duckdb/node-bindings";
import { chunksOf, literal } from "../base/duckdb.js";
import { FixedReader, TextReader } from "../columns/column-readers.js";
import type { DeltaTable } from "./delta-table.js";
import type { EntityKeys } from "./entity-keys.js";
import type { Mask } from "./mask.js";
import {
  CONTENT_HI,
  CONTENT_LO,
  FLAGS,
  OCCURRED_HI,
  OCCURRED_LO,
  ROW,
  VERSION_HI,
  VERSION_LO,
  WORDS,
} from "./order.js";
import { portionsOf, withFiles } from "./scan.js";
import type { TableFile } from "./types.js";

/** Reads keys and order columns back from a table's files, as records (order.ts). */

/** Of types that OrderReader relies on, whatever a file has. */
const ORDER_SELECT = `f._tributary_version::BIGINT, f._tributary_operation::TINYINT, f._tributary_hash::BIGINT,
  epoch_us(f._tributary_occurred_at), f.file_row_number::BIGINT`;
const ORDER_COLUMNS = 5;

/** Files of fewer rows are read by one statement, so many at once: what a statement costs by itself adds up. */
const SMALL_ROWS = 10_000;
const TOGETHER = 64;

/** A file as it is to be read: what FLAGS of its rows' records say beside the operation, and rows that do not count. */
export interface ScannedFile {
  readonly path: string;
  readonly rows: number;
  readonly bytes: number;
  readonly place: number;
  readonly mask: Mask | undefined;
}

/**
 * A file of the table, `place` as FLAGS say it. Masked rows do not count: who superseded one stands elsewhere, and one
 * that lost against its equal must not pass for it. Tombstones are all masked, and all count.
 */
export async function scanned(table: DeltaTable, file: TableFile, place: number): Promise<ScannedFile> {
  const mask = file.tombstones ? undefined : await table.mask(file);
  return { path: file.path, rows: file.rows, bytes: file.bytes, place, mask };
}

/** Calls back with the record of every row that counts; the record is reused. Of one file rows come in their order. */
export async function scanKeys(
  table: DeltaTable,
  connection: DuckDBConnection,
  keys: EntityKeys,
  files: readonly ScannedFile[],
  use: (record: Uint32Array) => void,
): Promise<void> {
  const small = files.filter(({ rows }) => rows < SMALL_ROWS);
  for (let at = 0; at < small.length; at += TOGETHER)
    await scanTogether(table, connection, keys, small.slice(at, at + TOGETHER), use);
  for (const file of files) {
    if (file.rows >= SMALL_ROWS) await scanTogether(table, connection, keys, [file], use);
  }
}

const scanTogether = (
  table: DeltaTable,
  connection: DuckDBConnection,
  keys: EntityKeys,
  files: readonly ScannedFile[],
  use: (record: Uint32Array) => void,
): Promise<void> => withFiles(table, files, (paths) => scanPaths(connection, keys, files, paths, use));

async function scanPaths(
  connection: DuckDBConnection,
  keys: EntityKeys,
  files: readonly ScannedFile[],
  paths: readonly string[],
  use: (record: Uint32Array) => void,
): Promise<void> {
  const names = files.length === 1 ? "" : ", f.filename";
  const sql = `SELECT ${ORDER_SELECT}, f.tenant_id, f.entity_id${names}
     FROM read_parquet([${paths.map(literal).join(", ")}], filename=true, file_row_number=true,
                       hive_partitioning=false) f`;
  const byPath = new Map(paths.map((path, i) => [path, files[i]!]));
  const record = new Uint32Array(WORDS);
  const order = new OrderReader();
  const [tenants, entities] = [new TextReader(), new TextReader()];
  for await (const chunk of chunksOf(connection, sql)) {
    const rows = chunk.rowCount;
    order.take(chunk);
    tenants.take(duckdb.data_chunk_get_vector(chunk.chunk, ORDER_COLUMNS), rows);
    entities.take(duckdb.data_chunk_get_vector(chunk.chunk, ORDER_COLUMNS + 1), rows);
    const filenames = files.length === 1 ? undefined : (chunk.getColumnValues(ORDER_COLUMNS + 2) as string[]);
    for (let row = 0; row < rows; row++) {
      const { place, mask } = filenames === undefined ? files[0]! : byPath.get(filenames[row]!)!;
      order.fill(record, row, place);
      if (mask?.has(record[ROW]!) === true) continue;
      const [tenant, id] = [tenants.startOf(row), entities.startOf(row)];
      keys.put(
        record,
        0,
        tenants.bytesOf(row),
        tenant,
        tenant + tenants.words[row * 4]!,
        entities.bytesOf(row),
        id,
        id + entities.words[row * 4]!,
      );
      use(record);
    }
  }
}

/**
 * Calls back with the record, but for its key, and the ordinal of every row that counts and whose key is among those
 * of `keys`, a relation (ord, tenant_id, entity_id).
 */
export async function joinKeys(
  table: DeltaTable,
  connection: DuckDBConnection,
  keys: string,
  files: readonly ScannedFile[],
  use: (record: Uint32Array, ord: number) => void,
): Promise<void> {
  for (const portion of portionsOf(table, files))
    await withFiles(table, portion, (paths) => joinPaths(connection, keys, portion, paths, use));
}

async function joinPaths(
  connection: DuckDBConnection,
  keys: string,
  files: readonly ScannedFile[],
  paths: readonly string[],
  use: (record: Uint32Array, ord: number) => void,
): Promise<void> {
  const byPath = new Map(paths.map((path, i) => [path, files[i]!]));
  const sql = `SELECT ${ORDER_SELECT}, f.filename, k.ord
     FROM read_parquet([${paths.map(literal).join(", ")}],
                       filename=true, file_row_number=true, hive_partitioning=false) f
     JOIN ${keys} k ON f.entity_id = k.entity_id AND f.tenant_id = k.tenant_id`;
  const record = new Uint32Array(WORDS);
  const order = new OrderReader();
  for await (const chunk of chunksOf(connection, sql)) {
    order.take(chunk);
    const names = chunk.getColumnValues(ORDER_COLUMNS) as string[];
    const ords = chunk.getColumnValues(ORDER_COLUMNS + 1) as number[];
    for (let row = 0; row < chunk.rowCount; row++) {
      const { place, mask } = byPath.get(names[row]!)!;
      order.fill(record, row, place);
      if (mask?.has(record[ROW]!) !== true) use(record, ords[row]!);
    }
  }
}

/** The columns of ORDER_SELECT, read in place. */
class OrderReader {
  private readonly version = new FixedReader(8);
  private readonly operation = new FixedReader(1);
  private readonly content = new FixedReader(8);
  private readonly occurred = new FixedReader(8);
  private readonly row = new FixedReader(8);

  take(chunk: DuckDBDataChunk): void {
    const { version, operation, content, occurred, row } = this;
    for (const [at, reader] of [version, operation, content, occurred, row].entries())
      reader.take(duckdb.data_chunk_get_vector(chunk.chunk, at), chunk.rowCount);
  }

  fill(record: Uint32Array, at: number, place: number): void {
    const [low, high] = [2 * at, 2 * at + 1];
    record[VERSION_LO] = this.version.words[low]!;
    record[VERSION_HI] = this.version.words[high]!;
    record[CONTENT_LO] = this.content.words[low]!;
    record[CONTENT_HI] = this.content.words[high]!;
    const has = !this.occurred.isNull(at);
    record[OCCURRED_LO] = has ? this.occurred.words[low]! : 0;
    record[OCCURRED_HI] = has ? this.occurred.words[high]! ^ 0x80000000 : 0;
    record[FLAGS] = place | this.operation.bytes[at]!;
    record[ROW] = this.row.words[low]!;
  }
}
