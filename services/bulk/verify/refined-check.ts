import { join } from "node:path";
import type { DuckDBConnection } from "@duckdb/node-api";
import { literal, rowsOf } from "../../base/duckdb.js";
import { TributaryError } from "../../base/errors.js";
import { layout } from "../../base/paths.js";
import type { IngestContext } from "../../ingest/context.js";
import type { EventBatch } from "../../ingest/event-batch.js";
import { isOf, refinedRoot } from "../../ingest/refined-table.js";
import { upTo } from "../../ingest/replay.js";
import type { BoundModel } from "../../models/bind.js";
import { DeltaTable } from "../../table/delta-table.js";
import { type Progress, partsOf, progressOf } from "../../table/progress.js";
import { mayHoldTenant, portionsOf, rowsOfFiles, withFiles, withFilesScan } from "../../table/scan.js";
import type { TableFile } from "../../table/types.js";
import { KEY_COLUMNS, ORDER_COLUMNS } from "../../table/upsert.js";
import { columnHash, type DigestColumn, digestsOf, ofTenant, rankSql } from "./digests.js";
import { KeyBuckets } from "./key-buckets.js";
import { MadeRows } from "./made-rows.js";

/**
 * What has become of the entities of a job in a table: what stands of each, beside what the job's rows in raw, and what
 * others have sent since, say has to stand.
 *
 * | word        | the table                                                                                |
 * |-------------|------------------------------------------------------------------------------------------|
 * | winning     | shows the job's row                                                                      |
 * | overtaken   | shows, or hides, a newer event, which is in raw                                           |
 * | deleted     | has a delete that wins, which is in raw                                                   |
 * | hidden      | has the job's row as one that the model filters out                                       |
 * | setAside    | has nothing, as the model could not digest it: see dead letters                           |
 * | missing     | has nothing, and should                                                                  |
 * | stale       | has something older                                                                       |
 * | wrong       | shows what it should not, or twice                                                        |
 * | unexplained | has something newer, of which raw knows nothing                                            |
 */
export const STANDINGS = [
  "winning",
  "overtaken",
  "deleted",
  "hidden",
  "setAside",
  "missing",
  "stale",
  "wrong",
  "unexplained",
] as const;
export type Standing = (typeof STANDINGS)[number];
export const FAULTS: readonly Standing[] = ["missing", "stale", "wrong", "unexplained"];

export interface RefinedTenant {
  readonly entities: Record<Standing, number>;
  /** Digests of what is winning, by column: made of raw's rows, and found in the table. */
  readonly made: Readonly<Record<string, string>>;
  readonly found: Readonly<Record<string, string>>;
  /** Columns in which rows differ, with the number of these. */
  readonly differing: Readonly<Record<string, number>>;
}

export interface DifferingKey {
  readonly tenant: string;
  readonly id: string;
  /** A standing that should not be, or the names of columns that differ. */
  readonly why: string;
}

export interface RefinedCheck {
  readonly model: string;
  /** Of the table. */
  readonly version: number;
  readonly tenants: ReadonlyMap<string, RefinedTenant>;
  /** The first few, by tenant and id. */
  readonly keys: readonly DifferingKey[];
}

export interface CheckedJob {
  /** The stream that its rows came by. */
  readonly stream: string;
  /** Where its rows may be of one alone. */
  readonly tenant: string | undefined;
}

export interface CheckOptions {
  /** Before each batch of the job's events, as the job's own pace wants it. */
  readonly pace: (batch: Pick<EventBatch, "count" | "byteCount">) => Promise<void>;
  readonly rowsAtOnce?: number;
}

const MOST_KEYS = 20;

/**
 * Compares the table of a model with raw, for the entities of a job. Live traffic may go on: both are looked at as of
 * one moment each, the table first. Memory does not grow with the rows. Errors: TRB-VERIFY-BEHIND; those of tables.
 */
