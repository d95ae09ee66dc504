import { z } from "zod";
import { literal } from "../../base/duckdb.js";
import type { IngestContext } from "../../ingest/context.js";
import { rawRoot } from "../../ingest/raw-table.js";
import type { ObjectStore } from "../../storage/object-store.js";
import { DeltaTable } from "../../table/delta-table.js";
import { mayHoldTenant, portionsOf, withFilesScan } from "../../table/scan.js";
import type { TableSnapshot } from "../../table/types.js";
import { type EventDigest, type EventDigests, eventDigests } from "../chunks/row-digests.js";
import type { JobHost } from "../jobs/job-run.js";
import { LANE, streamOf } from "../jobs/job-tracks.js";
import { addDigests, NO_EVENTS, ofTenant, sameEvents } from "./digests.js";
import { checkRefined, type RefinedCheck } from "./refined-check.js";
import type { SourceFacts } from "./source-facts.js";
import { FAULTS, type RefinedTenant, STANDINGS } from "./standings.js";

/** Tenants that a report tells one by one: those that are not equal first, then those with most rows. */
const MOST_TENANTS = 1000;

const count = z.int().min(0);
const events = z.strictObject({ rows: count, keys: z.string(), events: z.string() });
const standings = z.strictObject(
  Object.fromEntries(STANDINGS.map((one) => [one, count])) as Record<
    (typeof STANDINGS)[number],
    typeof count
  >,
);
const digests = z.record(z.string(), z.string());
const ofModel = z.strictObject({
  entities: standings,
  made: digests,
  found: digests,
  differing: z.record(z.string(), count),
  equal: z.boolean(),
});

/**
 * Whether all of a source is in the lake. `source` and `raw` are rows, a digest of their ids and one of all they say;
 * `models` is what has become of their entities (refined-check.ts). Keys that differ are for operators alone.
 */
const verificationShape = z.strictObject({
  job: z.string(),
  entityType: z.string(),
  at: z.iso.datetime(),
  /** All of the source's rows are in raw, once each, and of each entity there stands what has to, everywhere. */
  equal: z.boolean(),
  /** Rows of the source that are no events: of whom they are is not known. */
  rejected: count,
  source: events,
  raw: events.extend({ version: count }),
  /** Table versions, by model. */
  models: z.record(z.string(), count),
  tenants: z.array(
    z.strictObject({
      tenant: z.string(),
      equal: z.boolean(),
      source: events,
      raw: events,
      models: z.record(z.string(), ofModel),
    }),
  ),
  /** Tenants that are not told of, all of them equal unless very many are not. */
  more: count,
  keys: z.array(z.strictObject({ model: z.string(), tenant: z.string(), id: z.string(), why: z.string() })),
});
export type Verification = z.infer<typeof verificationShape>;

/** What is to be verified. */
export interface VerifiedJob {
  readonly job: string;
  readonly entityType: string;
  readonly tenant: string | undefined;
}

type Context = Pick<
  IngestContext,
  "store" | "duck" | "tableOptions" | "config" | "registry" | "decoding" | "models"
>;

/**
 * Compares a source with what the lake has of it, also beside live traffic and long after. Reads the job's rows of raw
 * once, and each model's table once. Memory grows with the number of tenants, not with rows.
 * Errors: TRB-VERIFY-BEHIND; those of tables.
 */
export async function verify(
  context: Context,
  order: VerifiedJob,
  source: SourceFacts,
  host: Pick<JobHost, "signal" | "pace">,
  rowsAtOnce?: number,
): Promise<Verification> {
  const { store, duck, tableOptions, models } = context;
  const { job, entityType, tenant } = order;
  const table = await DeltaTable.open(store, rawRoot(entityType), duck, tableOptions);
  // Where nothing has landed there is no table.
  const version = table?.snapshot.version ?? 0;
  const raw =
    table === undefined
      ? new Map<string, EventDigest>()
      : await digestsOfJob(context, table, table.snapshot, order);
  const checks: RefinedCheck[] = [];
  for (const model of models) {
    if (table === undefined || model.entityType !== entityType) continue;
    const pace = async ({ count: rows, byteCount: bytes }: { count: number; byteCount: number }) => {
      host.signal.throwIfAborted();
      await host.pace({ rows, bytes });
    };
    const options = { pace, ...(rowsAtOnce === undefined ? {} : { rowsAtOnce }) };
    checks.push(
      await checkRefined(context, { stream: streamOf(job), tenant }, table, model, source.made, options),
    );
  }
  const names = new Set([
    ...source.digests.keys(),
    ...raw.keys(),
    ...checks.flatMap((one) => [...one.tenants.keys()]),
  ]);
  const tenants = [...names].map((name) => tenantOf(name, source.digests, raw, checks));
  const equal = tenants.every((one) => one.equal);
  tenants.sort((a, b) => Number(a.equal) - Number(b.equal) || b.source.rows - a.source.rows);
  return {
    job,
    entityType,
    at: new Date().toISOString(),
    equal,
    rejected: source.rejected,
    source: total(source.digests),
    raw: { ...total(raw), version },
    models: Object.fromEntries(checks.map((check) => [check.model, check.version])),
    tenants: tenants.slice(0, MOST_TENANTS),
    more: Math.max(0, tenants.length - MOST_TENANTS),
    keys: checks.flatMap(({ model, keys }) => keys.map((key) => ({ model, ...key }))),
  };
}

