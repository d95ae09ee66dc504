import { setTimeout as sleep } from "node:timers/promises";
import { engineErrorOf, isEngineFault } from "../base/engine-error.js";
import { KeyIndex } from "../table/key-index.js";
import { WORDS } from "../table/order.js";
import type { Progress } from "../table/progress.js";
import type { Slots } from "../table/slot-ranges.js";
import type { UpsertResult, UpsertWriter } from "../table/upsert.js";
import type { EventBatch } from "./event-batch.js";
import { ModelFailure, type Poison } from "./model-failure.js";
import { partOf, type Slice } from "./payloads.js";
import type { Refiner } from "./refine.js";
import { isOf } from "./refined-table.js";
import type { Part, Suspects } from "./suspects.js";
import { type Winners, winnersOf } from "./winners.js";

/** What becomes of one slice's events, beside their rows. */
export interface Taking {
  readonly from: Progress;
  /** Where the table stands when all of the slice is in; nothing for a slice in the middle of its range. */
  readonly to: Progress;
  /** As `Upsert.slots`. */
  readonly slots?: Slots | undefined;
  /**
   * As of TableSnapshot, when the first of what moves positions together was put in: once the table is another one, that
   * is gone, and is to be put in again. As the table stands now when absent.
   */
  readonly replacedAt?: number;
  /** As `Upsert.again`. */
  readonly again?: boolean;
  /** Whether raw has the events; without it nothing is committed. */
  readonly landed: Promise<boolean>;
  /** Keeps in mind what the model runs on, where the process may end of it. */
  readonly suspects?: Suspects;
  /** Told of events that the model cannot digest, before the commit that leaves them out. */
  readonly setAside: (events: EventBatch, poison: readonly Poison[]) => Promise<void>;
}

/** A conflict means that another writer was here; parts of the slice may be in, and may be taken in again. */
export type Taken =
  | { readonly kind: "taken" }
  | { readonly kind: "given-up" }
  | Extract<UpsertResult, { kind: "conflict" }>;

/**
 * Takes a slice into a table, with the events set aside that the model cannot digest: the rest goes its way, in as many
 * upserts as that needs; positions move with the last of them.
 */
export async function takeIn(
  refiner: Refiner,
  writer: UpsertWriter,
  slice: Slice,
  taking: Taking,
): Promise<Taken> {
  const { suspects } = taking;
  const { name } = refiner.model;
  const { replacedAt = writer.table.snapshot.replacedAt } = taking;
  const parts = suspects?.partsOf(name, slice) ?? [{ slice, trial: false, condemned: false }];
  for (let part = parts.shift(); part !== undefined; part = parts.shift()) {
    const ended = await suspects?.begin(name, part);
    let blamed = false;
    try {
      const result = await takePart(refiner, writer, part, parts, { ...taking, replacedAt });
      if (result !== undefined) return result;
    } catch (error) {
      const engine = engineErrorOf(error);
      // What breaks the engine ends the process soon.
      blamed = engine !== undefined && isEngineFault(engine);
      throw error;
    } finally {
      ended?.(blamed);
    }
  }
  return { kind: "taken" };
}

