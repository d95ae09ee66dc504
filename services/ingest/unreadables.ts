import { join } from "node:path";
import { layout } from "../base/paths.js";
import { Retry } from "../base/retry.js";
import type { IngestContext } from "./context.js";
import type { DeadLetter } from "./dead-letters.js";
import { type Unreadable, unreadableCode } from "./event-batch.js";
import { tell } from "./failure.js";
import { type ParkedEvents, ParkedLog } from "./parked-log.js";

/** No entity type's name: those begin with a letter or "_". */
const FOLDER = "~unreadable";
const LETTERS_AT_ONCE = 10_000;
const BYTES_AT_ONCE = 16 * 1024 * 1024;

/** What is no event goes to the dead letters; while their table cannot take it, it is parked and holds up nobody. */
export class Unreadables {
  private parked: ParkedLog | undefined;
  private recovering: Promise<void> | undefined;
  private readonly running = new Set<Promise<void>>();
  private readonly stopping = new AbortController();
  private readonly retry = new Retry(this.stopping.signal);

  constructor(private readonly context: IngestContext) {
    this.recover();
  }

  /** Resolves when the events are dead letters or parked. Rejects only when ingest stops before. */
  bury(events: readonly Unreadable[]): Promise<void> {
    const work = this.buryOrPark(events).finally(() => this.running.delete(work));
    this.running.add(work);
    return work;
  }

  private async buryOrPark(events: readonly Unreadable[]): Promise<void> {
    const { stream, deadLetters, metrics } = this.context;
    if (this.recovering === undefined) {
      try {
        await deadLetters.add(events.map((event) => letterOf(event, stream)));
        metrics.deadLetters.inc({ model: "" }, events.length);
        return;
      } catch (error) {
        this.tell(error, 1, 0);
      }
    }
    await new Retry(this.stopping.signal).run(
      async () => (await this.log()).append(stream, listOf(events)),
      ({ error, attempts, pauseMs }) => this.tell(error, attempts, pauseMs),
    );
    this.recover();
  }

  private recover(): void {
    if (this.recovering !== undefined || this.stopping.signal.aborted) return;
    this.recovering = this.retry
      .run(
        () => this.drain(),
        ({ error, attempts, pauseMs }) => this.tell(error, attempts, pauseMs),
      )
      .then(
        () => this.context.health.clear("dead-letters", "dead_letters"),
        () => undefined,
      )
      .finally(() => {
        this.recovering = undefined;
        if (this.parked?.empty === false) this.recover();
      });
  }

  private async drain(): Promise<void> {
    const parked = await this.log();
    while (!parked.empty) {
      this.stopping.signal.throwIfAborted();
      const chunk = await parked.peek(LETTERS_AT_ONCE, BYTES_AT_ONCE);
      if (chunk === undefined) continue;
      // Letters that lie there already are not added again: this may be the second time after a crash.
      await this.context.deadLetters.add(lettersOf(chunk, chunk.stream));
      this.context.metrics.deadLetters.inc({ model: "" }, chunk.count);
      await parked.drop(chunk);
    }
  }

  private async log(): Promise<ParkedLog> {
    this.parked ??= await ParkedLog.open(
      this.context.files,
      join(layout(this.context.config.data).parked, FOLDER),
    );
    return this.parked;
  }

  private tell(error: unknown, attempts: number, pauseMs: number): void {
    const { health, log } = this.context;
    log.error({ err: error, attempts, pauseMs }, "unreadable events wait for the dead-letter table");
    health.set({
      kind: "dead-letters",
      name: "dead_letters",
      entityType: "",
      state: "quarantined",
      ...tell(error),
      remedy: "tributary table repair dead_letters",
      attempts,
      nextTryAt: new Date(Date.now() + pauseMs).toISOString(),
      parkedBytes: this.parked?.bytes ?? 0,
      held: false,
    });
  }

  /** Tries again now, whatever pause runs. */
  hurry(): void {
    this.retry.hurry();
  }

  /** Resolves when all that was buried so far is a dead letter or parked. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.running);
  }

  async close(): Promise<void> {
    this.stopping.abort();
    await this.settled();
    await this.recovering;
    await this.parked?.close();
  }
}

function letterOf({ event, code, partition, position, receivedAt }: Unreadable, stream: string): DeadLetter {
  const reason = "the event cannot be read";
  return { model: "", code, reason, stream, partition, position, receivedAt, event };
}

const lettersOf = (events: ParkedEvents, stream: string): DeadLetter[] =>
  Array.from({ length: events.count }, (_, i) => {
    const event = events.event(i);
    return letterOf(
      {
        event,
        code: unreadableCode(event),
        partition: events.partitions[i]!,
        position: events.positions[i]!,
        receivedAt: events.receivedAt[i]!,
      },
      stream,
    );
  });

const listOf = (events: readonly Unreadable[]): ParkedEvents => ({
  count: events.length,
  partitions: events.map(({ partition }) => partition),
  positions: events.map(({ position }) => position),
  receivedAt: events.map(({ receivedAt }) => receivedAt),
  event: (i) => events[i]!.event,
});
