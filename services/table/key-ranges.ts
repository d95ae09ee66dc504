import type { DuckDBConnection } from "@duckdb/node-api";
import { literal, rowsOf } from "../base/duckdb.js";
import type { DeltaTable } from "./delta-table.js";
import { portionsOf, withFiles } from "./scan.js";
import type { TableFile } from "./types.js";

/** A tenant, and the least and the greatest of its entities' ids, in the order of their UTF-8 bytes. */
export type TenantRange = readonly [tenant: string, least: string, greatest: string];

/** Of files with more tenants it is not kept which they are; nor is it once there are so many of all files together. */
const MOST_TENANTS = 20_000;
const MOST_OF_ALL = 200_000;

/** Between which ids of a tenant the keys of something lie. */
export class KeyRanges {
  private readonly ranges = new Map<string, readonly [string, string]>();
  /** Of all tenants together. */
  readonly ids: Bounds | undefined;

  constructor(ranges: Iterable<TenantRange>) {
    let ids: Bounds | undefined;
    for (const [tenant, least, greatest] of ranges) {
      this.ranges.set(tenant, [least, greatest]);
      ids = ids === undefined ? [least, greatest] : [lesser(ids[0], least), greater(ids[1], greatest)];
    }
    this.ids = ids;
  }

  /** How many tenants there are. */
  get size(): number {
    return this.ranges.size;
  }

  /** Whether a key may be in both. */
  meets({ ranges }: KeyRanges): boolean {
    const [few, many] = ranges.size < this.ranges.size ? [ranges, this.ranges] : [this.ranges, ranges];
    for (const [tenant, [least, greatest]] of few) {
      const other = many.get(tenant);
      if (other !== undefined && overlap([least, greatest], other)) return true;
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

/** What is known of a file: `ids` between which those of all its tenants lie; no ranges where tenants are too many. */
interface Known {
  readonly ids: Bounds | undefined;
  readonly ranges: KeyRanges | undefined;
}

/**
 * The key ranges of a table's files: files never change, so each is read once. Of an export in whose files thousands of
 * tenants come in the order of ids, each file has all of them: memory must not grow with files times tenants.
 */
export class FileRanges {
  private readonly known = new Map<string, Known>();
  private kept = 0;

  constructor(private readonly table: DeltaTable) {}

  /** Tenants of all files whose ranges are kept. */
  get size(): number {
    return this.kept;
  }

  /** Of a file that need not be read. */
  tell(path: string, ranges: KeyRanges): void {
    const fits = ranges.size <= MOST_TENANTS && this.kept + ranges.size <= MOST_OF_ALL;
    if (fits) this.kept += ranges.size;
    this.known.set(path, { ids: ranges.ids, ranges: fits ? ranges : undefined });
  }

  /** Whether the file may hold a key which lies within `ranges`, as far as is known without reading it. */
  mayMeet(file: TableFile, ranges: KeyRanges): boolean {
    return ranges.mayMeet(file) && this.meets(file, ranges);
  }

  private meets({ path }: TableFile, other: KeyRanges): boolean {
    const { ids, ranges } = this.known.get(path) ?? {};
    if (ids !== undefined && other.ids !== undefined && !overlap(ids, other.ids)) return false;
    return ranges?.meets(other) ?? true;
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
    return near.filter((file) => this.meets(file, ranges));
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
          const { path: name } = portion[at]!;
          if (rows.length > MOST_TENANTS) this.known.set(name, { ids: undefined, ranges: undefined });
          else this.tell(name, new KeyRanges(rows));
        }
      });
    }
  }

  /** Forgets files that are gone. */
  keep(live: ReadonlySet<string> | ReadonlyMap<string, unknown>): void {
    for (const [path, { ranges }] of this.known) {
      if (live.has(path)) continue;
      this.known.delete(path);
      this.kept -= ranges?.size ?? 0;
    }
  }
}

/** The least and the greatest. */
type Bounds = readonly [least: string, greatest: string];

const overlap = (a: Bounds, b: Bounds): boolean => byBytes(a[0], b[1]) <= 0 && byBytes(b[0], a[1]) <= 0;
const lesser = (a: string, b: string): string => (byBytes(a, b) <= 0 ? a : b);
const greater = (a: string, b: string): string => (byBytes(a, b) >= 0 ? a : b);

/** JavaScript compares UTF-16 units, DuckDB bytes: these are in another order only where there are surrogates. */
function byBytes(a: string, b: string): number {
  if (SURROGATE.test(a) || SURROGATE.test(b)) return Buffer.compare(Buffer.from(a), Buffer.from(b));
  return a < b ? -1 : a > b ? 1 : 0;
}
const SURROGATE = /[\ud800-\udfff]/;
