import { engineErrorOf, isFileGone, isMemoryError } from "../base/engine-error.js";
import { TributaryError } from "../base/errors.js";
import type { IngestContext } from "../ingest/context.js";
import { runJob } from "./job-kinds.js";
import type { Job } from "./jobs/job.js";
import type { Told } from "./jobs/job-report.js";
import type { Outcome } from "./jobs/job-runner.js";
import type { Pace } from "./jobs/pace.js";
import { JobRejects } from "./jobs/rejects.js";

/** What a run of a job is given by the process that it is in. */
export interface Here {
  readonly signal: AbortSignal;
  readonly pace: Pick<Pace, "after" | "calm" | "yieldedMs">;
  tell(told: Told): void;
  log(error: unknown): void;
}

/** Runs a job in this process. Never rejects. */
export async function runHere(context: IngestContext, { order, state }: Job, here: Here): Promise<Outcome> {
  const { signal, tell, log, pace } = here;
  const limit = state.rejectsAllowed ?? (order.kind === "bootstrap" ? order.rejectLimit : 0);
  let kept: JobRejects | undefined;
  let yieldedMs = 0;
  const tellYielded = (): void => {
    if (pace.yieldedMs === yieldedMs) return;
    yieldedMs = pace.yieldedMs;
    const seconds = (state.yieldedSeconds ?? 0) + yieldedMs / 1000;
    tell({ yieldedSeconds: Math.round(seconds * 1000) / 1000 });
  };
  try {
    const rejected = await JobRejects.open(context, order.id);
    kept = rejected;
    tell({ rejected: rejected.count });
    const done = await runJob(context, order, {
      signal,
      tell,
      pace: (work) => pace.after(work, signal).finally(tellYielded),
      calm: () => pace.calm(signal),
      get rejected() {
        return rejected.count;
      },
      reject: async (file, rejects) => {
        await rejected.keep(file, rejects);
        tell({ rejected: rejected.count });
        if (rejected.count > limit) throw new TributaryError("TRB-JOB-REJECTS");
      },
    });
    return { kind: done ? "done" : "stopped" };
  } catch (error) {
    if (signal.aborted) return { kind: "stopped" };
    if (error instanceof TributaryError)
      return { kind: "failed", code: error.code, reason: error.message, retryable: error.retryable };
    // Words of others may hold values and paths.
    log(error);
    const told = engineErrorOf(error);
    if (told !== undefined && isMemoryError(told)) {
      const { code, message } = new TributaryError("TRB-JOB-MEMORY");
      return { kind: "failed", code, reason: message, retryable: false };
    }
    // A snapshot is read for as long as limits and windows make it: what it names is kept for a while alone.
    const gone = told !== undefined && isFileGone(told);
    const { code, message } = new TributaryError(gone ? "TRB-JOB-FILES" : "TRB-INTERNAL");
    return { kind: "failed", code, reason: message, retryable: true };
  } finally {
    await kept?.close();
  }
}
