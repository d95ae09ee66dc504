import type { JsonValue } from "@bufbuild/protobuf";
import type { Code } from "../../base/codes.js";
import { literal, rowsOf } from "../../base/duckdb.js";
import { TributaryError } from "../../base/errors.js";
import { Changes } from "../../follow/change.js";
import type { IngestContext } from "../../ingest/context.js";
import { wholeEvents } from "../../ingest/replay.js";
import { sample } from "../../sources/inspect.js";
import type { Manifest } from "../../sources/manifest.js";
import { CheckedMapping, type Leftover } from "../../sources/mapping.js";
import type { Place } from "../../sources/sources.js";
import { sharesOf } from "../chunks/event-types.js";
import type { BootstrapJob } from "../jobs/job.js";
import { type SampledOrder, type SampledRejects, type SourceSample, withSample } from "./source-sample.js";
import {
  liveVersions,
  magnitude,
  SPREAD,
  type Spread,
  type Spreads,
  scaleApart,
  spreadsOf,
} from "./version-scale.js";

/** What a check works with: of ingest's, and of whoever else has the lake's store. */
export type CheckContext = Pick<IngestContext, "store" | "duck" | "tableOptions" | "registry" | "config">;

/** One row as it would land. */
export interface PreviewRow {
  readonly tenant: string;
  readonly entityId: string;
  readonly operation: string;
  /** As text: numbers of JSON have fewer digits. */
  readonly version: string;
  readonly occurredAt?: string;
  /** Proto3 JSON. */
  readonly payload?: JsonValue;
}

/** What would become of a source, as far as a sample tells. Plain JSON. */
export interface BootstrapCheck {
  readonly source: string;
  readonly format: string;
  readonly files: number;
  readonly bytes: number;
  /** Of the whole source; null where nothing tells. */
  readonly rows: number | null;
  /** Whether that is known, and not told by the sample. */
  readonly rowsExact: boolean;
  readonly tenant: string | null;
  readonly sample: { readonly rows: number; readonly rejected: number };
  /** Of the sample: why rows are no events, the most frequent reason first. */
  readonly rejects: readonly SampledRejects[];
  /** Ten rows at most. */
  readonly preview: readonly PreviewRow[];
  /** Fields that nothing is mapped to, columns that are not mapped; null for whole events. */
  readonly leftover: Leftover | null;
  readonly versions: readonly {
    readonly entityType: string;
    readonly export: Spread | null;
    /** Of what producers have sent. */
    readonly live: Spread | null;
  }[];
  /** What is worth a look, and in nobody's way. */
  readonly notes: readonly string[];
  /** Why the job would not begin. */
  readonly refusals: readonly { readonly code: Code; readonly message: string }[];
}

const PREVIEW = 10;
/** Tenants of the sample whose versions are compared one by one: those with the most rows. */
const TENANTS = 50;
const LEFTOVER_ROWS = 200;
/** With so many tenants, and no two rows of one as a rule, a sample is of no product's tenants. */
const MANY_TENANTS = 500;

/**
 * Looks at a source before anything of it lands: mapping and descriptor, on a sample, and the scale of its versions.
 * Whoever begins a job asks first, and again when it runs: `requirePassed` tells what stands against it. A source of
 * whole events, of any type, is looked at type by type, for which all of it is read. Errors: TRB-BULK-MAPPING,
 * TRB-BULK-TYPE, for what does not fit at all; those of sources.
 */
