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
import type { BootstrapJob } from "./job.js";
import { JobCounts } from "./job-counts.js";
import type { RunJob } from "./job-run.js";
import { refineJob } from "./refine-job.js";

/** What a job reads is listed once: whoever goes on with it reads the same. */
const keyOf = (id: string): string => `jobs/manifests/${id}.json`;

/** Brings in an export: lands it in raw, then takes it into the models of its entity type. */
export const runBootstrap: RunJob<BootstrapJob> = async (context, order, host) => {
  const { config } = context;
  const { entityType, mapping } = order;
  if (entityType === undefined)
    throw new TributaryError("TRB-BULK-MAPPING", "entityType: expected that of what the source holds");
  host.tell({ phase: "checking" });
  const scratch = join(layout(config.data).scratch, `job-${order.id}-${randomUUID().slice(0, 8)}`);
  const sources = await Sources.open(config, scratch);
  try {
    const place = sources.at(order.source);
    const manifest = await manifestOf(context, order, place);
    const counts = await JobCounts.open(context, order.id, entityType, manifest);
    // Producers may have begun since it was asked for, and the source may be another.
    if (counts.told.rowsLanded === 0) requirePassed(await checkBootstrap(context, order, place, manifest));
    host.tell({ phase: "landing", files: manifest.files.length, bytes: manifest.bytes, ...counts.told });
    const landed = await Bootstrap.run(
      context,
      {
        job: order.id,
        entityType,
        tenant: order.tenant,
        mapping,
        place,
        manifest,
        limits: config.bulk,
        csv: order.csv,
      },
      {
        signal: host.signal,
        pace: (work) => host.pace(work),
        landed: (chunk) => host.tell(counts.landed(chunk)),
        reject: (number, rejects) =>
          host.reject({ number, shown: shown(place.root.name, manifest.files[number]!.path) }, rejects),
      },
    );
    if (!landed) return false;
    host.tell({ phase: "refining", bytesDone: manifest.bytes });
    return await refineJob(context, order.id, entityType, host, counts.told.rowsLanded);
  } finally {
    sources.close();
  }
};

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
