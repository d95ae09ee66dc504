import { gzipSync } from "node:zlib";
import { expect, test } from "vitest";
import { Permits } from "../base/permits.js";
import { encodeEvent } from "../contracts/encode-event.js";
import { Offloaded } from "../offload/offloaded.js";
import type { ObjectStore } from "../storage/object-store.js";
import { EventBatch } from "./event-batch.js";
import { lightOf, type Slicing, slicesOf } from "./payloads.js";

/** Payloads of so many bytes, packed where the number is negative. */
function batchOf(sizes: readonly number[], tenantOf: (i: number) => string = () => "acme"): EventBatch {
  const batch = new EventBatch("t.v1.Thing", "test");
  for (const [i, size] of sizes.entries()) {
    const value = Buffer.alloc(Math.abs(size), 97);
    const event = encodeEvent({
      tenantId: tenantOf(i),
      entityType: "t.v1.Thing",
      entityId: `e${i}`,
      operation: 1,
      version: 1,
      payload: { value: size < 0 ? gzipSync(value) : value },
      compression: size < 0 ? 1 : 0,
    });
    batch.add(event, 0, event.length, "0", String(i).padStart(6, "0"), 0);
  }
  return batch;
}

/** None of these is offloaded. */
const slicing = (sliceBytes: number, permits = new Permits(1)): Slicing => ({
  sliceBytes,
  permits,
  offloaded: new Offloaded({} as ObjectStore, 0),
});

async function cut(batch: EventBatch, budget: number): Promise<number[]> {
  const counts: number[] = [];
  for await (const slice of slicesOf(batch, slicing(budget))) {
    counts.push(slice.events.count);
    for (const [, payload] of slice.unpacked) expect(payload).toEqual(expect.objectContaining({ 0: 97 }));
  }
  return counts;
}

test("a batch is cut by what its payloads unpack to, in order, an event at least in each part", async () => {
  expect(await cut(batchOf([]), 1000)).toEqual([0]);
  expect(await cut(batchOf([10, 10, 10]), 1000)).toEqual([3]);
  expect(await cut(batchOf([-600, -600, -300, 10, -5000, -10]), 2200)).toEqual([1, 3, 1, 1]);
});

test("more than a little is unpacked only with a permit, which goes back when the slice is done with", async () => {
  const permits = new Permits(1);
  const heavy = () => batchOf(Array.from({ length: 5 }, () => -1_000_000));
  const first = slicesOf(heavy(), slicing(64_000_000, permits));
  const held = await first.next();
  const second = slicesOf(heavy(), slicing(64_000_000, permits));
  let there = false;
  const waiting = second.next().then((next) => {
    there = true;
    return next;
  });
  const light = slicesOf(batchOf([-10, 10]), slicing(64_000_000, permits));
  expect((await light.next()).value?.events.count).toBe(2);
  expect(there).toBe(false);
  held.value?.release();
  expect((await waiting).value?.events.count).toBe(5);
  await Promise.all([first.return(undefined), second.return(undefined)]);
});

test("light events of every tenant are told from one tenant's mass, whatever its packed size", () => {
  const batch = batchOf([-900, -900, -900, 100, -100], (i) => (i < 3 ? "heavy" : "light"));
  const light = lightOf(batch, 1000);
  expect(light.positions).toEqual(["000000", "000001", "000003", "000004"]);
});
