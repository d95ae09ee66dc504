import { basename, join } from "node:path";
import { TributaryError } from "../../base/errors.js";
import { layout } from "../../base/paths.js";
import type { IngestContext } from "../../ingest/context.js";
import { inspect } from "../../sources/inspect.js";
import type { Manifest } from "../../sources/manifest.js";
import { shown } from "../../sources/root.js";
import { type Place, Sources } from "../../sources/sources.js";
import type { BootstrapOrder } from "../chunks/bootstrap-order.js";
import { type EventShare, sharesOf } from "../chunks/event-types.js";
import type { BootstrapJob, JobState } from "../jobs/job.js";
import type { JobHost, RunJob } from "../jobs/job-run.js";
import { Bootstrap } from "./bootstrap.js";
import { checkBootstrap, requirePassed } from "./bootstrap-check.js";
import { JobCounts } from "./job-counts.js";
import { endJob } from "./job-end.js";
import { refineJob } from "./refine-job.js";

/** What a job reads is listed once: whoever goes on with it reads the same. */
const keyOf = (id: string): string => `jobs/manifests/${id}.json`;

const sharesKeyOf = (id: string): string => `jobs/shares/${id}.json`;

/** One entity type of a job: where it lies, and how far it is. */
interface Pass {
  readonly entityType: string;
  readonly share: EventShare | undefined;
  readonly counts: JobCounts;
  /** Of the source. */
  readonly bytes: number;
}

/**
 * Brings in an export: lands it in raw, takes it into the models of its entity types, and deletes what it lacks where
 * that was asked for.
 */
export const runBootstrap: RunJob<BootstrapJob> = async (context, order, host) => {
  const { config, store } = context;
  if (order.reconcile !== undefined && order.entityType === undefined)
    throw new TributaryError("TRB-BULK-MAPPING", "reconcile: expected an entityType beside it");
  host.tell({ phase: "checking" });
  // Of this process alone, and emptied by the next one in its place.
  const scratch = join(layout(config.data).scratch, basename(store.staging), "sources");
  const sources = await Sources.open(config, scratch);
  try {
    const place = sources.at(order.source);
    const manifest = await manifestOf(context, order, place);
    const passes = await passesOf(context, order, place, manifest);
    const bytes = passes.reduce((sum, pass) => sum + pass.bytes, 0);
    const rows = () => passes.reduce((sum, { counts }) => sum + counts.told.rowsLanded, 0);
    // Producers may have begun since it was asked for, and the source may be another.
    if (rows() === 0) requirePassed(await checkBootstrap(context, order, place, manifest));
    const told = () => ({
      rowsLanded: rows(),
      bytesDone: passes.reduce((sum, { counts }) => sum + counts.told.bytesDone, 0),
    });
    // A run that was killed may have left its last chunk to raw alone: a model takes in the next one beside raw only
    // where it is in step.
    if (rows() > 0 && !(await refine(context, order.id, passes, host))) return false;
    host.tell({ phase: "landing", files: manifest.files.length, bytes, ...told() });
    for (const [at, pass] of passes.entries()) {
      if (!(await land(context, order, host, { place, manifest, pass, at, told }))) return false;
      pass.counts.ended();
    }
    host.tell({ phase: "refining", bytesDone: bytes });
    if (!(await refine(context, order.id, passes, host))) return false;
    host.tell({ phase: "verifying" });
    for (const { entityType, share, counts } of passes) {
      const landing = landingOf(context, order, { place, manifest, entityType, share });
      if (!(await endJob(context, order, landing, host, counts.told.rowsLanded))) return false;
    }
    return true;
  } finally {
    sources.close();
  }
};

async function refine(
  context: IngestContext,
  job: string,
  passes: readonly Pass[],
  host: JobHost,
): Promise<boolean> {
  let before = 0;
  for (const { entityType, counts } of passes) {
    const { rowsLanded } = counts.told;
    const tell: JobHost["tell"] = (change) =>
      host.tell({ ...change, rowsRefined: before + (change.rowsRefined ?? 0) });
    if (!(await refineJob(context, job, entityType, { signal: host.signal, tell }, rowsLanded))) return false;
    before += rowsLanded;
  }
  return true;
}

