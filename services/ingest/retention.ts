import type { ChangeStreamReader } from "../stream/change-stream.js";
import type { IngestContext } from "./context.js";

const LOOK_MS = 1_000;
/** Operators who see the time run out make it longer: then it is to be seen soon. */
const ASK_MS = 60_000;

/**
 * How long it is until the stream forgets what has not landed yet. What is parked lies in the lake, where nothing
 * forgets it; what a worker has no memory for to read is younger than what it holds.
 */
export class RetentionWatch {
  private timer: NodeJS.Timeout | undefined;
  private retentionMs: number | undefined;
  private closed = false;
  private askedAt = Number.NEGATIVE_INFINITY;

  /** `oldest`: when the oldest event came that is not safe yet, in ms since the epoch; undefined for none. */
  constructor(
    private readonly context: Pick<IngestContext, "metrics" | "log">,
    private readonly stream: string,
    private readonly reader: Pick<ChangeStreamReader, "retentionMs">,
    private readonly oldest: () => number | undefined,
    private readonly askMs = ASK_MS,
  ) {}

  start(): void {
    void this.look();
    this.timer = setInterval(() => void this.look(), LOOK_MS).unref();
  }

  async look(): Promise<void> {
    const { stream } = this;
    const { metrics, log } = this.context;
    if (performance.now() - this.askedAt >= this.askMs) {
      this.askedAt = performance.now();
      try {
        this.retentionMs = await this.reader.retentionMs();
      } catch (error) {
        // What was known last holds as long.
        log.warn({ err: error, stream }, "the stream does not tell its retention");
      }
    }
    if (this.closed || this.retentionMs === undefined) return;
    metrics.retention.set({ stream }, this.retentionMs / 1_000);
    const now = Date.now();
    metrics.retentionLeft.set({ stream }, (this.retentionMs - (now - (this.oldest() ?? now))) / 1_000);
  }

  close(): void {
    clearInterval(this.timer);
    this.closed = true;
    const { retention, retentionLeft } = this.context.metrics;
    retention.remove({ stream: this.stream });
    retentionLeft.remove({ stream: this.stream });
  }
}
