import { Counter, Gauge, Histogram, type Registry } from "prom-client";
import type { WorkerPool } from "./pool.js";

const SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

/** What queries tell Prometheus. Labels come from closed lists only: no tenant, no table. */
export class QueryMetrics {
  /** One a query; `code` is "ok" or a code of the closed list. */
  readonly answers: Counter<"code">;
  readonly seconds: Histogram;
  readonly rows: Counter;

  constructor(registry: Registry, pool: Pick<WorkerPool, "running" | "waiting">) {
    const registers = [registry];
    this.answers = new Counter({
      name: "tributary_query_answers_total",
      help: "Queries answered, by code",
      labelNames: ["code"],
      registers,
    });
    this.seconds = new Histogram({
      name: "tributary_query_seconds",
      help: "Time from a query's arrival to its answer, waiting included",
      buckets: SECONDS,
      registers,
    });
    this.rows = new Counter({ name: "tributary_query_rows_total", help: "Rows answered", registers });
    new Gauge({
      name: "tributary_query_running",
      help: "Queries that hold a worker",
      registers,
      collect() {
        this.set(pool.running);
      },
    });
    new Gauge({
      name: "tributary_query_waiting",
      help: "Queries that wait for a worker",
      registers,
      collect() {
        this.set(pool.waiting);
      },
    });
  }
}