export async function checkBootstrap(
  context: CheckContext,
  order: Pick<BootstrapJob, "entityType" | "tenant" | "mapping" | "csv" | "reconcile">,
  place: Place,
  manifest: Manifest,
): Promise<BootstrapCheck> {
  const { registry, config } = context;
  const { entityType } = order;
  const isEvents = manifest.format === "events";
  if (order.reconcile !== undefined && entityType === undefined)
    throw new TributaryError("TRB-BULK-MAPPING", "reconcile: expected an entityType beside it");
  if (entityType === undefined ? !isEvents : registry.entityType(entityType) === undefined)
    throw new TributaryError("TRB-BULK-MAPPING", "entityType: expected one that this lake knows");
  if ((order.mapping === undefined) !== isEvents) {
    const expected = isEvents ? "none, as the source holds whole events" : "one";
    throw new TributaryError("TRB-BULK-MAPPING", `mapping: expected ${expected}`);
  }
  const parts: Pick<SampledOrder, "entityType" | "share">[] =
    entityType === undefined
      ? (await sharesOf(place, manifest, config.bulk, registry)).map((share) => ({
          entityType: share.entityType,
          share,
        }))
      : [{ entityType }];
  const looks: Look[] = [];
  for (const part of parts) looks.push(await look(context, { ...order, ...part }, place, manifest));
  const { leftover, notes } = await leftoverOf(
    context,
    { ...order, entityType: parts[0]!.entityType },
    place,
    manifest,
  );
  if (looks.some(({ exported, live }) => exported.all !== undefined && live.all === undefined))
    notes.push(
      "no producer has sent a version yet: nothing tells whether the export's are on the same scale",
    );
  if (
    looks.some(
      ({
        sampled,
        exported: {
          byTenant: { size },
        },
      }) => size >= MANY_TENANTS && size > sampled.rows / 2,
    )
  )
    notes.push(
      "most rows of the sample are of a tenant of their own: is tenant the right column? What compares source and lake holds all tenants in memory",
    );
  const sum = (of: (look: Look) => number) => looks.reduce((total, each) => total + of(each), 0);
  const known = looks.every(({ sampled }) => sampled.sourceRows !== undefined);
  return {
    source: manifest.source,
    format: manifest.format,
    files: manifest.files.length,
    bytes: manifest.bytes,
    rows: known ? sum(({ sampled }) => sampled.sourceRows!.rows) : null,
    rowsExact: known && looks.every(({ sampled }) => sampled.sourceRows!.exact),
    tenant: order.tenant ?? null,
    sample: { rows: sum(({ sampled }) => sampled.rows), rejected: sum(({ sampled }) => sampled.rejected) },
    rejects: looks.flatMap(({ sampled }) => sampled.rejects),
    preview: looks.flatMap(({ preview }) => preview).slice(0, PREVIEW),
    leftover,
    versions: looks.map(({ entityType: type, exported, live }) => ({
      entityType: type,
      export: exported.all ?? null,
      live: live.all ?? null,
    })),
    notes,
    refusals: looks.flatMap(({ sampled, exported, live }) => [
      ...nothingFits(sampled),
      ...otherScale(exported, live),
      ...watermarkScale(order, live),
    ]),
  };
}

/** What a sample of one entity type tells. */
interface Look {
  readonly entityType: string;
  readonly sampled: SourceSample;
  readonly exported: Spreads;
  readonly live: Spreads;
  readonly preview: readonly PreviewRow[];
}

const look = (context: CheckContext, order: SampledOrder, place: Place, manifest: Manifest): Promise<Look> =>
  withSample(context, order, place, manifest, async (sampled) => {
    const { entityType } = order;
    const exported = await exportedVersions(context, sampled);
    const tenants = [...exported.byTenant].sort(([, a], [, b]) => b.rows - a.rows).slice(0, TENANTS);
    const names = tenants.map(([tenant]) => tenant);
    // Where none of these is known yet, the product's other tenants tell what it counts by.
    const own = names.length === 0 ? spreadsOf([]) : await liveVersions(context, entityType, names);
    const live =
      own.all === undefined && exported.all !== undefined ? await liveVersions(context, entityType, []) : own;
    return { entityType, sampled, exported, live, preview: await previewOf(context, entityType, sampled) };
  });

/** Errors: the first refusal. */
export function requirePassed({ refusals }: Pick<BootstrapCheck, "refusals">): void {
  const [first] = refusals;
  if (first !== undefined) throw new TributaryError(first.code, first.message);
}

const filesSql = ({ paths }: SourceSample): string =>
  `read_parquet([${paths.map(literal).join(", ")}], hive_partitioning=false)`;

