import { setTimeout as sleep } from "node:timers/promises";
import { hasEnded, type Job, type JobState, type Phase } from "../../bulk/jobs/job.js";
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
  const began = performance.now();
  let bar: { readonly of: Phase; readonly first: number; readonly drawn: ProgressBar } | undefined;
  let told = quiet;
  for (;;) {
    const job = await jobs.get(id);
    const { state } = job;
    const { phase } = state;
    if (phase !== "waiting" && !quiet) {
      if (bar?.of !== phase && !isOver(state)) {
        bar?.drawn.end();
        // Of a job that goes on only what comes while it is looked at makes the rate.
        const drawn = new ProgressBar(process.stderr, `${id} ${phase}`, "rows");
        bar = { of: phase, first: rowsOf(phase, state), drawn };
      }
      const count = bar === undefined ? 0 : rowsOf(bar.of, state) - bar.first;
      bar?.drawn.update({ count, fraction: fractionOf(state) });
    } else if (!told && performance.now() - began > WAITS_MS) {
      told = true;
      process.stderr.write("it waits: for its turn, or for `tributary ingest` with this configuration\n");
    }
    if (isOver(state)) {
      bar?.drawn.end();
      return job;
    }
    await sleep(LOOK_MS);
  }
}

const isOver = (state: JobState): boolean => hasEnded(state) || state.phase === "paused";

/** Those that are done in a phase. */
function rowsOf(phase: Phase, { rowsLanded, rowsRefined, verified = 0 }: JobState): number {
  if (phase === "refining") return rowsRefined;
  return phase === "verifying" ? Math.round(verified * rowsLanded) : rowsLanded;
}

/** What a command that followed a job ends with. */
export const exitCodeOf = ({ state: { phase } }: Job): number =>
  phase === "failed" || phase === "cancelled" || phase === "paused" ? EXIT.failed : EXIT.done;
