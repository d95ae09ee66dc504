import type { DuckDBConnection } from "@duckdb/node-api";
import { literal, rowsOf } from "../../base/duckdb.js";
import type { DeltaTable } from "../../table/delta-table.js";
import { mayHoldTenant, portionsOf, rowsOfFiles, withFiles, withFilesScan } from "../../table/scan.js";
import type { TableFile } from "../../table/types.js";
import { KEY_COLUMNS, ORDER_COLUMNS } from "../../table/upsert.js";
import { columnHashes, type DigestColumn, keyed, RANK, rankOf, rowHash } from "../chunks/row-digests.js";
import { ofTenant } from "./digests.js";
import type { KeyBuckets } from "./key-buckets.js";
import { firstOf, numbered } from "./made-files.js";
import { type DifferingKey, FAULTS, type Standing, Tally } from "./standings.js";

export interface EntityCheckContext {
  readonly connection: DuckDBConnection;
  readonly buckets: KeyBuckets;
  readonly table: DeltaTable;
  readonly files: readonly TableFile[];
  readonly raw: DeltaTable;
  /** Those that are no keys. */
  readonly columns: readonly DigestColumn[];
  readonly job: { readonly tenant: string | undefined };
  /** Files of what the model has made of the job's events. */
  readonly made: readonly string[];
  /** Before the table's rows are read on. */
  readonly pace: (work: { readonly count: number; readonly byteCount: number }) => Promise<void>;
}

const MOST_KEYS = 20;
/** Rows of the table that are read between two looks at the pace; made files that are read at once. */
const PORTION_ROWS = 1_000_000;
const FILES = 8;
/** Differing rows whose columns are looked at at once. */
const DIFFERING_ROWS = 1_000_000;

const RANKED = RANK.join(", ");
const rank = (row: string): string => `(${RANK.map((one) => `${row}.${one}`).join(", ")})`;
const level = RANK.map((one) => `t.${one} = j.${one}`).join(" AND ");
const from = <T>(parts: readonly T[], at: number): readonly T[] => parts.slice(at, at + FILES);

/**
 * Compares what a model has made of a job's events with its table, entity by entity: first by the place in the order of
 * writes and one hash of all columns, bucket by bucket of keys. Hashes of single columns are added up of the rows that
 * stand, which are equal on both sides unless that one hash says otherwise; of rows that differ, columns are looked at.
 */
export class EntityCheck {
  private readonly tallies = new Map<string, Tally>();
  private readonly keys: DifferingKey[] = [];

  constructor(private readonly context: EntityCheckContext) {}

  async run() {
    const { connection, buckets, made } = this.context;
    for (let at = 0; at < made.length; at += FILES) {
      const rows = `SELECT tenant_id, entity_id, ${RANKED}, shown, broken, r, n FROM (${numbered(from(made, at), at)})`;
      await buckets.add(connection, "job", rows);
    }
    if (made.length > 0) {
      await this.addTable();
      await connection.run(
        `CREATE OR REPLACE TEMP TABLE lost (n BIGINT);
         CREATE OR REPLACE TEMP TABLE others (key UBIGINT);
         CREATE OR REPLACE TEMP TABLE differing (tenant_id VARCHAR, entity_id VARCHAR, n BIGINT)`,
      );
      for (let bucket = 0; bucket < buckets.count; bucket++) await this.compare(bucket);
      await this.sum();
      await this.lookAtColumns();
      await this.explain();
      await connection.run("DROP TABLE lost; DROP TABLE others; DROP TABLE differing");
    }
    const { keys } = this;
    keys.sort((a, b) => (a.tenant === b.tenant ? (a.id < b.id ? -1 : 1) : a.tenant < b.tenant ? -1 : 1));
    const tenants = new Map([...this.tallies].map(([tenant, tally]) => [tenant, tally.told]));
    return { tenants, keys: keys.slice(0, MOST_KEYS) };
  }

  private tallyOf(tenant: unknown): Tally {
    const tally = this.tallies.get(String(tenant)) ?? new Tally(this.context.columns);
    this.tallies.set(String(tenant), tally);
    return tally;
  }

