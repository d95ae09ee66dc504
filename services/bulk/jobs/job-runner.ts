import type { Logger } from "pino";
import type { Code } from "../../base/codes.js";
import { pauseAfter } from "../../base/retry.js";
import { within } from "../../base/within.js";
import { hasEnded, type Job, type JobOrder, type JobWish } from "./job.js";
import type { JobMetrics } from "./job-metrics.js";
import { JobReport, type Told } from "./job-report.js";
import type { JobStore } from "./job-store.js";
import type { JobTracks } from "./job-tracks.js";
import type { Beside } from "./pace.js";

/** How a run ended: `stopped` behind the commit that it was told to stop at. */
export type Outcome =
  | { readonly kind: "done" }
  | { readonly kind: "stopped" }
  | { readonly kind: "failed"; readonly code: Code; readonly reason: string; readonly retryable: boolean };

/** A job that runs, in a process of its own as a rule. */
export interface JobRun {
  /** Never rejects. Nothing of it writes any more when it resolves. */
  readonly ended: Promise<Outcome>;
  /** Ends behind what it is just committing. */
  stop(): void;
  /** Tells it what goes on beside it. */
  beside(told: Beside): void;
  /** Ends now. */
  kill(): void;
}

export type StartJob = (job: Job, tell: (told: Told) => void) => JobRun;

export interface JobRunnerOptions {
  readonly jobs: JobStore;
  readonly tracks: JobTracks;
  /** Whether this worker runs the lake's jobs: one does, as far as anybody can tell. Safety does not rest on it. */
  readonly isOurs: () => boolean;
  readonly kinds: ReadonlySet<JobOrder["kind"]>;
  readonly start: StartJob;
  readonly atOnce: number;
  /** A job refines what it has landed, or is over: others take in what it leaves. */
  readonly moved: () => void;
  /** Told of all jobs when it begins and whenever one is over: removes what nobody needs any more. */
  readonly tidy: (jobs: readonly Job[]) => Promise<void>;
  /** For how long live events have waited, in ms. */
  readonly lagMs: () => number;
  /** How long it is until jobs may go on, in ms. */
  readonly untilOpen: () => number;
  readonly metrics: JobMetrics;
  readonly log: Pick<Logger, "info" | "warn" | "error">;
  /** In ms. */
  readonly lookMs?: number;
  readonly stopMs?: number;
  readonly pauseAfter?: (failures: number) => number;
}

const LOOK_MS = 1_000;
/** How often jobs that run are told what goes on beside them, in ms. */
const TELL_MS = 200;
/** A run that takes longer to stop is killed: it costs a chunk. */
const STOP_MS = 20_000;
/** One that ends so often without a word, by a fault of ours or for being slow, and gets nowhere between, goes no further. */
const MOST_DEATHS = 5;
const OURS: ReadonlySet<string> = new Set<Code>(["TRB-JOB-PROCESS", "TRB-INTERNAL", "TRB-JOB-FILES"]);

interface Running {
  readonly job: Job;
  readonly run: JobRun;
  readonly report: JobReport;
  /** How it stood when the run began. */
  readonly began: number;
  /** Set once it is told to stop: why. One that is left is another runner's, which tells of it. */
  stopping: JobWish["wish"] | "left" | undefined;
}

/** Serves the lake's jobs: takes them in their order, tells of them, does what operators wish, tries again what may help. */
export class JobRunner {
  private readonly running = new Map<string, Running>();
  private readonly failures = new Map<string, { readonly count: number; readonly notBefore: number }>();
  /** What is listed of these may be of before they ended. */
  private readonly endedOfLate = new Set<string>();
  private readonly endings = new Set<Promise<void>>();
  private timer: NodeJS.Timeout | undefined;
  private telling: NodeJS.Timeout | undefined;
  private looking: Promise<void> = Promise.resolve();
  private closed = false;
  /** Whoever ran jobs before may have been killed with one that was just over. */
  private isTidy = false;

  constructor(private readonly options: JobRunnerOptions) {}

