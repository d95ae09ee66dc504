import { literal, rowsOf } from "../../base/duckdb.js";
import type { IngestContext } from "../../ingest/context.js";
import { rawRoot } from "../../ingest/raw-table.js";
import { DeltaTable } from "../../table/delta-table.js";
import { mayHoldTenant, withFilesScan } from "../../table/scan.js";
import type { TableFile } from "../../table/types.js";

/** Of versions above 0. */
export interface Spread {
  readonly rows: number;
  readonly median: number;
  /** Nearly all are at most this. */
  readonly high: number;
}

/** By tenant, and of all. */
export interface Spreads {
  readonly all: Spread | undefined;
  readonly byTenant: ReadonlyMap<string, Spread>;
}

/** What is read of raw for it, at most, or one file. */
const READ_BYTES = 64 * 1024 * 1024;
/** No stream of events has a name that begins so. */
const JOBS = "bootstrap-";

/** Columns that `spreadsOf` reads, of rows that have a `tenant_id` and a `version`. */
export const SPREAD = `count(*) FILTER (version > 0)::DOUBLE, (quantile_disc(version, 0.5) FILTER (version > 0))::DOUBLE,
  (quantile_disc(version, 0.95) FILTER (version > 0))::DOUBLE`;

/** Of rows of a tenant (NULL for all of them) and SPREAD. */
export function spreadsOf(rows: readonly (readonly unknown[])[]): Spreads {
  const byTenant = new Map<string, Spread>();
  let all: Spread | undefined;
  for (const [tenant, count, median, high] of rows) {
    if (Number(count) === 0) continue;
    const spread = { rows: Number(count), median: Number(median), high: Number(high) };
    if (tenant === null) all = spread;
    else byTenant.set(String(tenant), spread);
  }
  return { all, byTenant };
}

/**
 * A sample of the versions that producers have sent, the greatest of each entity: of the newest files of raw that can
 * hold events of these tenants (of all, where none is named). Rows that jobs have brought do not count: two exports on a
 * wrong scale would confirm each other. Errors: those of reading.
 */
export async function liveVersions(
  { store, duck, tableOptions }: Pick<IngestContext, "store" | "duck" | "tableOptions">,
  entityType: string,
  tenants: readonly string[],
): Promise<Spreads> {
  const table = await DeltaTable.open(store, rawRoot(entityType), duck, tableOptions);
  if (table === undefined) return spreadsOf([]);
  const { snapshot } = table;
  const where = [`version > 0`, `NOT starts_with(stream, ${literal(JOBS)})`];
  if (tenants.length > 0) where.push(`tenant_id IN (${tenants.map(literal).join(", ")})`);
  const options = { columns: ["tenant_id", "entity_id", "version"], where: where.join(" AND ") };
  const rows = await withFilesScan(table, snapshot, newestOf(snapshot.files, tenants), options, (sql) =>
    duck.with((connection) =>
      rowsOf(
        connection,
        `SELECT tenant_id, ${SPREAD} FROM
           (SELECT tenant_id, entity_id, max(version) AS version FROM (${sql}) GROUP BY ALL)
         GROUP BY ROLLUP (tenant_id)`,
      ),
    ),
  );
  return spreadsOf(rows);
}

function newestOf(files: readonly TableFile[], tenants: readonly string[]): TableFile[] {
  const ofJobs = ({ min, max }: TableFile) => isOfJobs(min.stream) && isOfJobs(max.stream);
  const found = files
    .filter((file) => !ofJobs(file))
    .filter((file) => tenants.length === 0 || tenants.some((tenant) => mayHoldTenant(file, tenant)))
    .sort((a, b) => b.add.modificationTime - a.add.modificationTime);
  let bytes = 0;
  return found.filter((file, at) => {
    bytes += file.bytes;
    return at === 0 || bytes <= READ_BYTES;
  });
}

const isOfJobs = (stream: string | undefined): boolean => stream?.startsWith(JOBS) === true;

/** From so large versions on, which are times or count all of a product's changes, two orders of magnitude tell. */
const LARGE = 100_000;

const isFarAbove = (one: Spread, other: Spread): boolean =>
  one.median > other.high * (one.median >= LARGE ? 100 : 1_000);

/**
 * Which side's versions are on a scale far above the other's: half of them lie beyond nearly all of the other's by
 * orders of magnitude. Undefined when neither's are. Entities of one product differ by less, as some change often and
 * some once; and single versions that are wrong tell nothing.
 */
export function scaleApart(exported: Spread, live: Spread): "export" | "live" | undefined {
  if (isFarAbove(exported, live)) return "export";
  return isFarAbove(live, exported) ? "live" : undefined;
}

/** "about 10^12": what versions there are is nobody's to read in a message. */
export const magnitude = (version: number): string =>
  `about 10^${Math.max(0, Math.floor(Math.log10(version)))}`;
