import { Counter, Gauge, Histogram, type Registry } from "prom-client";
import type { Code } from "../base/codes.js";
import type { Results } from "./response.js";

const SECONDS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5];

/** What the bus tells Prometheus. Labels come from closed lists only: no tenant, no entity. */
export class BusMetrics {
  private readonly accepted: Counter;
  private readonly rejected: Counter<"code">;
  readonly requestSeconds: Histogram<"status">;
  readonly appendSeconds: Histogram<"stream">;
  readonly appendFailures: Counter<"stream">;

  constructor(
    registry: Registry,
    inFlightBytes: () => number,
    backlogs: () => Iterable<readonly [stream: string, bytes: number]>,
  ) {
    const registers = [registry];
    this.accepted = new Counter({
      name: "tributary_bus_events_accepted_total",
      help: "Events answered as accepted",
      registers,
    });
    this.rejected = new Counter({
      name: "tributary_bus_events_rejected_total",
      help: "Events rejected, by code",
      labelNames: ["code"],
      registers,
    });
    this.requestSeconds = new Histogram({
      name: "tributary_bus_request_seconds",
      help: "Time from the head of a publish request to its answer",
      labelNames: ["status"],
      buckets: SECONDS,
      registers,
    });
    this.appendSeconds = new Histogram({
      name: "tributary_bus_append_seconds",
      help: "Time until appended events were durable, by stream",
      labelNames: ["stream"],
      buckets: SECONDS,
      registers,
    });
    this.appendFailures = new Counter({
      name: "tributary_bus_append_failures_total",
      help: "Appends that a stream has failed, so that it is open whether their events were stored",
      labelNames: ["stream"],
      registers,
    });
    new Gauge({
      name: "tributary_bus_in_flight_bytes",
      help: "Bytes of requests being read or waiting for their sync",
      registers,
      collect() {
        this.set(inFlightBytes());
      },
    });
    new Gauge({
      name: "tributary_bus_backlog_bytes",
      help: "Accepted bytes that ingest has not landed yet, by stream",
      labelNames: ["stream"],
      registers,
      collect() {
        for (const [stream, bytes] of backlogs()) this.set({ stream }, bytes);
      },
    });
  }

  count(results: Results): void {
    if (results.accepted > 0) this.accepted.inc(results.accepted);
    if (results.accepted === results.count) return;
    const byCode = new Map<Code, number>();
    for (const code of results.codes) {
      if (code !== undefined) byCode.set(code, (byCode.get(code) ?? 0) + 1);
    }
    for (const [code, count] of byCode) this.rejected.inc({ code }, count);
  }
}
