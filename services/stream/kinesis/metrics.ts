import { Counter, Gauge, type Registry } from "prom-client";

const all = new WeakMap<Registry, KinesisMetrics>();

/** What Kinesis streams tell of themselves; one for all streams of a process. */
export class KinesisMetrics {
  private readonly behind: Gauge<"stream" | "partition">;
  private readonly throttled: Counter<"stream" | "operation">;

  static of(registry: Registry): KinesisMetrics {
    let metrics = all.get(registry);
    if (metrics === undefined) {
      metrics = new KinesisMetrics(registry);
      all.set(registry, metrics);
    }
    return metrics;
  }

  private constructor(registry: Registry) {
    this.behind = new Gauge({
      name: "tributary_stream_behind_seconds",
      help: "How far behind its newest record a shard is read, as Kinesis tells, by the process that holds it.",
      labelNames: ["stream", "partition"],
      registers: [registry],
    });
    this.throttled = new Counter({
      name: "tributary_stream_throttled_total",
      help: "Records that a shard had no room for, and reads that it refused, before they were tried again.",
      labelNames: ["stream", "operation"],
      registers: [registry],
    });
  }

  setBehind(stream: string, partition: string, ms: number): void {
    this.behind.set({ stream, partition }, ms / 1_000);
  }

  forget(stream: string, partition: string): void {
    this.behind.remove({ stream, partition });
  }

  countThrottled(stream: string, operation: "read" | "write"): void {
    this.throttled.inc({ stream, operation });
  }
}