  /** Gives SQL for live rows of the table, some at a time. */
  private async eachPortion(columns: readonly string[], use: (sql: string) => Promise<void>): Promise<void> {
    const { table, files, job, pace } = this.context;
    const options = { columns, where: ofTenant(job.tenant) };
    const live = files.filter((file) => !file.tombstones && file.maskedRows < file.rows);
    for (const portion of portionsOf(table, live)) {
      for (const part of inParts(portion)) {
        const [count, byteCount] = [total(part, "rows"), total(part, "bytes")];
        await pace({ count, byteCount });
        await withFilesScan(table, table.snapshot, part, options, use);
      }
    }
  }

  private get read(): string[] {
    return [...KEY_COLUMNS, ...ORDER_COLUMNS, ...this.context.columns.map(({ name }) => name)];
  }

  /** Adds the relation "table": live rows, and tombstones, which are all masked and all count. */
  private async addTable(): Promise<void> {
    const { connection, buckets, table, files, columns, job } = this.context;
    const select = (live: boolean) => `SELECT tenant_id, entity_id, ${rankOf("t")}, ${live} AS live`;
    await this.eachPortion(this.read, (sql) =>
      buckets.add(
        connection,
        "table",
        `${select(true)}, ${rowHash(columns)} AS r FROM ${keyed(`(${sql})`)} t`,
      ),
    );
    const dead = files.filter((file) => file.tombstones);
    for (const portion of portionsOf(table, dead)) {
      await withFiles(table, portion, (paths) => {
        const rows = rowsOfFiles(table.snapshot, paths.map(literal));
        const sql = `${select(false)}, NULL::UBIGINT AS r FROM ${rows} t WHERE ${ofTenant(job.tenant)}`;
        return buckets.add(connection, "table", sql);
      });
    }
  }

  private async compare(bucket: number): Promise<void> {
    const { connection, buckets } = this.context;
    const table = buckets.has("table")
      ? await buckets.of("table", bucket)
      : `(SELECT *, false AS live FROM ${await buckets.of("job", bucket)} WHERE false)`;
    await connection.run(
      `CREATE OR REPLACE TEMP TABLE all_made AS SELECT * FROM ${await buckets.of("job", bucket)};
       CREATE OR REPLACE TEMP TABLE all_found AS SELECT * FROM ${table} SEMI JOIN all_made USING (tenant_id, entity_id)`,
    );
    // What an event that the model cannot digest would say does not count, unless there is no other one.
    const made = (await this.repeats("all_made")) ? best("*", "all_made", "broken, ") : "(FROM all_made)";
    const found = (await this.repeats("all_found"))
      ? best(
          "*, count(*) FILTER (live) OVER (PARTITION BY tenant_id, entity_id) AS lives",
          "all_found",
          "",
          ", live DESC",
        )
      : "(SELECT *, live::BIGINT AS lives FROM all_found)";
    await connection.run(
      `CREATE OR REPLACE TEMP TABLE compared AS
       SELECT j.tenant_id, j.entity_id, j.n, t.v, t.d, j.r = t.r AS same, CASE
           WHEN t.v IS NULL THEN if(j.broken, 'setAside', 'missing')
           WHEN t.lives > 1 OR (t.lives = 1 AND NOT t.live) THEN 'wrong'
           WHEN j.broken THEN if(t.d, 'deleted', 'overtaken')
           WHEN NOT (${level}) THEN CASE
             WHEN ${rank("t")} < ${rank("j")} THEN 'stale' WHEN t.d THEN 'deleted' ELSE 'overtaken' END
           WHEN t.d THEN if(t.live, 'wrong', 'deleted')
           WHEN t.live AND j.shown THEN 'winning'
           WHEN NOT t.live AND NOT j.shown THEN 'hidden'
           ELSE 'wrong' END AS standing
       FROM ${made} j LEFT JOIN ${found} t USING (tenant_id, entity_id)`,
    );
    const others = "standing IN ('overtaken', 'deleted')";
    await buckets.add(
      connection,
      "others",
      `SELECT tenant_id, entity_id, v, d FROM compared WHERE ${others}`,
    );
    await connection.run(
      `INSERT INTO others SELECT hash(tenant_id, entity_id) FROM compared WHERE ${others};
       INSERT INTO differing SELECT tenant_id, entity_id, n FROM compared WHERE standing = 'winning' AND NOT same;
       INSERT INTO lost SELECT n FROM all_made ANTI JOIN (FROM compared WHERE standing = 'winning') USING (n)`,
    );
    const counts = "SELECT tenant_id, standing, count(*) FROM compared GROUP BY ALL";
    for (const [tenant, standing, count] of await rowsOf(connection, counts))
      this.tallyOf(tenant).entities[standing as Standing] += Number(count);
    const faults = FAULTS.map(literal).join(", ");
    const found20 = `SELECT tenant_id, entity_id, standing FROM compared WHERE standing IN (${faults})
      ORDER BY tenant_id, entity_id LIMIT ${MOST_KEYS}`;
    for (const [tenant, id, standing] of await rowsOf(connection, found20)) this.tell(tenant, id, standing);
    await connection.run("DROP TABLE compared; DROP TABLE all_made; DROP TABLE all_found");
  }

