import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Registry } from "prom-client";
import { afterEach, expect, test, vi } from "vitest";
import { bootstrapOf, runnerOf, startHere } from "../../../test/support/jobs.js";
import { fileStore, Lake, temporaryFolder } from "../../../test/support/lake.js";
import { literal } from "../../base/duckdb.js";
import type { Job, JobOrder } from "./job.js";
import { JobMetrics } from "./job-metrics.js";
import type { JobRunner, JobRunnerOptions, Outcome } from "./job-runner.js";
import { JobStore } from "./job-store.js";
import { readRejects } from "./rejects.js";

vi.mock("../../sources/source-process.js", () => import("../../../test/support/readers-here.js"));

const at = new Date().toISOString();
const by = "ops";
const order = (id: string) =>
  bootstrapOf(id, {
    source: "exports/things",
    mapping: { tenant: "tenant", entityId: "id", version: "version" },
  });
const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/** For runs that read and write nothing. */
async function storeAlone(): Promise<JobStore> {
  const folder = temporaryFolder();
  closers.push(async () => rmSync(folder, { recursive: true, force: true }));
  return new JobStore(await fileStore(folder));
}

async function setUp(rows: number): Promise<{ lake: Lake; jobs: JobStore; folder: string }> {
  const folder = mkdtempSync(join(tmpdir(), "tributary-export-"));
  const lake = await Lake.create({ sources: { exports: folder } });
  closers.push(
    () => lake.close(),
    async () => rmSync(folder, { recursive: true, force: true }),
  );
  mkdirSync(join(folder, "things"));
  const file = literal(join(folder, "things", "a.parquet"));
  await lake.query(
    `COPY (SELECT 'acme' AS tenant, 'e' || i AS id, 1 AS version, 'n' || i AS name FROM range(${rows}) t(i)) TO ${file} (FORMAT parquet)`,
  );
  return { lake, jobs: new JobStore(lake.context.store), folder };
}

function serve(
  jobs: JobStore,
  options: Partial<JobRunnerOptions> & Pick<JobRunnerOptions, "start">,
): JobRunner {
  const runner = runnerOf(jobs, options);
  closers.push(() => runner.close());
  return runner;
}

test("rows that are no events are kept aside with their bytes; too many of them pause the job until it is resumed", async () => {
  const { lake, jobs, folder } = await setUp(20);
  const file = literal(join(folder, "things", "b.parquet"));
  await lake.query(
    `COPY (SELECT CASE WHEN i % 2 = 0 THEN 'acme' ELSE '?' END AS tenant, 'x' || i AS id, 1 AS version, 'n' AS name FROM range(10) t(i)) TO ${file} (FORMAT parquet)`,
  );
  // Without room for copies of two each file is read by itself.
  lake.context.config.bulk.scratchBytes = 1;
  serve(jobs, { start: startHere(lake.context) });
  await jobs.order({ ...order("one"), rejectLimit: 2 } as JobOrder);
  const paused = await until(jobs, "one", inPhase("paused"));
  expect(paused.state).toMatchObject({ code: "TRB-JOB-REJECTS", rejected: 5, rowsLanded: 20 });
  await jobs.wish("one", { wish: "run", by, at });
  const { state } = await until(jobs, "one", inPhase("done"));
  expect(state).toMatchObject({ rejected: 5, rowsLanded: 25, rowsRefined: 25 });
  const { rejects } = await readRejects(lake.context, "one", { limit: 100 });
  expect(rejects.map(({ row, code }) => [row, code])).toEqual(
    [1, 3, 5, 7, 9].map((row) => [row, "TRB-EVENT-TENANT"]),
  );
  expect(JSON.parse(Buffer.from(rejects[0]!.bytes).toString())).toEqual({
    tenant: "?",
    id: "x1",
    version: 1,
    name: "n",
  });
});

