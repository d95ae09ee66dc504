import fc from "fast-check";
import { expect, test } from "vitest";
import {
  assign,
  decodeAssignment,
  decodeSubscription,
  encodeAssignment,
  encodeSubscription,
  type Member,
} from "./assignment.js";

/** Rounds of the group until nothing moves; in each, members let go of what they were not given. */
function settled(members: readonly Member[], partitions: number): Member[] {
  let now = [...members];
  for (let round = 0; round < 12; round++) {
    const given = assign(now, partitions);
    const owners = [...given.values()].flat();
    // Never two at a time: nobody is given what another still has.
    for (const { id, owned } of now) {
      for (const p of owned) {
        for (const other of now) if (other.id !== id) expect(given.get(other.id)).not.toContain(p);
      }
    }
    expect(new Set(owners).size).toBe(owners.length);
    now = now.map(({ id }) => ({ id, owned: given.get(id)! }));
  }
  return now;
}

test("members come to have neighbours in equal shares, whatever they had before", () => {
  const group = fc.record({
    partitions: fc.integer({ min: 1, max: 40 }),
    owners: fc.array(fc.integer({ min: 0, max: 6 }), { minLength: 40, maxLength: 40 }),
    count: fc.integer({ min: 1, max: 6 }),
  });
  fc.assert(
    fc.property(group, ({ partitions, owners, count }) => {
      const members = Array.from({ length: count }, (_, m) => ({
        id: `member-${m}`,
        owned: owners.slice(0, partitions).flatMap((owner, p) => (owner === m ? [p] : [])),
      }));
      const after = settled(members, partitions);
      expect(after.flatMap(({ owned }) => owned).sort((a, b) => a - b)).toEqual(
        Array.from({ length: partitions }, (_, p) => p),
      );
      for (const { owned } of after) {
        expect(owned).toEqual(owned.map((_, i) => owned[0]! + i));
        expect(owned.length).toBeGreaterThanOrEqual(Math.floor(partitions / count));
        expect(owned.length).toBeLessThanOrEqual(Math.ceil(partitions / count));
      }
      // And stays as it is.
      expect(settled(after, partitions)).toEqual(after);
    }),
  );
});

test("who joins takes from the ends of others; who leaves is replaced by neighbours", () => {
  const one = settled([{ id: "a", owned: [] }], 8);
  const three = settled([...one, { id: "b", owned: [] }, { id: "c", owned: [] }], 8);
  expect(three.map(({ owned }) => owned)).toEqual([
    [0, 1, 2],
    [3, 4, 5],
    [6, 7],
  ]);
  const two = settled(three.slice(1), 8);
  expect(two.map(({ owned }) => owned)).toEqual([
    [0, 1, 2, 3],
    [4, 5, 6, 7],
  ]);
});

test("what members say and are told survives the protocol's bytes", () => {
  const said = { topics: ["tributary.scm"], owned: [0, 5, 6], partitions: 12 };
  expect(decodeSubscription(encodeSubscription(said))).toEqual(said);
  expect(decodeAssignment(encodeAssignment("tributary.scm", [3, 4]))).toEqual([3, 4]);
  expect(decodeAssignment(encodeAssignment("tributary.scm", []))).toEqual([]);
  expect(decodeAssignment(Buffer.alloc(0))).toEqual([]);
});