  /** How many jobs run here. */
  get count(): number {
    return this.running.size;
  }

  /** Looks at once, then again and again until `close`. Resolves after the first look, whatever came of it. */
  async start(): Promise<void> {
    if (this.closed) return;
    this.telling ??= setInterval(() => this.tell(), TELL_MS).unref();
    this.looking = this.look().catch((error: unknown) =>
      this.options.log.warn({ err: error }, "jobs cannot be looked at"),
    );
    await this.looking;
    if (!this.closed)
      this.timer = setTimeout(() => void this.start(), this.options.lookMs ?? LOOK_MS).unref();
  }

  private tell(): void {
    if (this.running.size === 0) return;
    const beside = { jobs: this.running.size, lagMs: this.options.lagMs() };
    for (const { run } of this.running.values()) run.beside(beside);
  }

  /** One round. Errors: TRB-STORE-FAILED. */
  private async look(): Promise<void> {
    const { jobs: store, tracks, isOurs, metrics } = this.options;
    this.endedOfLate.clear();
    const jobs = (await tracks.look(() => store.list())).filter(
      ({ order }) => !this.endedOfLate.has(order.id),
    );
    metrics.look(isOurs() ? jobs : undefined);
    if (!isOurs()) {
      for (const running of this.running.values()) this.stop(running, "left");
      return;
    }
    if (!this.isTidy) await this.tidy(jobs);
    for (const job of jobs) {
      // One that has failed keeps what it would go on with, until it is cancelled.
      if (hasEnded(job.state) && !(job.state.phase === "failed" && job.wish === "cancel")) continue;
      const running = this.running.get(job.order.id);
      if (running !== undefined && job.wish !== "run") this.stop(running, job.wish);
      else if (running === undefined && job.wish !== "run") await this.settle(job);
    }
    if (this.options.untilOpen() > 0) return;
    for (const job of this.waiting(jobs)) {
      if (this.closed || this.running.size >= this.options.atOnce) return;
      this.begin(job);
    }
  }

  /** Those that may run, in their order. */
  private waiting(jobs: readonly Job[]): Job[] {
    const now = performance.now();
    return jobs
      .filter(({ order, wish, state }) => {
        if (hasEnded(state) || wish !== "run" || this.running.has(order.id)) return false;
        // It was paused for a reason of its own.
        if (state.phase === "paused" && state.code !== undefined) return false;
        return this.options.kinds.has(order.kind) && (this.failures.get(order.id)?.notBefore ?? 0) <= now;
      })
      .sort((a, b) => b.order.priority - a.order.priority || (a.order.at < b.order.at ? -1 : 1));
  }

  /** What is wished of a job that does not run. */
  private async settle({ order, wish, state }: Job): Promise<void> {
    const phase = wish === "cancel" ? "cancelled" : "paused";
    if (state.phase === phase) return;
    const { code: _, reason: __, attempts: ___, ...rest } = state;
    this.failures.delete(order.id);
    await this.options.jobs.tell(order.id, { ...rest, phase, writtenAt: new Date().toISOString() });
    if (phase === "cancelled") await this.over();
  }

  private begin(job: Job): void {
    const { order, state } = job;
    const { jobs, log, metrics, start } = this.options;
    const report = new JobReport(
      state,
      (told) => jobs.tell(order.id, told),
      (error) => log.warn({ err: error, job: order.id }, "a job's state was not written"),
    );
    const count = metrics.run(job);
    const run = start(job, (told) => {
      count(told);
      if (told.phase === "refining" && report.state.phase !== "refining") this.options.moved();
      report.tell(told);
    });
    report.tell({ startedAt: state.startedAt ?? new Date().toISOString() });
    const running: Running = { job, run, report, began: state.bytesDone, stopping: undefined };
    this.running.set(order.id, running);
    log.info({ job: order.id, kind: order.kind }, "a job runs");
    const ending = run.ended
      .then((outcome) => this.ended(running, outcome))
      .catch((error: unknown) => log.error({ err: error, job: order.id }, "a job's end was not told"))
      .finally(() => {
        this.running.delete(order.id);
        this.endedOfLate.add(order.id);
        this.endings.delete(ending);
      });
    this.endings.add(ending);
  }