async function until(jobs: JobStore, id: string, isIt: (job: Job) => boolean): Promise<Job> {
  for (;;) {
    const job = await jobs.get(id);
    if (isIt(job)) return job;
    await sleep(5);
  }
}
const inPhase = (phase: string) => (job: Job) => job.state.phase === phase;

test("a job is taken up, lands its source in raw and in the models, and is told of", async () => {
  const { lake, jobs } = await setUp(500);
  const registry = new Registry();
  serve(jobs, { start: startHere(lake.context), metrics: new JobMetrics(registry) });
  await jobs.order(order("one"));
  const { state } = await until(jobs, "one", inPhase("done"));
  expect(state).toMatchObject({ files: 1, rowsLanded: 500, rowsRefined: 500, rejected: 0 });
  expect(state.bytesDone).toBe(state.bytes);
  expect((await lake.rows()).length).toBe(500);
  await vi.waitFor(async () => {
    const text = await registry.metrics();
    expect(text).toContain('tributary_jobs{kind="bootstrap",phase="done"} 1');
    expect(text).toContain("tributary_jobs_rows_landed_total 500");
    expect(text).toContain('tributary_jobs_rows_refined_total{kind="bootstrap"} 500');
    expect(text).toContain(`tributary_jobs_bytes_total{kind="bootstrap"} ${state.bytes}`);
  });
  // Run under another name it changes nothing but raw.
  await jobs.order(order("two"));
  await until(jobs, "two", inPhase("done"));
  expect((await lake.rows()).length).toBe(500);
  expect((await lake.rawPositions()).length).toBe(1000);
});

/** Runs that end as the test says. */
class Runs {
  readonly open = new Map<string, (outcome: Outcome) => void>();
  readonly begun: string[] = [];
  readonly stopped: string[] = [];
  start: JobRunnerOptions["start"] = (job) => {
    const { id } = job.order;
    this.begun.push(id);
    const ended = new Promise<Outcome>((resolve) => this.open.set(id, resolve));
    const stop = () => {
      this.stopped.push(id);
      this.open.get(id)?.({ kind: "stopped" });
    };
    return { ended, stop, kill: () => undefined, beside: () => undefined };
  };
  async end(id: string, outcome: Outcome): Promise<void> {
    while (!this.open.has(id)) await sleep(2);
    const end = this.open.get(id)!;
    this.open.delete(id);
    end(outcome);
  }
}

test("jobs wait for their turn: by priority, then by age, so many at once", async () => {
  const jobs = await storeAlone();
  const runs = new Runs();
  await jobs.order({ ...order("young"), at: "2026-01-02T00:00:00Z" });
  await jobs.order({ ...order("old"), at: "2026-01-01T00:00:00Z" });
  await jobs.order({ ...order("first"), priority: 5, at: "2026-01-03T00:00:00Z" });
  serve(jobs, { start: runs.start, atOnce: 2 });
  await runs.end("first", { kind: "done" });
  await until(jobs, "first", inPhase("done"));
  expect(runs.begun.slice(0, 2)).toEqual(["first", "old"]);
  await runs.end("old", { kind: "done" });
  await runs.end("young", { kind: "done" });
  await until(jobs, "young", inPhase("done"));
  expect(runs.begun).toEqual(["first", "old", "young"]);
});

test("what operators wish is done, whether or not a job runs", async () => {
  const jobs = await storeAlone();
  const runs = new Runs();
  await jobs.order(order("a"));
  serve(jobs, { start: runs.start });
  while (!runs.open.has("a")) await sleep(2);
  await jobs.wish("a", { wish: "pause", by, at });
  await until(jobs, "a", inPhase("paused"));
  expect(runs.stopped).toEqual(["a"]);
  await sleep(30);
  expect(runs.begun).toEqual(["a"]);
  await jobs.wish("a", { wish: "run", by, at });
  while (runs.begun.length < 2) await sleep(2);
  await jobs.wish("a", { wish: "pause", by, at });
  await until(jobs, "a", inPhase("paused"));
  await jobs.wish("a", { wish: "cancel", by, at });
  await until(jobs, "a", inPhase("cancelled"));
  await expect(jobs.wish("a", { wish: "run", by, at })).rejects.toMatchObject({ code: "TRB-JOB-ENDED" });
});