export async function checkRefined(
  context: Pick<IngestContext, "store" | "duck" | "tableOptions" | "config" | "registry" | "decoding">,
  job: CheckedJob,
  raw: DeltaTable,
  model: BoundModel,
  options: CheckOptions,
): Promise<RefinedCheck> {
  const { store, duck, tableOptions, config } = context;
  const table = await DeltaTable.open(store, refinedRoot(model), duck, tableOptions);
  if (table === undefined || !isOf(table.snapshot, model)) throw behind(model);
  const { snapshot } = table;
  const progress = progressOf(snapshot);
  const rawSnapshot = await raw.refresh();
  const to = alongJob(progressOf(rawSnapshot), job.stream);
  for (const [track, position] of to) if (progress.get(track) !== position) throw behind(model);
  const files = snapshot.files.filter((file) => job.tenant === undefined || mayHoldTenant(file, job.tenant));
  const rows = [...files, ...rawSnapshot.files].reduce((sum, file) => sum + file.rows, 0);
  const columns = model.columns.filter(({ name }) => !KEYS.has(name));
  const folder = join(layout(config.data).scratch, "verify");
  const use = (buckets: KeyBuckets): Promise<RefinedCheck> =>
    duck.with(async (connection) => {
      const view = { table: raw, snapshot: rawSnapshot, connection, entityType: model.entityType };
      await MadeRows.each(
        context,
        model,
        columns,
        view,
        to,
        (other, relation) => buckets.add(other, "job", `SELECT * FROM ${relation}`),
        options.pace,
      );
      const check = new Check({ connection, buckets, table, files, raw, columns, job, progress });
      return { model: model.name, version: snapshot.version, ...(await check.run()) };
    });
  return KeyBuckets.with(folder, rows, use, options.rowsAtOnce);
}

const KEYS: ReadonlySet<string> = new Set(KEY_COLUMNS);

const behind = ({ name }: BoundModel): TributaryError =>
  new TributaryError("TRB-VERIFY-BEHIND", `${name}: its table has not taken in all of the job's rows yet`);

const alongJob = (progress: Progress, stream: string): Progress =>
  new Map([...progress].filter(([track]) => partsOf(track).stream === stream));

interface CheckContext {
  readonly connection: DuckDBConnection;
  /** Has the relation "job". */
  readonly buckets: KeyBuckets;
  readonly table: DeltaTable;
  readonly files: readonly TableFile[];
  readonly raw: DeltaTable;
  readonly columns: readonly DigestColumn[];
  readonly job: CheckedJob;
  /** Of the table. */
  readonly progress: Progress;
}

type Tenants = Map<string, RefinedTenant>;

class Check {
  constructor(private readonly context: CheckContext) {}

  async run(): Promise<Pick<RefinedCheck, "tenants" | "keys">> {
    const { buckets } = this.context;
    await this.addTable();
    const tenants: Tenants = new Map();
    const keys: DifferingKey[] = [];
    for (let bucket = 0; bucket < buckets.count; bucket++) await this.compare(bucket, tenants, keys);
    const others = [...tenants.values()].some(({ entities }) => entities.overtaken + entities.deleted > 0);
    if (others) await this.explain(tenants, keys);
    keys.sort((a, b) => (a.tenant === b.tenant ? (a.id < b.id ? -1 : 1) : a.tenant < b.tenant ? -1 : 1));
    return { tenants, keys: keys.slice(0, MOST_KEYS) };
  }

  /** Adds the relation "table": live rows, and tombstones, which are all masked and all count. */
  private async addTable(): Promise<void> {
    const { connection, buckets, table, files, columns, job } = this.context;
    const { snapshot } = table;
    const order = `tenant_id, entity_id, ${rankSql("t")} AS rank`;
    const hashes = columns.map((column, at) => `, ${columnHash(column)} AS h${at}`).join("");
    const names = columns.map(({ name }) => name);
    const options = { columns: [...KEY_COLUMNS, ...ORDER_COLUMNS, ...names], where: ofTenant(job.tenant) };
    const live = files.filter((file) => !file.tombstones && file.maskedRows < file.rows);
    for (const portion of portionsOf(table, live)) {
      await withFilesScan(table, snapshot, portion, options, (sql) =>
        buckets.add(connection, "table", `SELECT ${order}, true AS live${hashes} FROM (${sql}) t`),
      );
    }
    const nothing = columns.map((_, at) => `, NULL::UBIGINT AS h${at}`).join("");
    const dead = files.filter((file) => file.tombstones);
    for (const portion of portionsOf(table, dead)) {
      await withFiles(table, portion, (paths) => {
        const rows = rowsOfFiles(snapshot, paths.map(literal));
        const sql = `SELECT ${order}, false AS live${nothing} FROM ${rows} t WHERE ${ofTenant(job.tenant)}`;
        return buckets.add(connection, "table", sql);
      });
    }
  }