/** Undefined when the part is in, or when what is to be done instead has been put before the parts that are left. */
async function takePart(
  refiner: Refiner,
  writer: UpsertWriter,
  part: Part,
  left: Part[],
  { from, to, slots, again, landed, setAside, replacedAt }: Taking,
): Promise<Exclude<Taken, { kind: "taken" }> | undefined> {
  const { slice } = part;
  const instead = (slices: readonly Slice[]) => {
    left.unshift(...slices.map((one) => pieceOf(part, one, part.found)));
  };
  if (part.condemned) {
    if (!(await landed)) return { kind: "given-up" };
    await setAside(slice.events, condemned(slice));
    if (left.length === 0) instead([partOf(slice, () => false)]);
    return undefined;
  }
  const winners = winnersOf(slice, writer.keys);
  try {
    const result = await writer.upsert({
      source: refiner.source(winners, part.found === "chunk"),
      from,
      to: left.length === 0 ? to : NOWHERE,
      ready: landed,
      fits: (table) => isOf(table, refiner.model) && table.replacedAt === replacedAt,
      ...(slots === undefined ? {} : { slots }),
      ...(again === undefined ? {} : { again }),
      newest: slice.events.newest(),
    });
    if (result.kind === "committed") return undefined;
    const isReplaced = writer.table.snapshot.replacedAt !== replacedAt;
    return isReplaced ? { kind: "conflict", reason: "version" } : result;
  } catch (error) {
    if (!(error instanceof ModelFailure)) throw error;
    if (!(await landed)) return { kind: "given-up" };
    if (error.exhausted && winners.events.length > 1) {
      left.unshift(...narrowed(part, error.at));
      return undefined;
    }
    const { tries = 0 } = part;
    if (error.exhausted && tries < MORE_TRIES) {
      // Another statement may have had the memory, or the time.
      await sleep(PAUSE_MS * 2 ** tries);
      left.unshift({ ...part, tries: tries + 1 });
      return undefined;
    }
    const poison = await refiner.findPoison(slice, error);
    // What failed together is well apart.
    if (poison.length === 0) instead(halvesOf(slice));
    else {
      await setAside(slice.events, poison);
      instead(rest(slice, winners, poison));
    }
    return undefined;
  }
}

/** One event may need all the memory there is, but nobody else may have it for long. */
const MORE_TRIES = 1;
const PAUSE_MS = 200;

const condemned = ({ events }: Slice): Poison[] =>
  Array.from({ length: events.count }, (_, event) => ({
    event,
    code: "TRB-INGEST-MEMORY",
    reason: "the process ended each time the model was run on the event",
  }));

const NOWHERE: Progress = new Map();

/**
 * What to run in place of a part for which memory or time did not suffice. A function that takes gigabytes fails while
 * the engine has the chunk that asked for it: so that chunk is run apart from the others, its events in chunks of one,
 * and then the one event; each of these tries may take long. Where that finds nothing, halves are tried: engines
 * keep rows back, and it may be the sum that was too much.
 */
function narrowed(part: Part, at: readonly number[] | undefined): Part[] {
  const { slice, found } = part;
  if (found === "event" || at === undefined) {
    return halvesOf(slice).map((half) => pieceOf(part, half, "event"));
  }
  const some = new Set(at);
  const apart = partOf(slice, (i) => some.has(i));
  const others = partOf(slice, (i) => !some.has(i));
  const first = others.events.count === 0 ? [] : [pieceOf(part, others, "event")];
  return [...first, pieceOf(part, apart, found === "chunk" || at.length === 1 ? "event" : "chunk")];
}

const pieceOf = ({ trial }: Part, slice: Slice, found: Part["found"]): Part => ({
  slice,
  trial,
  condemned: false,
  found,
});

function halvesOf(slice: Slice): Slice[] {
  const middle = slice.events.count >> 1;
  return [partOf(slice, (i) => i < middle), partOf(slice, (i) => i >= middle)];
}

/**
 * The slice without its poison: events of entities that had none, and apart from them those of the others, whose next
 * best event may be no better and is tried without the weight of the rest. At least one part, though it be empty.
 */
function rest(slice: Slice, { order }: Winners, poison: readonly Poison[]): Slice[] {
  const gone = new Set(poison.map(({ event }) => event));
  const marred = new KeyIndex(gone.size);
  for (const event of gone) marred.put(order, event * WORDS);
  const isMarred = (i: number) => marred.find(order, i * WORDS) >= 0;
  const well = partOf(slice, (i) => !isMarred(i));
  const next = partOf(slice, (i) => isMarred(i) && !gone.has(i));
  return [well, next]
    .filter(({ events }) => events.count > 0)
    .concat(gone.size === slice.events.count ? [well] : []);
}
