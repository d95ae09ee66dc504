import { ALL_SLOTS, SLOTS, type SlotRange } from "../base/slots.js";

/** Ranges of slots (base/slots.ts): ascending, not empty, neither overlapping nor touching. */
export type Slots = readonly SlotRange[];

export const EVERY_SLOT: Slots = [ALL_SLOTS];

/** Tag of an add: the ranges of slots that the file's keys lie in, as "0-536870912,…" (start, and end exclusive). */
export const SLOTS_TAG = "tributary.slots";

/** The ranges in order, those that overlap or touch made one. */
export function normalized(ranges: Iterable<SlotRange>): Slots {
  const ordered = [...ranges].filter(({ start, end }) => start < end).sort((a, b) => a.start - b.start);
  const result: SlotRange[] = [];
  for (const range of ordered) {
    const last = result.at(-1);
    if (last === undefined || last.end < range.start) result.push(range);
    else if (last.end < range.end) result[result.length - 1] = { start: last.start, end: range.end };
  }
  return result;
}

export const union = (a: Slots, b: Slots): Slots => (isEvery(a) ? a : normalized([...a, ...b]));

export function intersection(a: Slots, b: Slots): Slots {
  if (isEvery(a)) return b;
  const result: SlotRange[] = [];
  for (const one of a) {
    for (const other of b) {
      const start = Math.max(one.start, other.start);
      const end = Math.min(one.end, other.end);
      if (start < end) result.push({ start, end });
    }
  }
  return result;
}

/** What of `a` is not in `b`. */
export function without(a: Slots, b: Slots): Slots {
  let at = 0;
  const gaps: SlotRange[] = [];
  for (const { start, end } of b) {
    gaps.push({ start: at, end: start });
    at = end;
  }
  gaps.push({ start: at, end: SLOTS });
  return intersection(a, normalized(gaps));
}

export const overlaps = (a: Slots, b: Slots): boolean =>
  a.some((one) => b.some((other) => one.start < other.end && other.start < one.end));

export const isWithin = (a: Slots, b: Slots): boolean => isEvery(b) || without(a, b).length === 0;

export function holds(slots: Slots, slot: number): boolean {
  for (const { start, end } of slots) if (slot >= start && slot < end) return true;
  return false;
}

export const isEvery = (slots: Slots): boolean =>
  slots.length === 1 && slots[0]!.start === 0 && slots[0]!.end === SLOTS;

/** How much of all slots they are, 0 … 1. */
export const shareOf = (slots: Slots): number =>
  slots.reduce((sum, { start, end }) => sum + (end - start), 0) / SLOTS;

/** As an add's tag; none for all slots. */
export const slotsTag = (slots: Slots): Readonly<Record<string, string>> =>
  isEvery(slots) ? {} : { [SLOTS_TAG]: slots.map(({ start, end }) => `${start}-${end}`).join(",") };

/** What a tag says; where it says nothing that makes sense, a key may lie anywhere. */
export function slotsOfTag(tag: string | undefined): Slots {
  if (tag === undefined) return EVERY_SLOT;
  const ranges: SlotRange[] = [];
  for (const text of tag.split(",")) {
    const [, start, end] = /^(\d{1,10})-(\d{1,10})$/.exec(text) ?? [];
    if (end === undefined || Number(start) >= Number(end) || Number(end) > SLOTS) return EVERY_SLOT;
    ranges.push({ start: Number(start), end: Number(end) });
  }
  return normalized(ranges);
}

/** Single slots that a claim lacks are named one by one up to so many; then by what spans them. */
const MOST_STRAYS = 16;

/**
 * The slots that `claimed` and the keys themselves span: an event may stand in another partition than its own, put
 * there by a foreign producer. `strays` are the keys' slots that are not in `claimed`.
 */
export function spanned(claimed: Slots, strays: readonly number[]): Slots {
  if (strays.length === 0) return claimed;
  const singles = normalized(strays.map((slot) => ({ start: slot, end: slot + 1 })));
  if (singles.length <= MOST_STRAYS) return union(claimed, singles);
  return union(claimed, [{ start: singles[0]!.start, end: singles.at(-1)!.end }]);
}