  private async ended({ job, report, began, stopping }: Running, outcome: Outcome): Promise<void> {
    const { id } = job.order;
    const { log } = this.options;
    const forget = { code: undefined, reason: undefined, attempts: undefined };
    if (outcome.kind === "done") {
      this.failures.delete(id);
      log.info({ job: id }, "a job is done");
      await report.now({ phase: "done", ...forget });
      await this.over();
      return;
    }
    if (stopping === "left") {
      this.failures.delete(id);
      log.info({ job: id }, "a job was left to another worker");
      return;
    }
    if (outcome.kind === "stopped" || stopping !== undefined) {
      this.failures.delete(id);
      const phase = stopping === "cancel" ? "cancelled" : stopping === "pause" ? "paused" : "waiting";
      log.info({ job: id, phase }, "a job was stopped");
      await report.now({ phase, ...forget });
      if (phase === "cancelled") await this.over();
      return;
    }
    const { code, reason } = outcome;
    const gotOn = report.state.bytesDone > began;
    const attempts = (gotOn ? 0 : (this.failures.get(id)?.count ?? 0)) + 1;
    if (outcome.retryable && !(OURS.has(code) && attempts >= MOST_DEATHS)) {
      const pauseMs = (this.options.pauseAfter ?? pauseAfter)(attempts);
      this.failures.set(id, { count: attempts, notBefore: performance.now() + pauseMs });
      log.warn({ job: id, code, reason, attempts, pauseMs }, "a job cannot go on; trying again");
      await report.now({ phase: "waiting", code, reason, attempts });
      return;
    }
    this.failures.delete(id);
    const phase = isForOperators(code) ? "paused" : "failed";
    log.error({ job: id, code, reason, phase }, "a job cannot go on");
    await report.now({ phase, code, reason, attempts: undefined });
    if (phase === "failed") await this.over();
  }

  /** What it may have left is anybody's now: that has to be known here before it is looked for. */
  private async over(): Promise<void> {
    const jobs = await this.options.tracks.look(() => this.options.jobs.list());
    this.options.moved();
    await this.tidy(jobs);
  }

  private async tidy(jobs: readonly Job[]): Promise<void> {
    try {
      await this.options.tidy(jobs);
      this.isTidy = true;
    } catch (error) {
      this.options.log.warn({ err: error }, "what jobs have left could not be removed");
    }
  }

  private stop(running: Running, why: Exclude<Running["stopping"], undefined>): void {
    const first = running.stopping === undefined;
    // One that is to be paused may be cancelled meanwhile.
    running.stopping = why;
    if (why === "left") running.report.leave();
    if (!first) return;
    running.run.stop();
    const limit = setTimeout(() => running.run.kill(), this.options.stopMs ?? STOP_MS);
    void running.run.ended.then(() => clearTimeout(limit));
  }

  /** Stops what runs; the next runner goes on with it. */
  async close(): Promise<void> {
    this.closed = true;
    clearTimeout(this.timer);
    clearInterval(this.telling);
    for (const running of this.running.values()) this.stop(running, running.stopping ?? "run");
    await this.looking;
    // What that look has still begun.
    for (const running of this.running.values()) this.stop(running, running.stopping ?? "run");
    const patience = 2 * (this.options.stopMs ?? STOP_MS);
    await within(patience, Promise.all(this.endings));
  }
}

/** What an operator can mend, and then resume the job. */
const isForOperators = (code: Code): boolean => FOR_OPERATORS.has(code) || code.startsWith("TRB-SOURCE-");
const FOR_OPERATORS: ReadonlySet<Code> = new Set<Code>([
  "TRB-JOB-REJECTS",
  // The same once more would need as much.
  "TRB-JOB-MEMORY",
  "TRB-JOB-FILES",
  "TRB-RECONCILE-CONFIRM",
  "TRB-RECONCILE-EXPORT",
]);