/** Whether raw has the source's rows, each once, and no other ones of the job. */
export async function hasLanded(
  context: Pick<IngestContext, "store" | "duck" | "tableOptions">,
  order: VerifiedJob,
  { digests }: SourceFacts,
): Promise<boolean> {
  const { store, duck, tableOptions } = context;
  const table = await DeltaTable.open(store, rawRoot(order.entityType), duck, tableOptions);
  if (table === undefined) return digests.size === 0;
  const raw = await digestsOfJob(context, table, table.snapshot, order);
  const names = new Set([...digests.keys(), ...raw.keys()]);
  return [...names].every((one) => sameEvents(digests.get(one) ?? NO_EVENTS, raw.get(one) ?? NO_EVENTS));
}

/** Of the rows that a job has brought to raw, but for its deletes, which no source has, and what was mended. */
async function digestsOfJob(
  { duck }: Pick<IngestContext, "duck">,
  raw: DeltaTable,
  snapshot: TableSnapshot,
  { job, tenant }: VerifiedJob,
): Promise<Map<string, EventDigest>> {
  const stream = streamOf(job);
  const digests = new Map<string, EventDigest>();
  const files = snapshot.files.filter(
    (file) =>
      mayHold(file.min.stream, file.max.stream, stream) &&
      (tenant === undefined || mayHoldTenant(file, tenant)),
  );
  const where = `stream = ${literal(stream)} AND partition = ${literal(LANE)} AND ${ofTenant(tenant)}`;
  for (const portion of portionsOf(raw, files)) {
    await withFilesScan(raw, snapshot, portion, { where }, (sql) =>
      duck.with(async (connection) => addDigests(digests, await eventDigests(connection, `(${sql})`))),
    );
  }
  return digests;
}

const mayHold = (min: unknown, max: unknown, value: string): boolean =>
  typeof min !== "string" || typeof max !== "string" || (min <= value && value <= max);

type Tenant = Verification["tenants"][number];

function tenantOf(
  tenant: string,
  source: EventDigests,
  raw: EventDigests,
  checks: readonly RefinedCheck[],
): Tenant {
  const [there, here] = [source.get(tenant) ?? NO_EVENTS, raw.get(tenant) ?? NO_EVENTS];
  const models = checks.flatMap(({ model, tenants }) => {
    const found = tenants.get(tenant);
    return found === undefined ? [] : [[model, { ...found, equal: isEqual(found) }] as const];
  });
  const equal = sameEvents(there, here) && models.every(([, one]) => one.equal);
  return { tenant, equal, source: there, raw: here, models: Object.fromEntries(models) };
}

const isEqual = ({ entities, differing }: RefinedTenant): boolean =>
  Object.keys(differing).length === 0 && FAULTS.every((fault) => entities[fault] === 0);

function total(digests: EventDigests): EventDigest {
  const sum = new Map<string, EventDigest>();
  for (const one of digests.values()) addDigests(sum, new Map([["", one]]));
  return sum.get("") ?? NO_EVENTS;
}

const folderOf = (job: string): string => `jobs/reports/${job}/`;
const keyOf = (job: string, entityType: string): string => `${folderOf(job)}${entityType}.json`;

/** Keeps what was found last. */
export async function keepVerification(store: Pick<ObjectStore, "put">, found: Verification): Promise<void> {
  await store.put(keyOf(found.job, found.entityType), Buffer.from(JSON.stringify(found)));
}

/** What was found last; undefined where nobody has looked yet. */
export async function verificationOf(
  store: Pick<ObjectStore, "get">,
  job: string,
  entityType: string,
): Promise<Verification | undefined> {
  const bytes = await store.get(keyOf(job, entityType));
  return bytes === undefined ? undefined : verificationShape.parse(JSON.parse(bytes.toString("utf8")));
}

/** As `verificationOf`, of all entity types that the job brought. */
export async function verificationsOf(
  store: Pick<ObjectStore, "get" | "list">,
  job: string,
): Promise<Verification[]> {
  const found: Verification[] = [];
  const folder = folderOf(job);
  for await (const { key } of store.list(folder)) {
    const one = await verificationOf(store, job, key.slice(folder.length, -".json".length));
    if (one !== undefined) found.push(one);
  }
  return found;
}
