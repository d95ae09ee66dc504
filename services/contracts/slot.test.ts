import fc from "fast-check";
import { expect, test } from "vitest";
import { rangeOfSlot, SLOTS, slotsOfRange } from "../base/slots.js";
import { ByteTable } from "./byte-table.js";
import { encodeEvent } from "./encode-event.js";
import { Envelope } from "./envelope.js";
import { slotOf } from "./slot.js";

const envelope = new Envelope();
function partition(
  tenantId: string,
  entityType: string,
  entityId: string,
  count: number,
  extra = {},
): number {
  const event = encodeEvent({ tenantId, entityType, entityId, operation: 3, version: 1, ...extra });
  expect(envelope.read(event, 0, event.length)).toBeUndefined();
  return rangeOfSlot(slotOf(envelope), count);
}

test("the mapping is pinned: an entity stays where it was", () => {
  const fixed = [
    partition("acme", "scm.v1.File", "src/main.ts", 1000),
    partition("a", "b", "c", 1000),
    partition("fastify", "scm.v1.Commit", "ünïcode", 1000),
    partition("T1", "tracker.v1.Issue", "x".repeat(1024), 1000),
  ];
  expect(fixed).toEqual([476, 286, 634, 993]);
});

test("only tenant, type and id decide, and every partition lies in range", () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 64 }), fc.integer({ min: 0 }), (count, n) => {
      const plain = partition("t", "a.B", `id-${n}`, count);
      expect(plain).toBeGreaterThanOrEqual(0);
      expect(plain).toBeLessThan(count);
      const other = { version: 99, eventId: "e", attributes: { k: "v" }, occurredAt: { seconds: 5 } };
      expect(partition("t", "a.B", `id-${n}`, count, other)).toBe(plain);
    }),
  );
});

test("moving a byte from one name to the next makes another entity", () => {
  const many = 1_000_000_007;
  expect(partition("ab", "c", "d", many)).not.toBe(partition("a", "bc", "d", many));
  expect(partition("a", "bc", "d", many)).not.toBe(partition("a", "b", "cd", many));
});

test.each([2, 3, 4, 7, 16])("consecutive ids spread evenly over %i partitions", (count) => {
  const sizes = new Array<number>(count).fill(0);
  const total = 8000;
  for (let i = 0; i < total; i++) {
    const at = partition(`tenant-${i % 5}`, "tracker.v1.Issue", `PAY-${i}`, count);
    sizes[at] = sizes[at]! + 1;
  }
  for (const size of sizes) expect(Math.abs(size - total / count)).toBeLessThan(total / count / 4 + 60);
});

test("ranges are what slots say of themselves: without gap or overlap", () => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 5_000 }), fc.nat(), (count, n) => {
      const index = n % count;
      const { start, end } = slotsOfRange(index, count);
      expect([start, end - 1].map((slot) => rangeOfSlot(slot, count))).toEqual([index, index]);
      expect(start).toBe(index === 0 ? 0 : slotsOfRange(index - 1, count).end);
      expect(end === SLOTS).toBe(index === count - 1);
    }),
  );
});

test("a byte table finds what was added, tells keys apart, and forgets rather than grows", () => {
  const table = new ByteTable<number>(100);
  const key = (n: number) => Buffer.from(`--key-${n}--`);
  for (let n = 0; n < 100; n++) {
    const bytes = key(n);
    expect(table.get(bytes, 2, bytes.length - 2)).toBeUndefined();
    table.add(bytes, 2, bytes.length - 2, n);
    bytes.fill(0);
  }
  for (let n = 0; n < 100; n++) expect(table.get(key(n), 2, key(n).length - 2)).toBe(n);
  expect(table.get(key(1), 2, key(1).length - 1)).toBeUndefined();
  table.add(Buffer.from("one more"), 0, 8, 7);
  expect(table.get(key(5), 2, key(5).length - 2)).toBeUndefined();
  expect(table.get(Buffer.from("one more"), 0, 8)).toBe(7);
});