  private tell(tenant: unknown, id: unknown, why: unknown): void {
    this.keys.push({ tenant: String(tenant), id: String(id), why: String(why) });
  }

  /** Whether an entity has several rows. */
  private async repeats(relation: string): Promise<boolean> {
    const rows = await rowsOf(
      this.context.connection,
      `SELECT 1 FROM ${relation} GROUP BY tenant_id, entity_id HAVING count(*) > 1 LIMIT 1`,
    );
    return rows.length > 0;
  }

  /** Adds up the columns of the rows that stand. */
  private async sum(): Promise<void> {
    const { connection, made, columns } = this.context;
    const sums = columns.map((_, at) => `, sum(h${at})`).join("");
    for (let at = 0; at < made.length; at += FILES) {
      const files = from(made, at);
      const rows = await rowsOf(
        connection,
        `SELECT tenant_id${sums} FROM (${numbered(files, at)})
         ANTI JOIN (FROM lost WHERE n >= ${firstOf(at)} AND n < ${firstOf(at + files.length)}) USING (n)
         GROUP BY tenant_id`,
      );
      for (const [tenant, ...found] of rows) this.tallyOf(tenant).same(found as bigint[]);
    }
  }

  /** Which columns they are that differ, and in how many rows. */
  private async lookAtColumns(): Promise<void> {
    const counts = await rowsOf(
      this.context.connection,
      `SELECT n // ${firstOf(1)}, count(*) FROM differing GROUP BY 1 ORDER BY 1`,
    );
    let [first, end, rows] = [0, 0, 0];
    for (const [file, count] of counts) {
      if (rows > 0 && rows + Number(count) > DIFFERING_ROWS) {
        await this.lookAtSome(first, end);
        [first, rows] = [end, 0];
      }
      end = Number(file) + 1;
      rows += Number(count);
    }
    if (rows > 0) await this.lookAtSome(first, end);
  }

  private async lookAtSome(first: number, end: number): Promise<void> {
    const { connection, made, columns } = this.context;
    const some = `(FROM differing WHERE n >= ${firstOf(first)} AND n < ${firstOf(end)})`;
    await connection.run(
      `CREATE OR REPLACE TEMP TABLE stands (n BIGINT${columns.map((_, at) => `, h${at} UBIGINT`).join("")})`,
    );
    await this.eachPortion(this.read, async (sql) => {
      const rows = `(FROM (${sql}) SEMI JOIN ${some} USING (tenant_id, entity_id))`;
      await connection.run(
        `INSERT INTO stands SELECT d.n${columns.map((_, at) => `, t.h${at}`).join("")}
         FROM (SELECT tenant_id, entity_id${columnHashes(columns)} FROM ${keyed(rows)}) t
         JOIN ${some} d USING (tenant_id, entity_id)`,
      );
    });
    const sums = columns.map(
      (_, at) => `, sum(j.h${at}), sum(t.h${at}), count(*) FILTER (j.h${at} <> t.h${at})`,
    );
    const names = columns.map(({ name }, at) => `if(j.h${at} <> t.h${at}, ${literal(`${name} `)}, '')`);
    for (let at = first; at < end; at += FILES) {
      const joined = `FROM (${numbered(from(made.slice(0, end), at), at)}) j JOIN stands t USING (n)`;
      for (const [tenant, ...found] of await rowsOf(
        connection,
        `SELECT tenant_id${sums.join("")} ${joined} GROUP BY tenant_id`,
      )) {
        const values = found as bigint[];
        const tally = this.tallyOf(tenant);
        for (const column of columns.keys()) {
          const [made, stands, count] = values.slice(3 * column, 3 * column + 3) as [bigint, bigint, bigint];
          tally.differ(column, made, stands, Number(count));
        }
      }
      const told = `SELECT tenant_id, entity_id, ${["''", ...names].join(" || ")} ${joined} ORDER BY ALL LIMIT ${MOST_KEYS}`;
      for (const [tenant, id, why] of await rowsOf(connection, told))
        this.tell(tenant, id, String(why).trim());
    }
    await connection.run("DROP TABLE stands");
  }

