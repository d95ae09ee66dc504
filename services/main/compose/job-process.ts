import { once } from "node:events";
import { availableParallelism } from "node:os";
import type { Registry } from "prom-client";
import type { Config } from "../../base/config.js";
import { TributaryError } from "../../base/errors.js";
import { untilOpen } from "../../base/time-windows.js";
import { ImportLander } from "../../bulk/imports/import-lander.js";
import { RUNNABLE } from "../../bulk/job-kinds.js";
import { removeLeftovers } from "../../bulk/job-leftovers.js";
import type { Job } from "../../bulk/jobs/job.js";
import { JobMetrics } from "../../bulk/jobs/job-metrics.js";
import type { Told } from "../../bulk/jobs/job-report.js";
import { type JobRun, JobRunner, type Outcome } from "../../bulk/jobs/job-runner.js";
import { JobStore } from "../../bulk/jobs/job-store.js";
import type { JobTracks } from "../../bulk/jobs/job-tracks.js";
import { Pace } from "../../bulk/jobs/pace.js";
import { CancelledReplays } from "../../bulk/replay/cancelled-replays.js";
import type { IngestContext } from "../../ingest/context.js";
import type { Ingest } from "../../ingest/ingest.js";
import { hashSeed } from "../../table/entity-hash.js";
import type { FromJob, ToJob } from "./job-child.js";
import { forkLimited, OTHER_BYTES } from "./limited-process.js";
import { paceClock } from "./pace-clock.js";

/** As tables have names, of what is shared out among workers: the lake's jobs. */
const JOBS = "jobs";
/**
 * A job's process gives way to all that serves, but not much: its commits race those of live batches, and what costs is
 * done by processes that give way further.
 */
const NICENESS = 5;
/** Of a job's memory, what its index of keys may take beside. */
const KEY_INDEX_SHARE = 1 / 4;

/** The configuration of a job's process. */
function configOf(config: Config): Config {
  const { jobMemoryBytes } = config.bulk;
  const keyIndexBytes = Math.floor(jobMemoryBytes * KEY_INDEX_SHARE);
  return { ...config, ingest: { ...config.ingest, duckdbMemoryBytes: jobMemoryBytes, keyIndexBytes } };
}

/** Serves the lake's jobs beside ingest, each that runs in a process of its own. */
export function serveJobs(
  context: IngestContext,
  registry: Registry,
  tracks: JobTracks,
  ingest: Pick<Ingest, "look" | "lagMs">,
): JobRunner {
  const { store, crew, config, log } = context;
  const cancelled = new CancelledReplays(context);
  const runner = new JobRunner({
    jobs: new JobStore(store),
    tracks,
    isOurs: () => crew.tends(JOBS),
    kinds: RUNNABLE,
    start: (job, tell) => runApart(context, job, tell),
    atOnce: config.bulk.jobsAtOnce,
    tidy: async (jobs) => {
      await removeLeftovers(store, jobs);
      await cancelled.tidy(jobs);
    },
    moved: () => ingest.look(),
    lagMs: () => ingest.lagMs(),
    untilOpen: () => untilOpen(config.bulk.windows, Date.now()),
    metrics: new JobMetrics(registry),
    log,
  });
  void runner.start();
  return runner;
}

/** Lands the import queue beside live events. */
export function serveImports(
  context: IngestContext,
  registry: Registry,
  runner: Pick<JobRunner, "count">,
  ingest: Pick<Ingest, "landBeside" | "lagMs">,
): ImportLander {
  const { store, crew, config, log } = context;
  const { windows, yieldAtMs, limits: total } = config.bulk;
  // Most of this process's CPU time is live events': rows and bytes are what imports are held to.
  const clock = paceClock(() => 0);
  const pace = new Pace({ own: {}, total, windows, yieldAtMs, cores: availableParallelism() }, clock);
  pace.tell({
    get jobs() {
      return runner.count;
    },
    get lagMs() {
      return ingest.lagMs();
    },
  });
  const lander = new ImportLander({
    context,
    jobs: new JobStore(store),
    ingest,
    // One that is for some domains alone may have the lease, and not the lane: then whoever has that does it.
    isOurs: () => crew.tends(JOBS) || config.ingest.domains.length > 0,
    pace,
    log,
    registry,
  });
  lander.start();
  return lander;
}

/** Runs a job in a process of its own, whose end is nobody else's and which does not outlive this one. */
function runApart(
  context: Pick<IngestContext, "config" | "registry" | "models" | "log" | "madeRuns">,
  job: Job,
  tell: (told: Told) => void,
): JobRun {
  const { registry, models, log, madeRuns } = context;
  const config = configOf(context.config);
  const { duckdbMemoryBytes, keyIndexBytes } = config.ingest;
  const child = forkLimited("job-child.js", duckdbMemoryBytes + keyIndexBytes + OTHER_BYTES, NICENESS);
  // A child that dies at this moment is dealt with at its exit; without a callback the failed send would end us.
  const send = (message: ToJob) => child.connected && child.send(message, () => undefined);
  let outcome: Outcome | undefined;
  child.on("message", (message: FromJob) => {
    if ("told" in message) tell(message.told);
    else if ("run" in message) madeRuns.offer(message.run);
    else outcome = message.ended;
  });
  child.on("error", (error) =>
    log.error({ err: error, job: job.order.id }, "a job's process cannot be reached"),
  );
  send({ config, descriptors: registry.bytes(), models, job, hashSeed: hashSeed() });
  const ended = once(child, "exit").then((): Outcome => outcome ?? died());
  return {
    ended,
    stop: () => send({ stop: true }),
    beside: (beside) => send({ beside }),
    kill: () => child.kill("SIGKILL"),
  };
}

function died(): Outcome {
  const { code, message } = new TributaryError("TRB-JOB-PROCESS");
  return { kind: "failed", code, reason: message, retryable: true };
}
