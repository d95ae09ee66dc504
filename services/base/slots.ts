/**
 * Slots: the space of 32-bit hashes of entities (contracts/slot.ts). Partitions and shards of a stream, and files of a
 * table, belong to ranges of it, so that a stream that is split or merged moves ranges, and no rows.
 */

/** How many slots there are. */
export const SLOTS = 2 ** 32;

/** From `start` up to, not including, `end`. */
export interface SlotRange {
  readonly start: number;
  readonly end: number;
}

export const ALL_SLOTS: SlotRange = { start: 0, end: SLOTS };

/** Which of `count` equal ranges holds the slot. */
export const rangeOfSlot = (slot: number, count: number): number => Math.floor((slot * count) / SLOTS);

/** The slots of range `index` of `count` equal ones: those for which `rangeOfSlot` says so. */
export const slotsOfRange = (index: number, count: number): SlotRange => ({
  start: Math.ceil((index * SLOTS) / count),
  end: Math.ceil(((index + 1) * SLOTS) / count),
});
