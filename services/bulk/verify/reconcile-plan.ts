import { randomUUID } from "node:crypto";
import { join } from "node:path";
import type { DuckDBConnection } from "@duckdb/node-api";
import { z } from "zod";
import { literal, rowsOf } from "../../base/duckdb.js";
import { TributaryError } from "../../base/errors.js";
import type { IngestContext } from "../../ingest/context.js";
import { rawRoot } from "../../ingest/raw-table.js";
import type { ObjectStore } from "../../storage/object-store.js";
import { DeltaTable } from "../../table/delta-table.js";
import { partsOf } from "../../table/progress.js";
import { mayHoldTenant, portionsOf, withFilesScan } from "../../table/scan.js";
import type { Watermark } from "../jobs/job.js";
import { DELETES, streamOf } from "../jobs/job-tracks.js";
import { keyVersionDigest, ofTenant } from "./digests.js";
import { folderOf, KeyBuckets } from "./key-buckets.js";

/** What is to be compared, and with what. */
export interface ReconcileOrder {
  readonly job: string;
  readonly entityType: string;
  /** All tenants that the export holds rows of, where there is none. */
  readonly tenant: string | undefined;
  readonly watermark: Watermark;
}

const planShape = z.strictObject({
  /** How many entities would be deleted. */
  deletes: z.number().int(),
  /** Of how many tenants. */
  tenants: z.number().int(),
  /** Tenants that have entities and of which the export has no row: they are left alone. */
  leftAlone: z.number().int(),
  /** Those with most of them, and some of the entities: what operators look at before they confirm. */
  byTenant: z.array(z.strictObject({ tenant: z.string(), entities: z.number().int() })),
  some: z.array(z.strictObject({ tenant: z.string(), id: z.string(), version: z.string() })),
  /** Of tenant, id and version of each. */
  digest: z.string(),
  /** Raw, as of which they were found. */
  table: z.string(),
  version: z.number().int(),
  /** Where they stand, in the order of tenant and id. */
  key: z.string(),
  at: z.iso.datetime(),
});
/** Entities that are to be deleted, as of one version of raw. It never changes. */
export type ReconcilePlan = z.infer<typeof planShape>;

/** What is to be deleted of jobs: a plan of each, and a file of its entities. */
export const PLANS = "jobs/reconciles/";
const keyOf = (job: string): string => `${PLANS}${job}.json`;
const FILE = new RegExp(`^${PLANS}reconcile-(.+)-[0-9a-f-]{36}\\.parquet$`);

/** Whose entities a file below PLANS holds; undefined where it is none. */
export const jobOfPlan = (key: string): string | undefined => FILE.exec(key)?.[1];

/** Undefined before there is one. */
export async function planOf(
  store: Pick<ObjectStore, "get">,
  job: string,
): Promise<ReconcilePlan | undefined> {
  const bytes = await store.get(keyOf(job));
  return bytes === undefined ? undefined : planShape.parse(JSON.parse(bytes.toString("utf8")));
}

type Context = Pick<IngestContext, "store" | "duck" | "tableOptions" | "config">;

/**
 * Finds the entities that the export lacks: live by what raw has of them, and written last no later than the watermark.
 * Raw alone knows all of it: also of entities that no model shows, and what came when. Whoever asks again gets the same
 * plan. Memory does not grow with the entities. Errors: TRB-RECONCILE-EXPORT; those of the table and the engine.
 */
export async function makePlan(
  context: Context,
  order: ReconcileOrder,
  rowsAtOnce?: number,
): Promise<ReconcilePlan> {
  const { store, duck, tableOptions } = context;
  const made = await planOf(store, order.job);
  if (made !== undefined) return made;
  const { tenant, entityType } = order;
  const raw = await DeltaTable.open(store, rawRoot(entityType), duck, tableOptions);
  if (raw === undefined) throw empty();
  const { snapshot } = raw;
  const files = snapshot.files.filter((file) => tenant === undefined || mayHoldTenant(file, tenant));
  const rows = files.reduce((sum, file) => sum + file.rows, 0);
  return KeyBuckets.with(
    folderOf(context),
    rows,
    (buckets) =>
      duck.with(async (connection) => {
        const options = { columns: [...COLUMNS], where: ofTenant(tenant) };
        for (const portion of portionsOf(raw, files)) {
          await withFilesScan(raw, snapshot, portion, options, (sql) =>
            buckets.add(connection, "events", eventsSql(order, sql)),
          );
        }
        const name = `exported_${randomUUID().replaceAll("-", "")}`;
        try {
          const left = await findCandidates(connection, buckets, name);
          return await keep(context, order, raw, connection, await buckets.all("candidates"), left);
        } finally {
          await connection.run(`DROP TABLE IF EXISTS ${name}`);
        }
      }),
    rowsAtOnce,
  );
}

const COLUMNS = [
  "tenant_id",
  "entity_id",
  "version",
  "operation",
  "stream",
  "partition",
  "position",
] as const;

