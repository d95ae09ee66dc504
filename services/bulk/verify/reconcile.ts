import { z } from "zod";
import { identifier, literal } from "../../base/duckdb.js";
import { TributaryError } from "../../base/errors.js";
import type { IngestContext } from "../../ingest/context.js";
import { rawRoot } from "../../ingest/raw-table.js";
import type { ObjectStore } from "../../storage/object-store.js";
import { formatPosition, parsePosition } from "../../stream/positions.js";
import { append } from "../../table/append.js";
import { writeParquet } from "../../table/data-file.js";
import { DeltaTable } from "../../table/delta-table.js";
import { positionsOf } from "../../table/progress.js";
import type { JobHost } from "../jobs/job-run.js";
import { DELETES, streamOf } from "../jobs/job-tracks.js";
import { makePlan, planOf, type ReconcileOrder, type ReconcilePlan } from "./reconcile-plan.js";

/** Deletes of one raw file. */
const CHUNK_ROWS = 250_000;

const confirmationShape = z.strictObject({
  digest: z.string(),
  version: z.number().int(),
  by: z.string(),
  at: z.iso.datetime(),
});

const keyOf = (job: string): string => `jobs/confirmations/${job}.json`;

/** What an operator has read, and lets a job delete: how many entities, as of which version of raw. */
export interface ToDelete {
  readonly count: number;
  readonly asOf: number;
}

/**
 * Lets a job delete what it has found, those entities and no other. Errors: TRB-RECONCILE-COUNT for other numbers than
 * what waits, telling these, or where nothing does.
 */
export async function confirmDeletes(
  store: Pick<ObjectStore, "get" | "put">,
  job: string,
  { count, asOf }: ToDelete,
  by: string,
): Promise<ReconcilePlan> {
  const plan = await planOf(store, job);
  if (plan === undefined) {
    throw new TributaryError("TRB-RECONCILE-COUNT", "count: the job has found none to be confirmed yet");
  }
  if (plan.deletes !== count || plan.version !== asOf) {
    const message = `count, asOf: expected ${plan.deletes} as of version ${plan.version}, which is what the job has found`;
    throw new TributaryError("TRB-RECONCILE-COUNT", message);
  }
  const { digest, version } = plan;
  const confirmation = { digest, version, by, at: new Date().toISOString() };
  await store.put(keyOf(job), Buffer.from(JSON.stringify(confirmation)));
  return plan;
}

/** Who has confirmed what a job has found, and when; undefined while nobody has. */
export async function confirmationOf(
  store: Pick<ObjectStore, "get">,
  job: string,
): Promise<z.infer<typeof confirmationShape> | undefined> {
  const bytes = await store.get(keyOf(job));
  return bytes === undefined ? undefined : confirmationShape.parse(JSON.parse(bytes.toString("utf8")));
}

async function isConfirmed(
  store: Pick<ObjectStore, "get">,
  job: string,
  plan: ReconcilePlan,
): Promise<boolean> {
  if (plan.deletes === 0) return true;
  const confirmed = await confirmationOf(store, job);
  return confirmed?.digest === plan.digest && confirmed.version === plan.version;
}

export interface ReconcileOptions {
  /** Rows of the export that are no events, and have not been mended. */
  readonly rejected: number;
  /** For tests: keys that are in memory at a time, and deletes of a commit. */
  readonly rowsAtOnce?: number;
  readonly chunkRows?: number;
}

/**
 * Deletes the entities that an export does not hold, once all of it has landed: finds them, waits to be confirmed, lands
 * a delete of each in raw, at the version that it was found with; so who was written since survives. Goes on wherever
 * it stopped, and called twice does nothing twice. Resolves to whether it is done, false when the signal stopped it.
 *
 * Errors: TRB-RECONCILE-EXPORT for an export that is empty or incomplete; TRB-RECONCILE-CONFIRM while the deletes are
 * not confirmed, telling their number; TRB-RECONCILE-TABLE; TRB-JOB-ELSEWHERE; those of the table.
 */
