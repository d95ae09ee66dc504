import type { DuckDBConnection } from "@duckdb/node-api";
import { literal, rowsOf } from "../base/duckdb.js";
import type { DeltaTable } from "./delta-table.js";
import { portionsOf, withFiles } from "./scan.js";
import type { TableFile } from "./types.js";

/** A tenant, and the least and the greatest of its entities' ids, in the order of their UTF-8 bytes. */
export type TenantRange = readonly [tenant: string, least: string, greatest: string];

/** Of files with more tenants it is not kept which they are. */
const MOST_TENANTS = 20_000;

/** Between which ids of a tenant the keys of something lie. */
export class KeyRanges {
  private readonly ranges = new Map<string, readonly [string, string]>();

  constructor(ranges: Iterable<TenantRange>) {
    for (const [tenant, least, greatest] of ranges) this.ranges.set(tenant, [least, greatest]);
  }

  get tenants(): Iterable<string> {
    return this.ranges.keys();
  }

  /** Whether a key may be in both. */
  meets({ ranges }: KeyRanges): boolean {
    const [few, many] = ranges.size < this.ranges.size ? [ranges, this.ranges] : [this.ranges, ranges];
    for (const [tenant, [least, greatest]] of few) {
      const other = many.get(tenant);
      if (other !== undefined && byBytes(least, other[1]) <= 0 && byBytes(other[0], greatest) <= 0)
        return true;
    }
    return false;
  }

  /** Whether the file may hold one of the tenants, by its bounds. */
  mayMeet({ min, max }: TableFile): boolean {
    const { tenant_id: least } = min;
    const { tenant_id: greatest } = max;
    if (typeof least !== "string" || typeof greatest !== "string") return true;
    for (const tenant of this.ranges.keys())
      if (byBytes(least, tenant) <= 0 && byBytes(tenant, greatest) <= 0) return true;
    return false;
  }
}

/** The key ranges of a table's files: files never change, so each is read once. */
export class FileRanges {
  /** By path; undefined for a file of so many tenants that it may hold any. */
  private readonly known = new Map<string, KeyRanges | undefined>();

  constructor(private readonly table: DeltaTable) {}

  /** Of a file that need not be read. */
  tell(path: string, ranges: KeyRanges): void {
    this.known.set(path, ranges);
  }

  /** Whether the file may hold a key which lies within `ranges`, as far as is known without reading it. */
  mayMeet(file: TableFile, ranges: KeyRanges): boolean {
    return ranges.mayMeet(file) && (this.known.get(file.path)?.meets(ranges) ?? true);
  }

  /** Those of the files that may hold a key which lies within `ranges`. */
  async meeting(
    connection: DuckDBConnection,
    files: readonly TableFile[],
    ranges: KeyRanges,
  ): Promise<TableFile[]> {
    const near = files.filter((file) => ranges.mayMeet(file));
    await this.read(
      connection,
      near.filter(({ path }) => !this.known.has(path)),
    );
    return near.filter(({ path }) => this.known.get(path)?.meets(ranges) ?? true);
  }

  private async read(connection: DuckDBConnection, files: readonly TableFile[]): Promise<void> {
    for (const portion of portionsOf(this.table, files)) {
      await withFiles(this.table, portion, async (paths) => {
        for (const [at, path] of paths.entries()) {
          const rows = (await rowsOf(
            connection,
            `SELECT tenant_id, min(entity_id), max(entity_id)
             FROM read_parquet(${literal(path)}, hive_partitioning=false) GROUP BY 1 LIMIT ${MOST_TENANTS + 1}`,
          )) as [string, string, string][];
          this.known.set(portion[at]!.path, rows.length > MOST_TENANTS ? undefined : new KeyRanges(rows));
        }
      });
    }
  }

  /** Forgets files that are gone. */
  keep(live: ReadonlySet<string> | ReadonlyMap<string, unknown>): void {
    for (const path of this.known.keys()) if (!live.has(path)) this.known.delete(path);
  }
}

/** JavaScript compares UTF-16 units, DuckDB bytes. */
const byBytes = (a: string, b: string): number => Buffer.compare(Buffer.from(a), Buffer.from(b));
