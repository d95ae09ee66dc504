import { SLOT, WORDS } from "./order.js";
import { holds, intersection, isEvery, normalized, type Slots, shareOf } from "./slot-ranges.js";
import type { TableFile } from "./types.js";

/** So many keys of a batch are looked up by themselves, and only in files that can hold them. */
export const FEW_KEYS = 1000;

/** Whether too many of a batch's keys are beyond the claim to be looked up by themselves. */
export function hasMany(records: Uint32Array, claimed: Slots): boolean {
  if (isEvery(claimed)) return false;
  let beyond = 0;
  for (let at = SLOT; at < records.length; at += WORDS) if (!holds(claimed, records[at]!)) beyond++;
  return beyond > FEW_KEYS;
}

export const slotsAt = (records: Uint32Array, ords: readonly number[]): Slots =>
  normalized(
    ords.map((ord) => ({ start: records[ord * WORDS + SLOT]!, end: records[ord * WORDS + SLOT]! + 1 })),
  );

/** About how many entities of these slots stand in the files. */
export function keysIn(files: readonly TableFile[], slots: Slots): number {
  let keys = 0;
  for (const file of files) {
    const rows = file.tombstones ? file.rows : file.rows - file.maskedRows;
    const shared = isEvery(slots) ? 1 : shareOf(intersection(file.slots, slots)) / shareOf(file.slots);
    keys += rows * shared;
  }
  return Math.ceil(keys);
}