function landingOf(
  { config }: Pick<IngestContext, "config">,
  { id, tenant, mapping, csv }: BootstrapJob,
  pass: Pick<BootstrapOrder, "place" | "manifest" | "entityType" | "share">,
): BootstrapOrder {
  return { ...pass, job: id, tenant, mapping, csv, limits: config.bulk };
}

function land(
  context: IngestContext,
  order: BootstrapJob,
  host: JobHost,
  {
    place,
    manifest,
    pass,
    at,
    told,
  }: {
    readonly place: Place;
    readonly manifest: Manifest;
    readonly pass: Pass;
    /** Its number: rejects of each pass are told in their order. */
    readonly at: number;
    readonly told: () => Pick<JobState, "rowsLanded" | "bytesDone">;
  },
): Promise<boolean> {
  const { entityType, share, counts } = pass;
  return Bootstrap.run(context, landingOf(context, order, { place, manifest, entityType, share }), {
    signal: host.signal,
    pace: (work) => host.pace(work),
    landed: (chunk) => {
      counts.landed(chunk);
      host.tell(told());
    },
    reject: (number, rejects) => {
      const file = shown(place.root.name, manifest.files[number]!.path);
      return host.reject({ number, shown: file, part: String(at) }, rejects);
    },
  });
}

/** What a job lands, type by type. Errors: TRB-BULK-MAPPING, those of `sharesOf`. */
async function passesOf(
  context: IngestContext,
  order: BootstrapJob,
  place: Place,
  manifest: Manifest,
): Promise<Pass[]> {
  const { id, entityType } = order;
  const open = async (type: string, share: EventShare | undefined): Promise<Pass> => {
    // Files that hold nothing of it are nothing to it.
    const files = manifest.files.map((file, at) =>
      share?.files.includes(at) === false ? { ...file, bytes: 0 } : file,
    );
    const counts = await JobCounts.open(context, id, type, { ...manifest, files });
    return { entityType: type, share, counts, bytes: files.reduce((sum, file) => sum + file.bytes, 0) };
  };
  if (entityType !== undefined) return [await open(entityType, undefined)];
  if (manifest.format !== "events") {
    throw new TributaryError("TRB-BULK-MAPPING", "entityType: expected that of what the source holds");
  }
  const passes: Pass[] = [];
  for (const share of await sharesFor(context, id, place, manifest)) {
    passes.push(await open(share.entityType, share));
  }
  return passes;
}

/** Found out once, as the manifest is: a type that is known since then is no part of the job. */
async function sharesFor(
  { store, config, registry }: Pick<IngestContext, "store" | "config" | "registry">,
  id: string,
  place: Place,
  manifest: Manifest,
): Promise<readonly EventShare[]> {
  const kept = await store.get(sharesKeyOf(id));
  if (kept !== undefined) return JSON.parse(kept.toString("utf8")) as EventShare[];
  const shares = await sharesOf(place, manifest, config.bulk, registry);
  const created = await store.putIfAbsent(sharesKeyOf(id), Buffer.from(JSON.stringify(shares)));
  return created === "created" ? shares : sharesFor({ store, config, registry }, id, place, manifest);
}

async function manifestOf(
  { store, config }: Pick<IngestContext, "store" | "config">,
  { id, format, csv }: Pick<BootstrapJob, "id" | "format" | "csv">,
  place: Place,
): Promise<Manifest> {
  const kept = await store.get(keyOf(id));
  if (kept !== undefined) return JSON.parse(kept.toString("utf8")) as Manifest;
  const manifest = await inspect(place, { format, csv }, config.bulk);
  // Of two runs at once one has listed for both.
  const created = await store.putIfAbsent(keyOf(id), Buffer.from(JSON.stringify(manifest)));
  return created === "created" ? manifest : manifestOf({ store, config }, { id, format, csv }, place);
}
