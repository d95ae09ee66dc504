import { Counter, Gauge, type Registry } from "prom-client";
import { type Job, type JobOrder, PHASES } from "./job.js";
import type { Told } from "./job-report.js";

const KINDS: readonly JobOrder["kind"][] = ["bootstrap", "replay", "verify"];

/** What of a run's words is counted, and only grows while it lasts. */
const COUNTED = ["rowsLanded", "rowsRefined", "rejected", "bytesDone", "yieldedSeconds"] as const;
type Counted = (typeof COUNTED)[number];

/**
 * Bulk jobs in metrics: how many there are and of what somebody should know, and what those that run here get done.
 * Never by job or tenant: there is no end of the one, and names of the other are nobody's business who scrapes.
 */
export class JobMetrics {
  private readonly jobs: Gauge;
  private readonly held: Gauge;
  private readonly landed: Counter;
  private readonly refined: Counter;
  private readonly rejected: Counter;
  private readonly bytes: Counter;
  private readonly yielded: Counter;

  constructor(registry: Registry) {
    const registers = [registry];
    this.jobs = new Gauge({
      name: "tributary_jobs",
      help: "Bulk jobs of the lake, told by the worker that runs them.",
      labelNames: ["kind", "phase"],
      registers,
    });
    this.held = new Gauge({
      name: "tributary_jobs_held",
      help: "Those of them that have paused by themselves, have failed, or wait to be tried again, by why.",
      labelNames: ["kind", "phase", "code"],
      registers,
    });
    this.landed = new Counter({
      name: "tributary_jobs_rows_landed_total",
      help: "Rows that bulk jobs have landed in raw.",
      registers,
    });
    this.refined = new Counter({
      name: "tributary_jobs_rows_refined_total",
      help: "Rows that bulk jobs have taken into models.",
      labelNames: ["kind"],
      registers,
    });
    this.rejected = new Counter({
      name: "tributary_jobs_rows_rejected_total",
      help: "Rows of bulk jobs that are no events.",
      registers,
    });
    this.bytes = new Counter({
      name: "tributary_jobs_bytes_total",
      help: "Bytes of sources, or of raw, that bulk jobs are done with.",
      labelNames: ["kind"],
      registers,
    });
    this.yielded = new Counter({
      name: "tributary_jobs_yielded_seconds_total",
      help: "For how long bulk jobs have held back while live events waited.",
      labelNames: ["kind"],
      registers,
    });
    for (const kind of KINDS)
      for (const counter of [this.refined, this.bytes, this.yielded]) counter.inc({ kind }, 0);
  }

  /** As of the last look. Who does not run the jobs tells of none: they would count twice. */
  look(jobs: readonly Job[] | undefined): void {
    this.jobs.reset();
    this.held.reset();
    if (jobs === undefined) return;
    for (const kind of KINDS) for (const phase of PHASES) this.jobs.set({ kind, phase }, 0);
    for (const { order, state } of jobs) {
      const { kind } = order;
      const { phase, code } = state;
      this.jobs.inc({ kind, phase });
      if (code !== undefined) this.held.inc({ kind, phase, code });
    }
  }

  /** Counts what a run of a job tells, each thing once: what earlier runs got done they have told. */
  run({ order, state }: Job): (told: Told) => void {
    const { kind } = order;
    // Bootstraps go on counting where they were; the others begin anew with each run.
    const most = new Map<Counted, number>(
      COUNTED.map((name) => [
        name,
        kind === "bootstrap" || name === "yieldedSeconds" ? (state[name] ?? 0) : 0,
      ]),
    );
    return (told) => {
      for (const name of COUNTED) {
        const more = (told[name] ?? 0) - most.get(name)!;
        // What is made again is told again from further back.
        if (more <= 0) continue;
        most.set(name, most.get(name)! + more);
        this.count(kind, name, more);
      }
    };
  }

  private count(kind: JobOrder["kind"], name: Counted, more: number): void {
    if (name === "rowsRefined") this.refined.inc({ kind }, more);
    else if (name === "bytesDone") this.bytes.inc({ kind }, more);
    else if (name === "yieldedSeconds") this.yielded.inc({ kind }, more);
    // A replay tells there how many rows of raw it is going to read.
    else if (kind !== "bootstrap") return;
    else if (name === "rowsLanded") this.landed.inc(more);
    else this.rejected.inc(more);
  }
}
