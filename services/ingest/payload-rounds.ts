import { setTimeout as sleep } from "node:timers/promises";
import { Counter, Gauge, type Registry } from "prom-client";
import type { Collected } from "../offload/collector.js";
import { requireOpen } from "../table/closing.js";
import type { IngestContext } from "./context.js";

/** What workers share this by, as they do tables. */
const PAYLOADS = "offload";
/** The first round is not at the start, when there is more to do, and not after as long as the next ones. */
const FIRST_MS = 5 * 60_000;

/** Takes payloads away that nothing names, now and then; one worker at a time, as far as leases can tell. */
export class PayloadRounds {
  private readonly stopping = new AbortController();
  private readonly rounds: Promise<void>;
  private readonly metrics: ReturnType<typeof metricsOf>;

  constructor(
    private readonly context: Pick<IngestContext, "crew" | "store" | "log">,
    private readonly collect: () => Promise<Collected>,
    everyMs: number,
    registry: Registry,
  ) {
    this.metrics = metricsOf(registry);
    this.rounds = this.run(everyMs);
  }

  private async run(everyMs: number): Promise<void> {
    const { signal } = this.stopping;
    // From the next look on somebody has it.
    this.context.crew.tends(PAYLOADS);
    for (let wait = Math.min(everyMs, FIRST_MS); ; wait = everyMs) {
      await sleep(wait, undefined, { signal, ref: false }).catch(() => undefined);
      if (signal.aborted) return;
      if (this.context.crew.tends(PAYLOADS)) await this.round();
    }
  }

  private async round(): Promise<void> {
    const { store, log } = this.context;
    try {
      await requireOpen(store);
      const { objects, bytes, removed, undecided } = await this.collect();
      this.metrics.objects.set(objects);
      this.metrics.bytes.set(bytes);
      this.metrics.removed.inc(removed);
      if (removed > 0) log.info({ removed, objects }, "payloads that nothing names were removed");
      if (undecided) log.warn({ objects }, "too much waits in the streams to tell which payloads are named");
    } catch (error) {
      this.metrics.failures.inc();
      log.warn({ err: error }, "looking for payloads that nothing names failed");
    }
  }

  /** Ends once the round that runs has ended. */
  async close(): Promise<void> {
    this.stopping.abort();
    await this.rounds;
  }
}

function metricsOf(registry: Registry) {
  const registers = [registry];
  return {
    objects: new Gauge({
      name: "tributary_offload_objects",
      help: "Payloads' objects in the store, when they were looked at last.",
      registers,
    }),
    bytes: new Gauge({
      name: "tributary_offload_bytes",
      help: "Bytes of these objects.",
      registers,
    }),
    removed: new Counter({
      name: "tributary_offload_collected_total",
      help: "Objects of payloads that were removed, as nothing named them or a later one had replaced them.",
      registers,
    }),
    failures: new Counter({
      name: "tributary_offload_rounds_failed_total",
      help: "Looks at the payloads that failed; nothing was removed then that was not decided.",
      registers,
    }),
  };
}
