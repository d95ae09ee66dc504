import { randomUUID } from "node:crypto";
import { join } from "node:path";
import { TributaryError } from "../base/errors.js";
import { layout } from "../base/paths.js";
import type { IngestContext } from "../ingest/context.js";
import { inspect } from "../sources/inspect.js";
import type { Manifest } from "../sources/manifest.js";
import { shown } from "../sources/root.js";
import { type Place, Sources } from "../sources/sources.js";
import { Bootstrap } from "./bootstrap.js";
import { checkBootstrap, requirePassed } from "./bootstrap-check.js";
import { type EventShare, sharesOf } from "./event-types.js";
import type { BootstrapJob, JobState } from "./job.js";
import { JobCounts } from "./job-counts.js";
import type { JobHost, RunJob } from "./job-run.js";
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

/** Brings in an export: lands it in raw, then takes it into the models of its entity types. */
export const runBootstrap: RunJob<BootstrapJob> = async (context, order, host) => {
  const { config } = context;
  host.tell({ phase: "checking" });
  const scratch = join(layout(config.data).scratch, `job-${order.id}-${randomUUID().slice(0, 8)}`);
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
    host.tell({ phase: "landing", files: manifest.files.length, bytes, ...told() });
    for (const pass of passes) {
      if (!(await land(context, order, host, { place, manifest, pass, told }))) return false;
      pass.counts.ended();
    }
    host.tell({ phase: "refining", bytesDone: bytes });
    let before = 0;
    for (const { entityType, counts } of passes) {
      const { rowsLanded } = counts.told;
      const tell: JobHost["tell"] = (change) =>
        host.tell({ ...change, rowsRefined: before + (change.rowsRefined ?? 0) });
      if (!(await refineJob(context, order.id, entityType, { signal: host.signal, tell }, rowsLanded)))
        return false;
      before += rowsLanded;
    }
    return true;
  } finally {
    sources.close();
  }
};

function land(
  context: IngestContext,
  { id, tenant, mapping, csv }: BootstrapJob,
  host: JobHost,
  {
    place,
    manifest,
    pass,
    told,
  }: {
    readonly place: Place;
    readonly manifest: Manifest;
    readonly pass: Pass;
    readonly told: () => Pick<JobState, "rowsLanded" | "bytesDone">;
  },
): Promise<boolean> {
  const { entityType, share, counts } = pass;
  const limits = context.config.bulk;
  return Bootstrap.run(
    context,
    { job: id, entityType, tenant, mapping, place, manifest, limits, csv, share },
    {
      signal: host.signal,
      pace: (work) => host.pace(work),
      landed: (chunk) => {
        counts.landed(chunk);
        host.tell(told());
      },
      reject: (number, rejects) =>
        host.reject({ number, shown: shown(place.root.name, manifest.files[number]!.path) }, rejects),
    },
  );
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
