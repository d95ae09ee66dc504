import type { IngestContext } from "./context.js";
import { type DeadLetter, NO_MODEL } from "./dead-letters.js";
import { type Unreadable, unreadableCode } from "./event-batch.js";
import type { ParkedChunk, ParkedEvents } from "./parked-format.js";
import { Parking } from "./parking.js";

/** No entity type's name: those begin with a letter or "_". */
export const UNREADABLE = "~unreadable";
const AT_ONCE = { events: 10_000, bytes: 16 * 1024 * 1024 };

/** What is no event goes to the dead letters; while their table cannot take it, it is parked and holds up nobody. */
export class Unreadables {
  private readonly parking: Parking;
  private readonly running = new Set<Promise<void>>();
  private readonly stopping = new AbortController();

  /** `fatal` is told when only a new process helps. */
  constructor(
    private readonly context: IngestContext,
    fatal: (error: unknown) => void,
  ) {
    this.parking = new Parking(
      context,
      {
        about: {
          kind: "dead-letters",
          name: "dead_letters",
          entityType: "",
          remedy: "tributary table repair dead_letters",
        },
        parkedAs: UNREADABLE,
        // What cannot be read is of no type that could be held back.
        budgetBytes: Number.POSITIVE_INFINITY,
        atOnce: AT_ONCE,
        prepare: async () => undefined,
        take: (chunk) => this.add(lettersOf(chunk)),
        well: () => undefined,
        fatal,
      },
      this.stopping.signal,
    );
    this.parking.recover();
  }

  /** Resolves when the events are dead letters or parked. Rejects only when ingest stops before. */
  bury(events: readonly Unreadable[]): Promise<void> {
    const work = this.buryOrPark(events).finally(() => this.running.delete(work));
    this.running.add(work);
    return work;
  }

  private async buryOrPark(events: readonly Unreadable[]): Promise<void> {
    if (this.parking.passed) {
      try {
        return await this.add(events.map((event) => letterOf(event, this.context.stream)));
      } catch (error) {
        this.parking.failed({ error, attempts: 1, pauseMs: 0 });
      }
    }
    await this.parking.append(parkable(events));
    this.parking.recover();
  }

  /** Letters that lie there already are not added again: this may be the second time after a crash. */
  private async add(letters: readonly DeadLetter[]): Promise<void> {
    await this.context.deadLetters.add(letters);
    this.context.metrics.deadLetters.inc({ model: NO_MODEL }, letters.length);
  }

  /** More partitions are ours, and what is parked of them. */
  assigned(): void {
    this.parking.assigned();
  }

  /** True while something is being buried. */
  get busy(): boolean {
    return this.running.size > 0;
  }

  /** Tries again now, whatever pause runs. */
  hurry(): void {
    this.parking.hurry();
  }

  /** Resolves when all that was buried so far is a dead letter or parked. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.running);
  }

  async close(): Promise<void> {
    this.stopping.abort();
    await this.settled();
    await this.parking.close();
  }
}

function letterOf({ event, code, partition, position, receivedAt }: Unreadable, stream: string): DeadLetter {
  const reason = "the event cannot be read";
  return { model: NO_MODEL, code, reason, stream, partition, position, receivedAt, event };
}

const lettersOf = (events: ParkedChunk): DeadLetter[] =>
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
      events.stream,
    );
  });

const parkable = (events: readonly Unreadable[]): ParkedEvents => ({
  count: events.length,
  partitions: events.map(({ partition }) => partition),
  positions: events.map(({ position }) => position),
  receivedAt: events.map(({ receivedAt }) => receivedAt),
  event: (i) => events[i]!.event,
});