function eventsSql({ job, watermark }: ReconcileOrder, sql: string): string {
  return `SELECT tenant_id, entity_id, version, operation = 'DELETED' AS deleted, ${olderSql(watermark)} AS older,
      stream = ${literal(streamOf(job))} AND partition <> ${literal(DELETES)} AS exported FROM (${sql})`;
}

/** SQL for whether an event had come when the watermark was taken. What came along a track that it does not name had not. */
function olderSql(watermark: Watermark): string {
  if ("version" in watermark) return `version <= ${watermark.version}`;
  const tracks = Object.entries(watermark.positions).map(([track, position]) => {
    const { stream, partition } = partsOf(track);
    return `(stream = ${literal(stream)} AND partition = ${literal(partition)} AND position <= ${literal(position)})`;
  });
  return `(${["false", ...tracks].join(" OR ")})`;
}

/** Adds the relation "candidates"; resolves to how many tenants are left alone, of which the export has nothing. */
async function findCandidates(
  connection: DuckDBConnection,
  buckets: KeyBuckets,
  exported: string,
): Promise<number> {
  await connection.run(
    `CREATE TEMP TABLE ${exported} AS SELECT DISTINCT tenant_id FROM ${await buckets.all("events")} WHERE exported`,
  );
  const [[some]] = (await rowsOf(connection, `SELECT count(*) FROM ${exported}`)) as [[bigint]];
  if (some === 0n) throw empty();
  const alone = new Set<string>();
  for (let bucket = 0; bucket < buckets.count; bucket++) {
    // Its last write is the one with the greatest version, which must have come before the watermark. Where that version
    // was also deleted, the entity is gone already. An event that came late with an older version changes nothing.
    const vanished = `SELECT tenant_id, entity_id, max(version) AS version FROM ${await buckets.of("events", bucket)}
      GROUP BY tenant_id, entity_id
      HAVING NOT bool_or(exported) AND max(version) = max(version) FILTER (WHERE older)
        AND coalesce(max(version) FILTER (WHERE deleted) < max(version), true)`;
    const name = `${exported}_vanished`;
    await connection.run(`CREATE OR REPLACE TEMP TABLE ${name} AS ${vanished}`);
    await buckets.add(
      connection,
      "candidates",
      `SELECT * FROM ${name} SEMI JOIN ${exported} USING (tenant_id)`,
    );
    const others = await rowsOf(
      connection,
      `SELECT DISTINCT tenant_id FROM ${name} ANTI JOIN ${exported} USING (tenant_id)`,
    );
    for (const [tenant] of others) alone.add(String(tenant));
    await connection.run(`DROP TABLE ${name}`);
  }
  return alone.size;
}

/** Of two that plan at once the first one's plan is for both. */
async function keep(
  { store }: Context,
  { job }: ReconcileOrder,
  raw: DeltaTable,
  connection: DuckDBConnection,
  candidates: string,
  leftAlone: number,
): Promise<ReconcilePlan> {
  const name = `reconcile-${job}-${randomUUID()}.parquet`;
  const localPath = join(store.staging, name);
  const key = `${PLANS}${name}`;
  await connection.run(
    `COPY (SELECT tenant_id, entity_id, version FROM ${candidates} ORDER BY tenant_id, entity_id)
     TO ${literal(localPath)} (FORMAT parquet, COMPRESSION zstd)`,
  );
  const relation = `read_parquet(${literal(localPath)})`;
  const found = {
    ...(await keyVersionDigest(connection, relation)),
    ...(await shownOf(connection, relation)),
  };
  await store.adopt([{ localPath, key }]);
  const { version } = raw.snapshot;
  const at = new Date().toISOString();
  const plan: ReconcilePlan = { ...found, leftAlone, table: raw.id, version, key, at };
  if ((await store.putIfAbsent(keyOf(job), Buffer.from(JSON.stringify(plan)))) === "created") return plan;
  await store.delete([key]);
  return (await planOf(store, job))!;
}

const empty = (): TributaryError =>
  new TributaryError("TRB-RECONCILE-EXPORT", "the export is empty: expected rows to have landed of it");

const SHOWN = { tenants: 1000, entities: 20 };

async function shownOf(
  connection: DuckDBConnection,
  relation: string,
): Promise<Pick<ReconcilePlan, "byTenant" | "some">> {
  const tenants = await rowsOf(
    connection,
    `SELECT tenant_id, count(*) FROM ${relation} GROUP BY ALL ORDER BY 2 DESC, 1 LIMIT ${SHOWN.tenants}`,
  );
  const some = await rowsOf(
    connection,
    `SELECT tenant_id, entity_id, version FROM ${relation} ORDER BY ALL LIMIT ${SHOWN.entities}`,
  );
  return {
    byTenant: tenants.map(([tenant, entities]) => ({ tenant: String(tenant), entities: Number(entities) })),
    some: some.map(([tenant, id, version]) => ({
      tenant: String(tenant),
      id: String(id),
      version: String(version),
    })),
  };
}
