import { KeyIndex } from "../table/key-index.js";
import { WORDS } from "../table/order.js";
import type { Progress } from "../table/progress.js";
import type { UpsertResult, UpsertWriter } from "../table/upsert.js";
import type { EventBatch } from "./event-batch.js";
import { partOf, type Slice } from "./payloads.js";
import { ModelFailure, type Poison, type Refiner, type Winners } from "./refine.js";

/** What becomes of one slice's events, beside their rows. */
export interface Taking {
  readonly from: Progress;
  /** Where the table stands when all of the slice is in; nothing for a slice in the middle of its range. */
  readonly to: Progress;
  /** Whether raw has the events; without it nothing is committed. */
  readonly landed: Promise<boolean>;
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
  const { from, to, landed } = taking;
  const parts = [slice];
  for (let part = parts.shift(); part !== undefined; part = parts.shift()) {
    const last = parts.length === 0;
    const winners = refiner.winners(part, writer.keys);
    try {
      const result = await writer.upsert({
        source: refiner.source(winners),
        from,
        to: last ? to : NOWHERE,
        ready: landed,
        newest: part.events.newest(),
      });
      if (result.kind !== "committed") return result;
    } catch (error) {
      if (!(error instanceof ModelFailure)) throw error;
      if (!(await landed)) return { kind: "given-up" };
      if (error.code === "TRB-INGEST-MEMORY" && winners.events.length > 1) {
        parts.unshift(...halvesOf(part));
        continue;
      }
      const poison = await refiner.findPoison(part, error);
      // What failed together may be well apart: another statement had the memory, say.
      if (poison.length === 0) parts.unshift(...halvesOf(part));
      else {
        await taking.setAside(part.events, poison);
        parts.unshift(...rest(part, winners, poison));
      }
    }
  }
  return { kind: "taken" };
}

const NOWHERE: Progress = new Map();

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
  return next.events.count === 0 ? [well] : [well, next];
}
