import type { DeltaTable } from "./delta-table.js";
import {
  EVERY_SLOT,
  intersection,
  isEvery,
  normalized,
  overlaps,
  type Slots,
  union,
  without,
} from "./slot-ranges.js";
import type { TableFile } from "./types.js";
import { SHARED_PARTITION } from "./upsert.js";

/**
 * How the files of an upsert table are kept apart: by the slots that its present writers claim, so that two of them
 * hardly ever mask rows of one file. Who they are is read from what they have lately committed.
 */

/** Changes that tell of present writers. */
const LATELY = 256;
/** A range of fewer slots is no claim, but a key that has come to another writer than its own. */
const LEAST_CLAIM = 2 ** 16;
/** Files that are smaller together are one: masking the same file twice costs less than so many tiny ones. */
const SMALL_BYTES = 1024 * 1024;

/** Sets of slots that files should not cross: disjoint, all slots together. */
export function layoutOf(table: Pick<DeltaTable, "newestChanges">): readonly Slots[] {
  const claims: Slots[] = [];
  let changes = 0;
  for (const { fresh, added } of table.newestChanges()) {
    if (changes++ === LATELY) break;
    if (!fresh) continue;
    for (const { slots } of added) {
      const claim = normalized(slots.filter(({ start, end }) => end - start >= LEAST_CLAIM));
      // What a writer claimed earlier, before others came or went, overlaps what is claimed now.
      if (claim.length > 0 && !isEvery(claim) && !claims.some((other) => overlaps(other, claim)))
        claims.push(claim);
    }
  }
  const rest = without(EVERY_SLOT, claims.reduce(union, []));
  return rest.length === 0 ? claims : [...claims, rest];
}

/** The layout of one partition of tenants: a small one, and one of a single tenant, is kept together. */
export function layoutFor(
  layout: readonly Slots[],
  partition: string | undefined,
  files: readonly TableFile[],
): readonly Slots[] {
  if (partition !== SHARED_PARTITION) return [EVERY_SLOT];
  const bytes = files.reduce((sum, file) => (file.partition === partition ? sum + file.bytes : sum), 0);
  return bytes < SMALL_BYTES ? [EVERY_SLOT] : layout;
}

/** What the keys of some files, merged, are to be divided into. */
export function piecesOf(layout: readonly Slots[], files: readonly TableFile[]): readonly Slots[] {
  const slots = files.map((file) => file.slots).reduce(union, []);
  return layout.map((piece) => intersection(piece, slots)).filter((piece) => piece.length > 0);
}