export async function reconcile(
  context: Pick<IngestContext, "store" | "duck" | "tableOptions" | "config">,
  order: ReconcileOrder,
  host: Pick<JobHost, "signal" | "pace">,
  { rejected, rowsAtOnce, chunkRows = CHUNK_ROWS }: ReconcileOptions,
): Promise<boolean> {
  if (rejected > 0) {
    const message = `the export is incomplete: ${rejected} of its rows were rejected`;
    throw new TributaryError("TRB-RECONCILE-EXPORT", message);
  }
  const plan = await makePlan(context, order, rowsAtOnce);
  if (!(await isConfirmed(context.store, order.job, plan))) {
    const { deletes, tenants, leftAlone, version } = plan;
    const others =
      leftAlone === 0 ? "" : `; ${leftAlone} tenants of which the export has no row are left alone`;
    const message = `${deletes} entities of ${tenants} tenants would be deleted, as of version ${version} of raw${others}`;
    throw new TributaryError("TRB-RECONCILE-CONFIRM", message);
  }
  return landDeletes(context, order, plan, host, chunkRows);
}

async function landDeletes(
  { store, duck, tableOptions }: Pick<IngestContext, "store" | "duck" | "tableOptions">,
  { job, entityType }: ReconcileOrder,
  plan: ReconcilePlan,
  host: Pick<JobHost, "signal" | "pace">,
  chunkRows: number,
): Promise<boolean> {
  const raw = await DeltaTable.open(store, rawRoot(entityType), duck, tableOptions);
  if (raw?.id !== plan.table) {
    throw new TributaryError("TRB-RECONCILE-TABLE", "raw is not the table any more that was looked at");
  }
  const stream = streamOf(job);
  try {
    for (;;) {
      const before = positionsOf(raw.snapshot, stream);
      const reached = before.get(DELETES);
      const done = reached === undefined ? 0 : parsePosition(reached);
      if (done >= plan.deletes) return true;
      if (host.signal.aborted) return false;
      const end = Math.min(done + chunkRows, plan.deletes);
      const bytes = await store.withLocal([plan.key], ([path]) =>
        duck.with(async (connection) => {
          let written = 0;
          const result = await append(raw, stream, before, async (localPath) => {
            const sql = deletesSql(raw, { stream, entityType }, path!, done, end);
            const file = await writeParquet(connection, sql, localPath);
            written = file.bytes;
            return { file, to: new Map([[DELETES, formatPosition(end)]]) };
          });
          if (result.kind === "conflict") throw new TributaryError("TRB-JOB-ELSEWHERE");
          return written;
        }),
      );
      await host.pace({ rows: end - done, bytes });
    }
  } finally {
    await raw.settled();
  }
}

/** Rows of raw: deletes of the plan's entities (done, end], in its order. */
function deletesSql(
  { snapshot }: Pick<DeltaTable, "snapshot">,
  { stream, entityType }: { readonly stream: string; readonly entityType: string },
  path: string,
  done: number,
  end: number,
): string {
  const values: Readonly<Record<string, string>> = {
    tenant_id: "tenant_id",
    entity_type: literal(entityType),
    entity_id: "entity_id",
    operation: "'DELETED'",
    version: "version",
    attributes: "MAP {}",
    stream: literal(stream),
    partition: literal(DELETES),
    position: `lpad((file_row_number + 1)::VARCHAR, ${formatPosition(0).length}, '0')`,
    received_at: "now()",
  };
  const columns = snapshot.columns.map(
    ({ name, type }) => `CAST(${values[name] ?? "NULL"} AS ${type}) AS ${identifier(name)}`,
  );
  return `SELECT ${columns.join(", ")} FROM read_parquet(${literal(path)}, file_row_number=true)
    WHERE file_row_number >= ${done} AND file_row_number < ${end}`;
}