  private async compare(bucket: number, tenants: Tenants, keys: DifferingKey[]): Promise<void> {
    const { connection, buckets, columns } = this.context;
    const each = (of: (at: number) => string): string => columns.map((_, at) => `, ${of(at)}`).join("");
    const table = buckets.has("table")
      ? await buckets.of("table", bucket)
      : `(SELECT *, false AS live FROM ${await buckets.of("job", bucket)} WHERE false)`;
    const equal = columns.map((_, at) => `j.h${at} = t.h${at}`).join(" AND ") || "true";
    await connection.run(
      `CREATE OR REPLACE TEMP TABLE compared AS
       WITH j AS (
         SELECT tenant_id, entity_id, max(rank) FILTER (WHERE NOT broken) AS rank,
           arg_max(shown, rank) FILTER (WHERE NOT broken) AS shown
           ${each((at) => `arg_max(h${at}, rank) FILTER (WHERE NOT broken AND shown) AS h${at}`)}
         FROM ${await buckets.of("job", bucket)} GROUP BY tenant_id, entity_id),
       t AS (
         SELECT tenant_id, entity_id, max(rank) AS rank, arg_max(live, rank) AS live, count(*) FILTER (WHERE live) AS lives
           ${each((at) => `arg_max(h${at}, rank) FILTER (WHERE live) AS h${at}`)}
         FROM ${table} SEMI JOIN j USING (tenant_id, entity_id) GROUP BY tenant_id, entity_id)
       SELECT j.tenant_id, j.entity_id, t.rank, CASE
           WHEN t.rank IS NULL THEN if(j.rank IS NULL, 'setAside', 'missing')
           WHEN t.lives > 1 OR (t.lives = 1 AND NOT t.live) THEN 'wrong'
           WHEN j.rank IS NULL OR t.rank > j.rank THEN if(t.rank.d, 'deleted', 'overtaken')
           WHEN t.rank < j.rank THEN 'stale'
           WHEN t.rank.d THEN if(t.live, 'wrong', 'deleted')
           WHEN t.live AND j.shown THEN 'winning'
           WHEN NOT t.live AND NOT j.shown THEN 'hidden'
           ELSE 'wrong' END AS standing,
         ${equal} AS same ${each((at) => `j.h${at} AS j${at}`)} ${each((at) => `t.h${at} AS t${at}`)}
       FROM j LEFT JOIN t USING (tenant_id, entity_id)`,
    );
    const others =
      "SELECT tenant_id, entity_id, rank FROM compared WHERE standing IN ('overtaken', 'deleted')";
    await buckets.add(connection, "others", others);
    await this.sum(tenants);
    const faults = FAULTS.map(literal).join(", ");
    const differing = columns.map(({ name }, at) => `if(j${at} <> t${at}, ${literal(`${name} `)}, '')`);
    const found = await rowsOf(
      connection,
      `SELECT tenant_id, entity_id, standing, ${["''", ...differing].join(" || ")} FROM compared
       WHERE standing IN (${faults}) OR (standing = 'winning' AND NOT same)
       ORDER BY tenant_id, entity_id LIMIT ${MOST_KEYS}`,
    );
    for (const [tenant, id, standing, names] of found) {
      const why = standing === "winning" ? String(names).trim() : String(standing);
      keys.push({ tenant: String(tenant), id: String(id), why });
    }
    await connection.run("DROP TABLE compared");
  }

