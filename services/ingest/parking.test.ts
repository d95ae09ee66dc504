import { afterEach, beforeEach, expect, test } from "vitest";
import { overriding } from "../../test/support/faulty-store.js";
import { Lake } from "../../test/support/lake.js";
import { TributaryError } from "../base/errors.js";
import type { ObjectStore } from "../storage/object-store.js";
import type { ParkedEvents } from "./parked-format.js";
import { ParkedLog } from "./parked-log.js";
import { Parking } from "./parking.js";

const NAME = "t.v1.Other";

let lake: Lake;
let stopping: AbortController;
let taken: string[];
/** What the next try waits for before it looks at what is parked. */
let gate: Promise<void>;
beforeEach(async () => {
  lake = await Lake.create({});
  stopping = new AbortController();
  taken = [];
  gate = Promise.resolve();
});
afterEach(async () => {
  stopping.abort();
  await lake.close();
});

function parkingWith(store: ObjectStore): Parking {
  const about = { kind: "raw", name: NAME, entityType: NAME, remedy: "wait" } as const;
  return new Parking(
    { ...lake.context, store },
    {
      about,
      parkedAs: NAME,
      budgetBytes: 1_000_000,
      atOnce: { events: 10, bytes: 10_000 },
      prepare: () => gate,
      take: async (chunk) => {
        taken.push(...chunk.positions);
      },
      well: () => undefined,
      fatal: (error) => expect.unreachable(String(error)),
    },
    stopping.signal,
  );
}

const event = (position: string): ParkedEvents => ({
  count: 1,
  partitions: ["0"],
  positions: [position],
  receivedAt: [1],
  event: () => Buffer.from("event"),
});

test("nothing passes what is parked, nor a try that may still meet something", async () => {
  const parking = parkingWith(lake.context.store);
  expect(parking.passed).toBe(false);
  parking.recover();
  await expect.poll(() => parking.passed).toBe(true);
  await parking.append(event("1"));
  expect(parking.passed).toBe(false);
  parking.recover();
  await expect.poll(() => parking.passed).toBe(true);
  expect(taken).toEqual(["1"]);
  let open: () => void = () => undefined;
  gate = new Promise((resolve) => {
    open = resolve;
  });
  parking.recover();
  expect(parking.passed).toBe(false);
  await parking.append(event("2"));
  open();
  await expect.poll(() => parking.passed).toBe(true);
  expect(taken).toEqual(["1", "2"]);
  await parking.close();
});

test("events are parked however often that has to be tried, and it is told meanwhile", async () => {
  let failures = 2;
  const parking = parkingWith(
    overriding(lake.context.store, {
      put: async (key, bytes) => {
        if (failures-- > 0) throw new TributaryError("TRB-STORE-FAILED");
        await lake.context.store.put(key, bytes);
      },
    }),
  );
  await parking.append(event("1"));
  expect(failures).toBe(-1);
  const { health } = lake.context;
  expect(health.get("raw", NAME)).toMatchObject({ state: "quarantined", code: "TRB-STORE-FAILED" });
  parking.recover();
  await expect.poll(() => taken).toEqual(["1"]);
  await expect.poll(() => health.get("raw", NAME)).toBeUndefined();
  await parking.close();
});

test("nothing passes before it is known what others have parked of what is ours now", async () => {
  const log = new ParkedLog(lake.context.store, NAME, () => true);
  const parking = parkingWith(lake.context.store);
  parking.recover();
  await expect.poll(() => parking.passed).toBe(true);
  await log.append("s", event("7"));
  expect(parking.passed).toBe(true);
  parking.assigned();
  expect(parking.passed).toBe(false);
  await expect.poll(() => parking.passed).toBe(true);
  expect(taken).toEqual(["7"]);
  await parking.close();
});
