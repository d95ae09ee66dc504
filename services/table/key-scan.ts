import type { DuckDBBlobValue, DuckDBConnection, DuckDBDataChunk } from "@duckdb/node-api";
import { chunksOf, literal } from "../base/duckdb.js";
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

const LOW = 0xffffffff;
const ORDER_SELECT = `
  (f._tributary_version & ${LOW})::UINTEGER, ((f._tributary_version >> 32) & ${LOW})::UINTEGER,
  f._tributary_operation::UTINYINT,
  (f._tributary_hash & ${LOW})::UINTEGER, ((f._tributary_hash >> 32) & ${LOW})::UINTEGER,
  (epoch_us(f._tributary_occurred_at) & ${LOW})::UINTEGER,
  ((epoch_us(f._tributary_occurred_at) >> 32) & ${LOW})::UINTEGER,
  f.file_row_number::UINTEGER`;
const ORDER_COLUMNS = 8;

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
  const sql = `SELECT ${ORDER_SELECT}, encode(f.tenant_id), encode(f.entity_id)${names}
     FROM read_parquet([${paths.map(literal).join(", ")}], filename=true, file_row_number=true,
                       hive_partitioning=false) f`;
  const byPath = new Map(paths.map((path, i) => [path, files[i]!]));
  const record = new Uint32Array(WORDS);
  for await (const chunk of chunksOf(connection, sql)) {
    const order = orderColumns(chunk);
    const tenants = chunk.getColumnValues(ORDER_COLUMNS) as DuckDBBlobValue[];
    const entities = chunk.getColumnValues(ORDER_COLUMNS + 1) as DuckDBBlobValue[];
    const filenames = files.length === 1 ? undefined : (chunk.getColumnValues(ORDER_COLUMNS + 2) as string[]);
    for (let i = 0; i < chunk.rowCount; i++) {
      const { place, mask } = filenames === undefined ? files[0]! : byPath.get(filenames[i]!)!;
      fillOrder(record, 0, order, i, place);
      if (mask?.has(record[ROW]!) === true) continue;
      const tenant = tenants[i]!.bytes;
      const entity = entities[i]!.bytes;
      keys.put(record, 0, tenant, 0, tenant.length, entity, 0, entity.length);
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
  for await (const chunk of chunksOf(connection, sql)) {
    const order = orderColumns(chunk);
    const names = chunk.getColumnValues(ORDER_COLUMNS) as string[];
    const ords = chunk.getColumnValues(ORDER_COLUMNS + 1) as number[];
    for (let i = 0; i < chunk.rowCount; i++) {
      const { place, mask } = byPath.get(names[i]!)!;
      fillOrder(record, 0, order, i, place);
      if (mask?.has(record[ROW]!) !== true) use(record, ords[i]!);
    }
  }
}

type OrderColumns = (number | null)[][];

const orderColumns = (chunk: DuckDBDataChunk): OrderColumns =>
  Array.from({ length: ORDER_COLUMNS }, (_, column) => chunk.getColumnValues(column) as (number | null)[]);

function fillOrder(record: Uint32Array, at: number, order: OrderColumns, row: number, place: number): void {
  record[at + VERSION_LO] = order[0]![row]!;
  record[at + VERSION_HI] = order[1]![row]!;
  record[at + CONTENT_LO] = order[3]![row]!;
  record[at + CONTENT_HI] = order[4]![row]!;
  const occurredHi = order[6]![row];
  record[at + OCCURRED_LO] = order[5]![row] ?? 0;
  record[at + OCCURRED_HI] = occurredHi == null ? 0 : occurredHi ^ 0x80000000;
  record[at + FLAGS] = place | order[2]![row]!;
  record[at + ROW] = order[7]![row]!;
}