  private async sum(tenants: Tenants): Promise<void> {
    const { connection, columns } = this.context;
    const counts = STANDINGS.map((standing) => `count(*) FILTER (WHERE standing = '${standing}')`);
    const of = (sql: string): string => `${sql} FILTER (WHERE standing = 'winning')`;
    const sums = columns.flatMap((_, at) => [
      of(`sum(j${at})`),
      of(`sum(t${at})`),
      `count(*) FILTER (WHERE standing = 'winning' AND j${at} <> t${at})`,
    ]);
    const rows = await rowsOf(
      connection,
      `SELECT tenant_id, ${[...counts, ...sums].join(", ")} FROM compared GROUP BY tenant_id`,
    );
    for (const [tenant, ...values] of rows) {
      const found = values as (bigint | null)[];
      const part = found.slice(STANDINGS.length);
      const every = (from: number) => columns.map((_, at) => part[3 * at + from]!);
      const differing = columns.map(({ name }, at) => [name, Number(part[3 * at + 2])] as const);
      const one: RefinedTenant = {
        entities: Object.fromEntries(
          STANDINGS.map((standing, at) => [standing, Number(found[at])]),
        ) as Record<Standing, number>,
        made: digestsOf(columns, every(0)),
        found: digestsOf(columns, every(1)),
        differing: Object.fromEntries(differing.filter(([, count]) => count > 0)),
      };
      const before = tenants.get(String(tenant));
      tenants.set(String(tenant), before === undefined ? one : added(before, one));
    }
  }

  /** What stands instead of the job's rows must stand in raw. */
  private async explain(tenants: Tenants, keys: DifferingKey[]): Promise<void> {
    const { connection, buckets, raw, job, progress } = this.context;
    const { snapshot } = raw;
    const files = snapshot.files.filter(
      (file) => job.tenant === undefined || mayHoldTenant(file, job.tenant),
    );
    const columns = [...KEY_COLUMNS, "operation", "version", "stream", "partition", "position"];
    const options = { columns, where: `${ofTenant(job.tenant)} AND (${upTo(progress)})` };
    for (const portion of portionsOf(raw, files)) {
      await withFilesScan(raw, snapshot, portion, options, (sql) =>
        buckets.add(
          connection,
          "raw",
          `SELECT tenant_id, entity_id, version, operation = 'DELETED' AS deleted FROM (${sql})`,
        ),
      );
    }
    for (let bucket = 0; bucket < buckets.count; bucket++) {
      await connection.run(
        `CREATE OR REPLACE TEMP TABLE unexplained AS
         SELECT o.tenant_id, o.entity_id, o.rank.d AS deleted FROM ${await buckets.of("others", bucket)} o
         ANTI JOIN ${await buckets.of("raw", bucket)} r
         ON o.entity_id = r.entity_id AND o.tenant_id = r.tenant_id AND o.rank.v = r.version AND o.rank.d = r.deleted`,
      );
      const counts = "SELECT tenant_id, deleted, count(*) FROM unexplained GROUP BY tenant_id, deleted";
      for (const [tenant, deleted, count] of await rowsOf(connection, counts)) {
        const { entities } = tenants.get(String(tenant))!;
        entities[deleted ? "deleted" : "overtaken"] -= Number(count);
        entities.unexplained += Number(count);
      }
      const first = `SELECT tenant_id, entity_id FROM unexplained ORDER BY ALL LIMIT ${MOST_KEYS}`;
      for (const [tenant, id] of await rowsOf(connection, first))
        keys.push({ tenant: String(tenant), id: String(id), why: "unexplained" });
      await connection.run("DROP TABLE unexplained");
    }
  }
}

/** Digests are sums: they add up. */
function added(a: RefinedTenant, b: RefinedTenant): RefinedTenant {
  const sum = (x: Readonly<Record<string, string>>, y: Readonly<Record<string, string>>) =>
    Object.fromEntries(
      Object.entries(x).map(([name, one]) => {
        const total = BigInt(`0x${one}`) + BigInt(`0x${y[name] ?? "0"}`);
        return [name, BigInt.asUintN(64, total).toString(16).padStart(16, "0")];
      }),
    );
  const names = new Set([...Object.keys(a.differing), ...Object.keys(b.differing)]);
  const entities = Object.fromEntries(
    STANDINGS.map((one) => [one, a.entities[one] + b.entities[one]]),
  ) as Record<Standing, number>;
  return {
    entities,
    made: sum(a.made, b.made),
    found: sum(a.found, b.found),
    differing: Object.fromEntries(
      [...names].map((name) => [name, (a.differing[name] ?? 0) + (b.differing[name] ?? 0)]),
    ),
  };
}
