import { Registry } from "prom-client";
import { expect, test } from "vitest";
import { bootstrapOf, replayOf } from "../../../test/support/jobs.js";
import { type Job, jobState } from "./job.js";
import { JobMetrics } from "./job-metrics.js";

const registry = () => {
  const own = new Registry();
  const metrics = new JobMetrics(own);
  /** Samples that are not 0, by name and labels. */
  const samples = async (name: string) => {
    const { values } = (await own.getSingleMetric(name)!.get()) as {
      values: { value: number; labels: Record<string, string> }[];
    };
    return Object.fromEntries(
      values
        .filter(({ value }) => value !== 0)
        .map(({ value, labels }) => [Object.values(labels).join(" "), value]),
    );
  };
  return { metrics, samples, own };
};
const job = (order: Job["order"], state: Partial<Job["state"]>): Job => ({
  order,
  wish: "run",
  state: jobState.parse({ phase: "waiting", writtenAt: order.at, ...state }),
});

test("jobs are told of by phase, those that somebody should look at by why, and no name is told", async () => {
  const { metrics, samples, own } = registry();
  const secret = { source: "exports/secret", tenant: "secret" };
  const jobs = [
    job(bootstrapOf("secret-1", secret), { phase: "paused", code: "TRB-JOB-REJECTS", reason: "secret" }),
    // By an operator.
    job(bootstrapOf("secret-2", secret), { phase: "paused" }),
    job(bootstrapOf("secret-3", secret), { phase: "landing" }),
    job(replayOf({ id: "secret-4", tenant: "secret" }), { phase: "failed", code: "TRB-TABLE-NOT-FOUND" }),
    job(replayOf({ id: "secret-5" }), { phase: "waiting", code: "TRB-STORE-FAILED", attempts: 3 }),
    job(replayOf({ id: "secret-6" }), { phase: "done" }),
  ];
  metrics.look(jobs);
  expect(await samples("tributary_jobs")).toEqual({
    "bootstrap paused": 2,
    "bootstrap landing": 1,
    "replay failed": 1,
    "replay waiting": 1,
    "replay done": 1,
  });
  expect(await samples("tributary_jobs_held")).toEqual({
    "bootstrap paused TRB-JOB-REJECTS": 1,
    "replay failed TRB-TABLE-NOT-FOUND": 1,
    "replay waiting TRB-STORE-FAILED": 1,
  });
  const text = await own.metrics();
  expect(text).not.toContain("secret");
  // Also of what there is none, so that it is 0 and not unknown.
  expect(text).toContain('tributary_jobs{kind="verify",phase="failed"} 0');
  // Somebody resumes it.
  metrics.look([job(jobs[0]!.order, { phase: "waiting" })]);
  expect(await samples("tributary_jobs_held")).toEqual({});
  // Another worker runs the jobs, and tells of them.
  metrics.look(undefined);
  expect(await own.metrics()).not.toMatch(/^tributary_jobs(_held)?\{/m);
});

test("what runs get done is counted once, also where it is made and told again", async () => {
  const { metrics, samples } = registry();
  const words = {
    bytes: 900,
    bytesDone: 300,
    rowsLanded: 30,
    rowsRefined: 20,
    rejected: 1,
    yieldedSeconds: 2,
  };
  const run = metrics.run(job(bootstrapOf("a"), words));
  run({ phase: "checking" });
  run({ rowsLanded: 30, rowsRefined: 10, bytesDone: 300, rejected: 1 });
  run({ rowsLanded: 50, rowsRefined: 40, bytesDone: 500 });
  // Some wait in the import queue.
  run({ rowsLanded: 45 });
  run({ rowsLanded: 60, rejected: 4, yieldedSeconds: 3.5 });
  // A replay's rows landed long ago: that is how many it is going to read. Each run of it begins at 0.
  const again = metrics.run(job(replayOf({}), { ...words, yieldedSeconds: 1 }));
  again({ rowsLanded: 1000, bytes: 5000 });
  again({ rowsRefined: 7, bytesDone: 70, yieldedSeconds: 1.5 });
  expect(await samples("tributary_jobs_rows_landed_total")).toEqual({ "": 30 });
  expect(await samples("tributary_jobs_rows_rejected_total")).toEqual({ "": 3 });
  expect(await samples("tributary_jobs_rows_refined_total")).toEqual({ bootstrap: 20, replay: 7 });
  expect(await samples("tributary_jobs_bytes_total")).toEqual({ bootstrap: 200, replay: 70 });
  expect(await samples("tributary_jobs_yielded_seconds_total")).toEqual({ bootstrap: 1.5, replay: 0.5 });
});
