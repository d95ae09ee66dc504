import type { IngestContext } from "../../ingest/context.js";
import { shown } from "../../sources/root.js";
import type { BootstrapOrder } from "../chunks/bootstrap-order.js";
import { ImportProducer } from "../imports/import-producer.js";
import type { Backlog } from "../imports/import-queue.js";
import type { BootstrapJob, JobState } from "../jobs/job.js";
import type { JobHost, RunJob } from "../jobs/job-run.js";
import { LANE, streamOf } from "../jobs/job-tracks.js";
import { Bootstrap } from "./bootstrap.js";
import { JobCounts } from "./job-counts.js";
import { endJob } from "./job-end.js";
import { landingsOf, settleSource, withPlace } from "./job-source.js";
import { refineJob } from "./refine-job.js";
import { partOf } from "./verify-progress.js";

/** One entity type of a job: what of the source it lands, and how far that is. */
interface Pass {
  readonly landing: BootstrapOrder;
  readonly counts: JobCounts;
  /** Of the source. */
  readonly bytes: number;
}

/**
 * Brings in an export: lands it in raw, takes it into the models of its entity types, and deletes what it lacks where
 * that was asked for.
 */
export const runBootstrap: RunJob<BootstrapJob> = (context, order, host) => {
  host.tell({ phase: "checking" });
  return withPlace(context, order, async (place) => {
    const source = await settleSource(context, order, place);
    const passes: Pass[] = [];
    for (const landing of landingsOf(context, order, place, source))
      passes.push(await passOf(context, landing));
    return runPasses(context, order, host, passes);
  });
};

async function runPasses(
  context: IngestContext,
  order: BootstrapJob,
  host: JobHost,
  passes: readonly Pass[],
): Promise<boolean> {
  const bytes = passes.reduce((sum, pass) => sum + pass.bytes, 0);
  const rows = () => passes.reduce((sum, { counts }) => sum + counts.told.rowsLanded, 0);
  const through = passes[0]?.landing.through;
  let queued: Backlog = { rows: 0, bytes: 0, oldest: undefined };
  const told = () => ({
    rowsLanded: rows() - queued.rows,
    rowsRefined: passes.reduce((sum, { counts }) => sum + counts.told.rowsRefined, 0),
    ...(through === "queue" ? waitingOf(queued) : {}),
    bytesDone: passes.reduce((sum, { counts }) => sum + counts.told.bytesDone, 0),
  });
  const files = passes[0]?.landing.manifest.files.length ?? 0;
  // A run that was killed may have left its last chunk to raw alone: a model takes in the next one beside raw only
  // where it is in step. Who lands the queue sees to that.
  if (through !== "queue" && rows() > 0 && !(await refine(context, order.id, passes, host))) return false;
  host.tell({ phase: "landing", files, bytes, ...told() });
  for (const [at, pass] of passes.entries()) {
    const waiting = (backlog: Backlog) => {
      queued = backlog;
      host.tell(told());
    };
    if (!(await land(context, host, pass, at, { told, waiting }))) return false;
    pass.counts.ended();
  }
  host.tell({ phase: "refining", bytesDone: bytes });
  if (!(await refine(context, order.id, passes, host))) return false;
  host.tell({ phase: "verifying" });
  for (const [at, { landing, counts }] of passes.entries()) {
    const part = { ...host, tell: partOf(host.tell, at, passes.length) };
    if (!(await endJob(context, order, landing, part, counts.told.rowsLanded))) return false;
  }
  host.tell({ verified: 1 });
  return true;
}

async function refine(
  context: IngestContext,
  job: string,
  passes: readonly Pass[],
  host: JobHost,
): Promise<boolean> {
  let before = 0;
  for (const { landing, counts } of passes) {
    const { rowsLanded } = counts.told;
    const tell: JobHost["tell"] = (change) =>
      host.tell({ ...change, rowsRefined: before + (change.rowsRefined ?? 0) });
    const { signal } = host;
    const pace: JobHost["pace"] = (work) => host.pace(work);
    const { entityType } = landing;
    if (!(await refineJob(context, job, entityType, { signal, tell, pace }, rowsLanded))) return false;
    if (context.models.some((model) => model.entityType === entityType)) counts.caughtUp();
    before += rowsLanded;
  }
  return true;
}

function land(
  context: IngestContext,
  host: JobHost,
  { landing, counts }: Pass,
  /** Its number: rejects of each pass are told in their order. */
  at: number,
  {
    told,
    waiting,
  }: {
    readonly told: () => Pick<JobState, "rowsLanded" | "rowsRefined" | "bytesDone">;
    readonly waiting: (backlog: Backlog) => void;
  },
): Promise<boolean> {
  const { place, manifest } = landing;
  return Bootstrap.run(context, landing, {
    signal: host.signal,
    pace: (work) => host.pace(work),
    calm: () => host.calm(),
    landed: (chunk) => {
      counts.landed(chunk);
      host.tell(told());
    },
    waiting,
    behind: async () => {
      const quiet: Pick<JobHost, "signal" | "tell" | "pace"> = {
        signal: host.signal,
        tell: () => undefined,
        pace: (work) => host.pace(work),
      };
      const { job, entityType } = landing;
      if (!(await refineJob(context, job, entityType, quiet, counts.told.rowsLanded))) return;
      counts.caughtUp();
      host.tell(told());
    },
    reject: (number, rejects) => {
      const file = shown(place.root.name, manifest.files[number]!.path);
      return host.reject({ number, shown: file, part: String(at) }, rejects);
    },
  });
}

async function passOf(context: IngestContext, landing: BootstrapOrder): Promise<Pass> {
  const { manifest, share, job, entityType, through } = landing;
  // Files that hold nothing of it are nothing to it.
  const files = manifest.files.map((file, at) =>
    share?.files.includes(at) === false ? { ...file, bytes: 0 } : file,
  );
  const queued = through === "queue" ? await queuedOf(context, job, entityType) : undefined;
  const counts = await JobCounts.open(context, job, entityType, { ...manifest, files }, queued);
  return { landing, counts, bytes: files.reduce((sum, file) => sum + file.bytes, 0) };
}

/** What the import queue has of it. */
async function queuedOf(context: IngestContext, job: string, entityType: string) {
  const producer = await ImportProducer.open(context, { stream: streamOf(job), partition: LANE, entityType });
  const { rows } = await producer.waiting();
  return { rows, reached: await producer.reached() };
}

const waitingOf = ({ rows, oldest }: Backlog): Pick<JobState, "rowsWaiting" | "waitingSince"> => ({
  rowsWaiting: rows,
  waitingSince: oldest === undefined ? undefined : new Date(oldest).toISOString(),
});