async function exportedVersions({ duck }: CheckContext, sampled: SourceSample): Promise<Spreads> {
  if (sampled.paths.length === 0) return spreadsOf([]);
  const sql = `SELECT tenant_id, ${SPREAD} FROM ${filesSql(sampled)} GROUP BY ROLLUP (tenant_id)`;
  return spreadsOf(await duck.with((connection) => rowsOf(connection, sql)));
}

async function previewOf(
  { duck, registry }: CheckContext,
  entityType: string,
  sampled: SourceSample,
): Promise<PreviewRow[]> {
  if (sampled.paths.length === 0) return [];
  // Payloads that a row refers to are not looked for: the job does.
  const changes = new Changes(registry, { fetch: async () => "missing" }, 0);
  const rows: PreviewRow[] = [];
  await duck.with(async (connection) => {
    const sql = `SELECT * FROM ${filesSql(sampled)} ORDER BY partition, position LIMIT ${PREVIEW}`;
    for await (const { event, ...at } of wholeEvents({ connection, entityType }, sql)) {
      const change = await changes.read(event, 0, event.length, at, () => true);
      if (change === undefined || typeof change === "string") continue;
      const { tenantId, entityId, operation, version, occurredAt, payload } = change;
      rows.push({
        tenant: tenantId,
        entityId,
        operation,
        version: String(version),
        ...(occurredAt === undefined ? {} : { occurredAt }),
        ...(payload === undefined ? {} : { payload }),
      });
    }
  });
  return rows;
}

async function leftoverOf(
  { registry, config }: CheckContext,
  { mapping, entityType, csv }: Pick<BootstrapJob, "mapping" | "csv"> & { readonly entityType: string },
  place: Place,
  manifest: Manifest,
): Promise<{ readonly leftover: Leftover | null; readonly notes: string[] }> {
  if (mapping === undefined) return { leftover: null, notes: [] };
  const { columns } = await sample(place, manifest, LEFTOVER_ROWS, config.bulk, { csv });
  try {
    return {
      leftover: new CheckedMapping(mapping, columns, registry.entityType(entityType)!).leftover,
      notes: [],
    };
  } catch (error) {
    // Rows of columns have passed before. A record of JSON need not have all of its fields.
    if (!(error instanceof TributaryError)) throw error;
    return {
      leftover: null,
      notes: [`the first records do not have all that the mapping names: ${error.message}`],
    };
  }
}

function nothingFits({ rows, rejects: [first] }: SourceSample): BootstrapCheck["refusals"] {
  if (rows > 0 || first === undefined) return [];
  const message = `expected rows that become events, found none in the sample; of most: ${first.reason} (${first.code})`;
  return [{ code: "TRB-BULK-MAPPING", message }];
}

/** Tenants one by one, where both sides have versions of theirs; else all together. */
function otherScale(exported: Spreads, live: Spreads): BootstrapCheck["refusals"] {
  const pairs = [...exported.byTenant].flatMap(([tenant, ours]) => {
    const theirs = live.byTenant.get(tenant);
    return theirs === undefined ? [] : [[ours, theirs] as const];
  });
  if (pairs.length === 0 && exported.all !== undefined && live.all !== undefined)
    pairs.push([exported.all, live.all]);
  for (const [ours, theirs] of pairs) {
    if (scaleApart(ours, theirs) === undefined) continue;
    const scales = `found ${magnitude(ours.median)} in the export and ${magnitude(theirs.median)} live`;
    const message = `version: expected the scale of those that producers send, ${scales}`;
    return [{ code: "TRB-BULK-VERSIONS", message }];
  }
  return [];
}

/** A time as the watermark of counters would have everything that is live come before it. */
function watermarkScale(
  { reconcile }: Pick<BootstrapJob, "reconcile">,
  { all }: Spreads,
): BootstrapCheck["refusals"] {
  const watermark = reconcile?.watermark;
  if (watermark === undefined || !("version" in watermark) || all === undefined) return [];
  const version = Number(watermark.version);
  if (scaleApart({ rows: 1, median: version, high: version }, all) !== "export") return [];
  const scales = `found ${magnitude(version)} and ${magnitude(all.median)} live`;
  const message = `reconcile.watermark.version: expected the scale of those that producers send, ${scales}`;
  return [{ code: "TRB-BULK-VERSIONS", message }];
}
