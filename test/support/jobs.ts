import pino from "pino";
import { Registry } from "prom-client";
import { expect } from "vitest";
import { runHere } from "../../services/bulk/job-here.js";
import { RUNNABLE } from "../../services/bulk/job-kinds.js";
import { type BootstrapJob, jobOrder, type ReplayJob } from "../../services/bulk/jobs/job.js";
import { JobMetrics } from "../../services/bulk/jobs/job-metrics.js";
import type { Told } from "../../services/bulk/jobs/job-report.js";
import type { JobHost } from "../../services/bulk/jobs/job-run.js";
import { JobRunner, type JobRunnerOptions } from "../../services/bulk/jobs/job-runner.js";
import type { JobStore } from "../../services/bulk/jobs/job-store.js";
import { JobTracks } from "../../services/bulk/jobs/job-tracks.js";
import type { IngestContext } from "../../services/ingest/context.js";
import { THING } from "./lake.js";

/** Who lets a job run as fast as it can, and hears nothing of it. */
export const hostOf = (more: Partial<JobHost> = {}): JobHost => ({
  signal: new AbortController().signal,
  tell: () => undefined,
  pace: async () => undefined,
  calm: async () => undefined,
  reject: async () => undefined,
  rejected: 0,
  ...more,
});

const ASKED = { by: "ops", at: "2026-01-02T03:04:05Z" };

/** A job that lands `exports/<id>`, of things: rows of customer, id and rev. */
export const bootstrapOf = (id: string, more: Partial<BootstrapJob> = {}): BootstrapJob =>
  jobOrder.parse({
    kind: "bootstrap",
    id,
    source: `exports/${id}`,
    entityType: THING,
    through: "files",
    mapping: { tenant: "customer", entityId: "id", version: "rev" },
    ...ASKED,
    ...more,
  }) as BootstrapJob;

/** A job that replays the model of things; it compares. */
export const replayOf = (more: Partial<ReplayJob> = {}): ReplayJob =>
  jobOrder.parse({
    kind: "replay",
    id: "r1",
    model: "t.things",
    action: "compare",
    ...ASKED,
    ...more,
  }) as ReplayJob;

/** Serves jobs until it is closed. */
export function runnerOf(
  jobs: JobStore,
  options: Partial<JobRunnerOptions> & Pick<JobRunnerOptions, "start">,
): JobRunner {
  const runner = new JobRunner({
    jobs,
    tracks: new JobTracks(),
    isOurs: () => true,
    kinds: RUNNABLE,
    atOnce: 1,
    moved: () => undefined,
    tidy: async () => undefined,
    lagMs: () => 0,
    untilOpen: () => 0,
    metrics: new JobMetrics(new Registry()),
    log: pino({ level: "silent" }),
    lookMs: 5,
    stopMs: 1_000,
    pauseAfter: () => 5,
    ...options,
  });
  void runner.start();
  return runner;
}

/** Runs a runner's jobs in this process. */
export const startHere =
  (context: IngestContext, onTold: (told: Told) => void = () => undefined): JobRunnerOptions["start"] =>
  (job, tell) => {
    const stopping = new AbortController();
    const ended = runHere(context, job, {
      signal: stopping.signal,
      tell: (told) => {
        tell(told);
        onTold(told);
      },
      log: (error) => expect(error).toBeUndefined(),
      pace: { after: async () => undefined, calm: async () => undefined, yieldedMs: 0 },
    });
    return { ended, stop: () => stopping.abort(), kill: () => undefined, beside: () => undefined };
  };
