import { setTimeout as sleep } from "node:timers/promises";
import { hasEnded, type Job } from "../../bulk/jobs/job.js";
import type { JobStore } from "../../bulk/jobs/job-store.js";
import { ProgressBar } from "../terminal/progress-bar.js";
import { fractionOf } from "./job-view.js";
import { EXIT } from "./report.js";
import { stopSignal } from "./stop-signal.js";

const LOOK_MS = 500;
/** A job that waits for so long may wait for somebody who runs it. */
const WAITS_MS = 5_000;

/**
 * Follows a job until it ends or is paused. A signal ends the following, never the job: `command` is how to look at it
 * again. Told to standard error; `quiet` tells nothing while it runs.
 */
export async function followJob(jobs: JobStore, id: string, command: string, quiet: boolean): Promise<Job> {
  // By the time the signal is dealt with otherwise this process is gone.
  stopSignal().addEventListener("abort", () => {
    if (!quiet) process.stderr.write(`\nthe job goes on; see \`${command}\`\n`);
  });
  const bar = quiet ? undefined : new ProgressBar(process.stderr, id, "rows");
  const began = performance.now();
  let first: number | undefined;
  let told = quiet;
  for (;;) {
    const job = await jobs.get(id);
    const { state } = job;
    // Of a job that goes on only what comes while it is looked at makes the rate.
    first ??= state.rowsLanded;
    if (state.phase !== "waiting")
      bar?.update({ count: state.rowsLanded - first, fraction: fractionOf(state) });
    else if (!told && performance.now() - began > WAITS_MS) {
      told = true;
      process.stderr.write("it waits: for its turn, or for `tributary ingest` with this configuration\n");
    }
    if (hasEnded(state) || state.phase === "paused") {
      bar?.end();
      return job;
    }
    await sleep(LOOK_MS);
  }
}

/** What a command that followed a job ends with. */
export const exitCodeOf = ({ state: { phase } }: Job): number =>
  phase === "failed" || phase === "cancelled" || phase === "paused" ? EXIT.failed : EXIT.done;
