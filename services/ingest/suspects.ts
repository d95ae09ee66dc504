import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { Permits } from "../base/permits.js";
import type { EventBatch } from "./event-batch.js";
import { partOf, type Slice } from "./payloads.js";

/** Into so many pieces the events are cut that a model ran on when the process ended. */
const PIECES = 16;
/** An event alone that ends the process so often is not run any more. */
const STRIKES = 2;

const spanShape = z.object({
  stream: z.string(),
  /** Partition → first and last position. */
  reach: z.record(z.string(), z.tuple([z.string(), z.string()])),
  count: z.number().int(),
});
const noteShape = z.object({
  /** What ended an earlier process, as far as is known. */
  suspect: spanShape.extend({ strikes: z.number().int() }).optional(),
  /** What the model runs on. */
  running: spanShape.extend({ trial: z.boolean() }).optional(),
});
type Note = z.infer<typeof noteShape>;
type Span = z.infer<typeof spanShape>;

/** Part of a slice, and how it is to be run. */
export interface Part {
  readonly slice: Slice;
  /** Alone, since it may end the process. */
  readonly trial: boolean;
  /** Not at all: it has ended the process again and again. */
  readonly condemned: boolean;
  /** How often it has been tried already for want of memory or time. */
  readonly tries?: number;
  /** What has been narrowed down already of a failure for want of these; to one event, or as far as it goes. */
  readonly found?: "chunk" | "event" | undefined;
}

/**
 * What each model is running on, in a file that outlives the process: what the engine allocates is not all under its
 * memory limit, and an event may end the whole process. The next one then runs those events in pieces, one piece at a
 * time, until the one is found that does it; that is a dead letter. Files are not synced: they are for the end of a
 * process, not of the machine. A kill from outside looks the same and costs no more than smaller pieces.
 */
export class Suspects {
  private readonly notes = new Map<string, Note>();
  private readonly tried = new Map<string, number>();
  /** What was condemned: a catch-up comes to the same event several times before its table's positions move. */
  private readonly gone = new Map<string, Span[]>();
  /** Trials run one at a time, so that the one that was running is the one to blame. */
  private readonly trials = new Permits(1);
  /** Ends of what runs in this process, of all models. */
  private readonly running = new Set<Promise<void>>();

  private constructor(private readonly folder: string) {}

  static open(folder: string): Suspects {
    try {
      mkdirSync(folder, { recursive: true });
    } catch {
      // A scratch disk that is full or gone stops only what has to spill.
    }
    return new Suspects(folder);
  }

  private note(model: string): Note {
    let note = this.notes.get(model);
    if (note === undefined) {
      note = afterwards(this.read(model));
      this.notes.set(model, note);
    }
    return note;
  }

  private read(model: string): Note {
    try {
      return noteShape.parse(JSON.parse(readFileSync(join(this.folder, `${model}.json`), "utf8")));
    } catch {
      // None, or one that was being written: it tells nothing.
      return {};
    }
  }

  private write(model: string, note: Note): void {
    this.notes.set(model, note);
    try {
      writeFileSync(join(this.folder, `${model}.json`), JSON.stringify(note));
    } catch {
      // A full disk: the next process has to do without.
    }
  }

  /** The slice in the parts in which it should be run. */
  partsOf(model: string, slice: Slice): Part[] {
    const { suspect } = this.note(model);
    const gone = this.gone.get(model) ?? [];
    const rest: number[] = [];
    const suspects: number[] = [];
    const lost: number[] = [];
    for (let i = 0; i < slice.events.count; i++) {
      if (gone.some((span) => covers(span, slice.events, i))) lost.push(i);
      else if (suspect !== undefined && covers(suspect, slice.events, i)) suspects.push(i);
      else rest.push(i);
    }
    if (rest.length === slice.events.count) return [{ slice, trial: false, condemned: false }];
    const parts: Part[] = [];
    const add = (events: readonly number[], how: Omit<Part, "slice">) => {
      const some = new Set(events);
      if (some.size > 0) parts.push({ slice: partOf(slice, (i) => some.has(i)), ...how });
    };
    add(rest, { trial: false, condemned: false });
    const { count, strikes } = suspect ?? { count: 0, strikes: 0 };
    const condemned = count === 1 && strikes >= STRIKES;
    const size = Math.ceil(count / PIECES);
    for (let at = 0; at < suspects.length; at += size) {
      add(suspects.slice(at, at + size), { trial: true, condemned });
    }
    add(lost, { trial: false, condemned: true });
    return parts;
  }

  /**
   * Says that the model runs on the part now; what it resolves to says that this has ended, well or not. `blamed`: the
   * next process is to suspect the part as if this one had ended then and there. What failed for want of memory or time
   * waits for its turn among such, so that one event's hunger is not blamed on another.
   */
  async begin(model: string, part: Part): Promise<(blamed: boolean) => void> {
    const { trial, condemned, tries = 0, found } = part;
    const { events } = part.slice;
    if (events.count === 0) return () => undefined;
    const alone = trial || tries > 0 || found !== undefined;
    const release = alone ? await this.trials.acquire() : () => undefined;
    // What had the memory when this failed must not have it again.
    if (tries > 0) await Promise.all(this.running);
    let ended: () => void = () => undefined;
    const run = new Promise<void>((resolve) => {
      ended = resolve;
    });
    this.running.add(run);
    const leave = () => {
      this.running.delete(run);
      ended();
      release();
    };
    this.write(model, { ...this.note(model), running: { ...spanOf(events), trial } });
    return (blamed) => {
      leave();
      if (blamed) return;
      if (trial && condemned) this.gone.set(model, [...(this.gone.get(model) ?? []), spanOf(events)]);
      const { suspect } = this.note(model);
      const tried = (this.tried.get(model) ?? 0) + (trial ? events.count : 0);
      this.tried.set(model, tried);
      const acquitted = suspect === undefined || tried >= suspect.count;
      this.write(model, acquitted ? {} : { suspect });
    };
  }
}

/** What a process finds that comes after the one that left the note. */
function afterwards({ suspect, running }: Note): Note {
  if (running === undefined) return suspect === undefined ? {} : { suspect };
  const { trial, ...span } = running;
  // While pieces are tried, what else was running is not to blame.
  if (!trial && suspect !== undefined) return { suspect };
  const again = suspect?.count === 1 && span.count === 1;
  return { suspect: { ...span, strikes: again ? suspect.strikes + 1 : 1 } };
}

function spanOf(events: EventBatch): Span {
  const reach: Span["reach"] = {};
  for (let i = 0; i < events.count; i++) {
    const partition = events.partitions[i]!;
    const position = events.positions[i]!;
    const [first, last] = reach[partition] ?? [position, position];
    reach[partition] = [position < first ? position : first, position > last ? position : last];
  }
  return { stream: events.stream, reach, count: events.count };
}

function covers({ stream, reach }: Span, events: EventBatch, i: number): boolean {
  const span = events.stream === stream ? reach[events.partitions[i]!] : undefined;
  return span !== undefined && span[0] <= events.positions[i]! && events.positions[i]! <= span[1];
}
