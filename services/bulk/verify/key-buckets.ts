import { mkdir, mkdtemp, readdir, rm } from "node:fs/promises";
import { basename, join } from "node:path";
import type { DuckDBConnection } from "@duckdb/node-api";
import { literal, rowsOf } from "../../base/duckdb.js";
import { layout } from "../../base/paths.js";
import type { IngestContext } from "../../ingest/context.js";

/** Keys of so many rows, of all relations that are compared, are in memory at a time. */
const ROWS = 1_000_000;
/** Files that are written at once. */
const MOST = 64;
/** The engine holds so many rows of each file before it writes them: fewer, and it writes more headers than rows. */
const GROUP_ROWS = 8192;
/** And so many of all of them, before it hands them to their files. */
const FLUSHED_ROWS = 65_536;

/**
 * Relations of keys, cut into buckets by the hash of tenant and entity, on the local disk: compared one bucket after the
 * other, so that memory does not grow with their rows. Rows are to be narrow: some hundred bytes.
 */
export class KeyBuckets {
  private written = 0;
  private readonly columns = new Map<string, string>();

  private constructor(
    private readonly folder: string,
    readonly count: number,
  ) {}

  /** `rows`: about how many there are in all relations together. The folder's disk holds them until `use` ends. */
  static async with<T>(
    folder: string,
    rows: number,
    use: (buckets: KeyBuckets) => Promise<T>,
    rowsAtOnce = ROWS,
  ): Promise<T> {
    await mkdir(folder, { recursive: true });
    const own = await mkdtemp(join(folder, "keys-"));
    try {
      return await use(new KeyBuckets(own, Math.min(MOST, Math.max(1, Math.ceil(rows / rowsAtOnce)))));
    } finally {
      await rm(own, { recursive: true, force: true });
    }
  }

  /** Adds the rows of `sql`, tenant_id and entity_id among their columns, to a relation; all of its parts have the same. */
  async add(connection: DuckDBConnection, relation: string, sql: string): Promise<void> {
    const folder = join(this.folder, relation, String(this.written++));
    await mkdir(folder, { recursive: true });
    if (!this.columns.has(relation)) {
      const rows = await rowsOf(connection, `DESCRIBE ${sql}`);
      this.columns.set(relation, rows.map(([name, type]) => `NULL::${type} AS "${name}"`).join(", "));
    }
    await connection.run(
      `SET partitioned_write_flush_threshold=${FLUSHED_ROWS};
       COPY (SELECT *, (hash(tenant_id, entity_id) % ${this.count})::INTEGER AS bucket FROM (${sql}))
       TO ${literal(folder)} (FORMAT parquet, COMPRESSION snappy, ROW_GROUP_SIZE ${GROUP_ROWS},
         PARTITION_BY (bucket), OVERWRITE_OR_IGNORE)`,
    );
  }

  has(relation: string): boolean {
    return this.columns.has(relation);
  }

  /** SQL for a bucket's rows of a relation that something was added to. */
  async of(relation: string, bucket: number): Promise<string> {
    return this.relationOf(relation, await this.paths(relation, bucket));
  }

  /** SQL for all rows of a relation that something was added to. */
  async all(relation: string): Promise<string> {
    const paths: string[] = [];
    for (let bucket = 0; bucket < this.count; bucket++) paths.push(...(await this.paths(relation, bucket)));
    return this.relationOf(relation, paths);
  }

  private async paths(relation: string, bucket: number): Promise<string[]> {
    const paths: string[] = [];
    for (const part of await readdir(join(this.folder, relation))) {
      const folder = join(this.folder, relation, part, `bucket=${bucket}`);
      // Most parts have rows in every bucket, but need not.
      const names = await readdir(folder).catch(() => []);
      paths.push(...names.map((name) => join(folder, name)));
    }
    return paths;
  }

  private relationOf(relation: string, paths: readonly string[]): string {
    if (paths.length === 0) return `(SELECT ${this.columns.get(relation)} WHERE false)`;
    return `read_parquet([${paths.map(literal).join(", ")}], hive_partitioning=false)`;
  }
}

/** Of what a process compares on the local disk; it is emptied when the next one of its place begins. */
export const folderOf = ({ store, config }: Pick<IngestContext, "store" | "config">): string =>
  join(layout(config.data).scratch, basename(store.staging), "verify");