  /**
   * What stands instead of the job's rows must stand in raw: anywhere, as a table that catches up holds rows before its
   * positions say so.
   */
  private async explain(): Promise<void> {
    const { connection, buckets, raw, job } = this.context;
    const [[count]] = (await rowsOf(connection, "SELECT count(*) FROM others")) as [[bigint]];
    if (count === 0n) return;
    const { snapshot } = raw;
    const files = snapshot.files.filter(
      (file) => job.tenant === undefined || mayHoldTenant(file, job.tenant),
    );
    const columns = [...KEY_COLUMNS, "operation", "version"];
    const options = { columns, where: ofTenant(job.tenant) };
    for (const portion of portionsOf(raw, files).flatMap(inParts)) {
      await withFilesScan(raw, snapshot, portion, options, (sql) =>
        buckets.add(
          connection,
          "raw",
          `SELECT tenant_id, entity_id, version, operation = 'DELETED' AS deleted FROM (${sql})
           WHERE hash(tenant_id, entity_id) IN (FROM others)`,
        ),
      );
    }
    for (let bucket = 0; bucket < buckets.count; bucket++) {
      await connection.run(
        `CREATE OR REPLACE TEMP TABLE unexplained AS
         SELECT o.tenant_id, o.entity_id, o.d FROM ${await buckets.of("others", bucket)} o
         ANTI JOIN ${await buckets.of("raw", bucket)} r
         ON o.entity_id = r.entity_id AND o.tenant_id = r.tenant_id AND o.v = r.version AND o.d = r.deleted`,
      );
      const counts = "SELECT tenant_id, d, count(*) FROM unexplained GROUP BY tenant_id, d";
      for (const [tenant, deleted, count] of await rowsOf(connection, counts)) {
        const { entities } = this.tallyOf(tenant);
        entities[deleted ? "deleted" : "overtaken"] -= Number(count);
        entities.unexplained += Number(count);
      }
      const first = `SELECT tenant_id, entity_id FROM unexplained ORDER BY ALL LIMIT ${MOST_KEYS}`;
      for (const [tenant, id] of await rowsOf(connection, first)) this.tell(tenant, id, "unexplained");
      await connection.run("DROP TABLE unexplained");
    }
  }
}

/** The first of each entity's rows, SQL. */
const best = (what: string, relation: string, before: string, behind = ""): string =>
  `(SELECT ${what} FROM ${relation} QUALIFY row_number() OVER (PARTITION BY tenant_id, entity_id
    ORDER BY ${before}${RANK.map((one) => `${one} DESC`).join(", ")}${behind}) = 1)`;

const total = (files: readonly TableFile[], what: "rows" | "bytes"): number =>
  files.reduce((sum, file) => sum + file[what], 0);

/** The files in their order, in parts that a statement reads in seconds. */
function inParts(files: readonly TableFile[]): TableFile[][] {
  const parts: TableFile[][] = [];
  let rows = Number.POSITIVE_INFINITY;
  for (const file of files) {
    rows += file.rows;
    if (rows > PORTION_ROWS) {
      parts.push([]);
      rows = file.rows;
    }
    parts.at(-1)!.push(file);
  }
  return parts;
}
