import fc from "fast-check";
import { expect, test } from "vitest";
import { ALL_SLOTS, SLOTS } from "../base/slots.js";
import {
  EVERY_SLOT,
  holds,
  intersection,
  isEvery,
  isWithin,
  normalized,
  overlaps,
  SLOTS_TAG,
  type Slots,
  shareOf,
  slotsOfTag,
  slotsTag,
  spanned,
  union,
  without,
} from "./slot-ranges.js";

/** Few edges, so that ranges touch, overlap and are empty. */
const edge = fc.constantFrom(0, 1, 2, 3, 7, 2 ** 31, SLOTS - 1, SLOTS);
const ranges = fc
  .array(
    fc.tuple(edge, edge).map(([start, end]) => ({ start, end })),
    { maxLength: 5 },
  )
  .map(normalized);
const PROBES = [0, 1, 2, 3, 6, 7, 8, 2 ** 31 - 1, 2 ** 31, SLOTS - 2, SLOTS - 1];
const members = (slots: Slots): boolean[] => PROBES.map((slot) => holds(slots, slot));

test("ranges are sets: union, intersection, difference, and what is asked of them", () => {
  fc.assert(
    fc.property(ranges, ranges, (a, b) => {
      const [inA, inB] = [members(a), members(b)];
      expect(members(union(a, b))).toEqual(inA.map((is, i) => is || inB[i]));
      expect(members(intersection(a, b))).toEqual(inA.map((is, i) => is && inB[i]));
      expect(members(without(a, b))).toEqual(inA.map((is, i) => is && !inB[i]));
      expect(overlaps(a, b)).toBe(intersection(a, b).length > 0);
      expect(isWithin(a, b)).toBe(without(a, b).length === 0);
      expect(shareOf(union(a, b))).toBeCloseTo(shareOf(a) + shareOf(b) - shareOf(intersection(a, b)), 12);
    }),
  );
});

test("a tag says the ranges again; none says all, and so does one that makes no sense", () => {
  fc.assert(
    fc.property(ranges, (slots) => {
      fc.pre(slots.length > 0);
      expect(slotsOfTag(slotsTag(slots)[SLOTS_TAG])).toEqual(slots);
    }),
  );
  expect(slotsTag(EVERY_SLOT)).toEqual({});
  expect(slotsTag(normalized([{ start: 0, end: 536_870_912 }]))).toEqual({ [SLOTS_TAG]: "0-536870912" });
  for (const tag of [undefined, "", "x", "5-5", "7-3", "0-4294967297", "1-2,", "1-2;3-4", "-1-3"])
    expect(slotsOfTag(tag)).toEqual([ALL_SLOTS]);
});

test("keys that a claim lacks are named one by one while they are few, else by what spans them", () => {
  const claim = normalized([{ start: 100, end: 200 }]);
  expect(spanned(claim, [])).toBe(claim);
  expect(spanned(claim, [5, 200])).toEqual([
    { start: 5, end: 6 },
    { start: 100, end: 201 },
  ]);
  const many = Array.from({ length: 40 }, (_, i) => 1000 + 3 * i);
  expect(spanned(claim, many)).toEqual([...claim, { start: 1000, end: 1118 }]);
  fc.assert(
    fc.property(ranges, fc.array(fc.nat(SLOTS - 1)), (claimed, strays) => {
      const slots = spanned(claimed, strays);
      expect(isWithin(claimed, slots)).toBe(true);
      for (const slot of strays) expect(holds(slots, slot) || isEvery(slots)).toBe(true);
    }),
  );
});
