import type { IngestContext } from "../ingest/context.js";
import { runBootstrap } from "./bootstrap/bootstrap-job.js";
import { runVerify } from "./bootstrap/verify-job.js";
import type { JobOrder } from "./jobs/job.js";
import type { JobHost, RunJob } from "./jobs/job-run.js";
import { runReplay } from "./replay/replay-job.js";

type Kinds = { readonly [K in JobOrder["kind"]]?: RunJob<Extract<JobOrder, { kind: K }>> };

/** What runs here. Orders of other kinds wait for a worker that knows them. */
const KINDS: Kinds = { bootstrap: runBootstrap, replay: runReplay, verify: runVerify };

export const RUNNABLE: ReadonlySet<JobOrder["kind"]> = new Set(Object.keys(KINDS) as JobOrder["kind"][]);

/** Runs a job of whatever kind. Errors: those of the kind. */
export function runJob(context: IngestContext, order: JobOrder, host: JobHost): Promise<boolean> {
  const run = KINDS[order.kind] as RunJob<JobOrder> | undefined;
  return run === undefined ? Promise.resolve(false) : run(context, order, host);
}