test("what may come right is tried again, what needs somebody is paused, the rest has failed", async () => {
  const jobs = await storeAlone();
  const runs = new Runs();
  const tidied: unknown[] = [];
  await jobs.order(order("a"));
  serve(jobs, {
    start: runs.start,
    tidy: async ([job]) => void tidied.push(job?.state.phase),
  });
  const reason = "told";
  for (let i = 1; i < 8; i++) {
    await runs.end("a", { kind: "failed", code: "TRB-STORE-FAILED", reason, retryable: true });
    await until(jobs, "a", ({ state }) => state.attempts === i);
  }
  await runs.end("a", { kind: "failed", code: "TRB-JOB-REJECTS", reason, retryable: false });
  expect((await until(jobs, "a", inPhase("paused"))).state).toMatchObject({
    code: "TRB-JOB-REJECTS",
    reason,
  });
  await sleep(30);
  expect(runs.begun.length).toBe(8);
  const { state } = await jobs.wish("a", { wish: "run", by, at });
  expect(state).toMatchObject({ phase: "waiting", rejectsAllowed: 1000 });
  await runs.end("a", { kind: "failed", code: "TRB-BULK-MAPPING", reason, retryable: false });
  expect((await until(jobs, "a", inPhase("failed"))).state.code).toBe("TRB-BULK-MAPPING");
  await jobs.wish("a", { wish: "run", by, at });
  // One that is too slow for the tables it reads, each time, waits for somebody to give it more.
  for (let i = 0; i < 5; i++)
    await runs.end("a", { kind: "failed", code: "TRB-JOB-FILES", reason, retryable: true });
  expect((await until(jobs, "a", inPhase("paused"))).state.code).toBe("TRB-JOB-FILES");
  await jobs.wish("a", { wish: "run", by, at });
  // A process that dies over it each time, and gets nowhere, is not started for ever.
  for (let i = 0; i < 5; i++)
    await runs.end("a", { kind: "failed", code: "TRB-JOB-PROCESS", reason, retryable: true });
  expect((await until(jobs, "a", inPhase("failed"))).state.code).toBe("TRB-JOB-PROCESS");
  // What it would have gone on with is removed once nobody wants that.
  await expect(jobs.wish("a", { wish: "pause", by, at })).rejects.toMatchObject({ code: "TRB-JOB-ENDED" });
  await jobs.wish("a", { wish: "cancel", by, at });
  await until(jobs, "a", inPhase("cancelled"));
  while (tidied.at(-1) !== "cancelled") await sleep(2);
});

test("who does not run the jobs any more stops them, and another one goes on and tells of them alone", async () => {
  const jobs = await storeAlone();
  const [one, two] = [new Runs(), new Runs()];
  let isOurs = true;
  await jobs.order(order("a"));
  // It takes its time to stop.
  const slow: JobRunnerOptions["start"] = (job, tell) => ({
    ...one.start(job, tell),
    stop: () => void one.stopped.push(job.order.id),
  });
  const first = serve(jobs, { start: slow, isOurs: () => isOurs });
  serve(jobs, { start: two.start, isOurs: () => !isOurs });
  while (!one.open.has("a")) await sleep(2);
  isOurs = false;
  while (one.stopped.length === 0) await sleep(2);
  await two.end("a", { kind: "done" });
  await until(jobs, "a", inPhase("done"));
  await one.end("a", { kind: "stopped" });
  await first.close();
  expect((await jobs.get("a")).state.phase).toBe("done");
  expect([one.stopped, one.begun, two.begun]).toEqual([["a"], ["a"], ["a"]]);
});
