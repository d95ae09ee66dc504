import { identifier, literal } from "../base/duckdb.js";
import { GROWN } from "./definition.js";
import type { DeltaTable } from "./delta-table.js";
import type { Mask } from "./mask.js";
import { PARTITION_COLUMN } from "./state.js";
import type { TableFile, TableSnapshot } from "./types.js";

export interface ScanOptions {
  /** Column names; all of the table when absent. */
  readonly columns?: readonly string[];
  /** Trusted SQL condition over the table's columns. */
  readonly where?: string;
  /** Skips files that cannot hold rows of this tenant. Not a filter: say so in `where` too. */
  readonly tenant?: string;
}

/** Runs `use` with local paths of the files, in their order; they can be read until it ends. */
export const withFiles = <T>(
  { store, root }: Pick<DeltaTable, "store" | "root">,
  files: readonly Pick<TableFile, "path">[],
  use: (paths: readonly string[]) => Promise<T>,
): Promise<T> =>
  store.withLocal(
    files.map(({ path }) => `${root}/${path}`),
    use,
  );

/** The files in their order, in portions of which each fits one lease (or is one file). */
export function portionsOf<F extends { readonly bytes: number }>(
  { store }: Pick<DeltaTable, "store">,
  files: readonly F[],
): F[][] {
  const portions: F[][] = [];
  let bytes = 0;
  for (const file of files) {
    bytes += file.bytes;
    if (portions.length === 0 || bytes > store.leaseBytes) {
      portions.push([]);
      bytes = file.bytes;
    }
    portions.at(-1)!.push(file);
  }
  return portions;
}

/**
 * Runs `use` with trusted SQL that yields the snapshot's live rows: explicit file lists, one bitmap predicate per
 * masked file and none for unmasked ones (a NULL bitmap would silently lose rows). The SQL reads files that are lent
 * until `use` ends: rows are to be fetched, or copied, by then.
 */
export function withScan<T>(
  table: DeltaTable,
  snapshot: TableSnapshot,
  options: ScanOptions,
  use: (sql: string) => Promise<T>,
): Promise<T> {
  const { tenant } = options;
  const files = snapshot.files.filter(
    (file) =>
      !file.tombstones &&
      file.maskedRows < file.rows &&
      (tenant === undefined || mayHoldTenant(file, tenant)),
  );
  return withFilesScan(table, snapshot, files, options, use);
}

/** As `withScan`, over some of the snapshot's files, in their order. */
export async function withFilesScan<T>(
  table: DeltaTable,
  snapshot: TableSnapshot,
  files: readonly TableFile[],
  options: ScanOptions,
  use: (sql: string) => Promise<T>,
): Promise<T> {
  const masks: (Mask | undefined)[] = [];
  for (const file of files) masks.push(await table.mask(file));
  return withFiles(table, files, (paths) =>
    use(
      scanSql(
        snapshot,
        files.map((file, i) => ({ file, path: paths[i]!, mask: masks[i] })),
        options,
      ),
    ),
  );
}

/** SQL for the rows of data files, by literals of their local paths. Columns that a file lacks are NULL. */
export function rowsOfFiles(snapshot: TableSnapshot, paths: readonly string[], options = ""): string {
  const files = `[${paths.join(", ")}]`;
  if (snapshot.properties.get(GROWN) === undefined)
    return `read_parquet(${files}, hive_partitioning=false${options})`;
  // None of these may have a column that is asked for.
  const nulls = snapshot.columns.map(({ name, type }) => `NULL::${type} AS ${identifier(name)}`).join(", ");
  return `(SELECT * FROM read_parquet(${files}, union_by_name=true, hive_partitioning=false${options})
    UNION ALL BY NAME SELECT ${nulls} WHERE false)`;
}

interface LentFile {
  readonly file: TableFile;
  readonly path: string;
  readonly mask: Mask | undefined;
}

function scanSql(snapshot: TableSnapshot, files: readonly LentFile[], options: ScanOptions): string {
  const wanted = snapshot.columns.filter(({ name }) => options.columns?.includes(name) ?? true);
  const select = (partition: string | undefined) =>
    wanted
      .map(({ name }) =>
        name === PARTITION_COLUMN ? `${literal(partition ?? "")} AS ${identifier(name)}` : identifier(name),
      )
      .join(", ");
  const conditions = options.where === undefined ? [] : [`(${options.where})`];
  const parts: string[] = [];
  let plain: { paths: string[]; partition: string | undefined } | undefined;
  const flush = () => {
    if (plain === undefined) return;
    const where = conditions.length === 0 ? "" : ` WHERE ${conditions.join(" AND ")}`;
    parts.push(`SELECT ${select(plain.partition)} FROM ${rowsOfFiles(snapshot, plain.paths)}${where}`);
    plain = undefined;
  };
  for (const { file, path: unquoted, mask } of files) {
    const path = literal(unquoted);
    if (mask === undefined || mask.count === 0) {
      if (plain !== undefined && plain.partition !== file.partition) flush();
      plain ??= { paths: [], partition: file.partition };
      plain.paths.push(path);
      continue;
    }
    flush();
    const bits = Buffer.from(mask.bits.buffer, mask.bits.byteOffset, mask.bits.length).toString("base64");
    const unmasked = `get_bit(from_base64('${bits}')::BIT, file_row_number::INTEGER) = 0`;
    parts.push(
      `SELECT ${select(file.partition)} FROM ${rowsOfFiles(snapshot, [path], ", file_row_number=true")} WHERE ${[...conditions, unmasked].join(" AND ")}`,
    );
  }
  flush();
  if (parts.length > 0) return parts.join("\nUNION ALL\n");
  return `SELECT ${wanted.map(({ name, type }) => `NULL::${type} AS ${identifier(name)}`).join(", ")} WHERE false`;
}

/** Whether rows of the tenant can be in the file, as far as its bounds tell. */
export function mayHoldTenant({ min: least, max: greatest }: TableFile, tenant: string): boolean {
  const { tenant_id: min } = least;
  const { tenant_id: max } = greatest;
  return (
    typeof min !== "string" ||
    typeof max !== "string" ||
    (byBytes(min, tenant) <= 0 && byBytes(tenant, max) <= 0)
  );
}

/** Statistics of strings are bounds of their UTF-8 bytes; JavaScript compares UTF-16 units. */
const byBytes = (a: string, b: string): number => Buffer.compare(Buffer.from(a), Buffer.from(b));
