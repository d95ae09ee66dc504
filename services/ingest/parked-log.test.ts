import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { overriding } from "../../test/support/faulty-store.js";
import { fileStore, Random, seeds, temporaryFolder } from "../../test/support/lake.js";
import { TributaryError } from "../base/errors.js";
import type { ObjectStore } from "../storage/object-store.js";
import type { ParkedEvents } from "./parked-format.js";
import { ParkedLog, parkedPositions, parkedTables } from "./parked-log.js";

const TABLE = "t.v1.Thing";

let folder: string;
let store: ObjectStore;
beforeEach(async () => {
  folder = temporaryFolder();
  store = await fileStore(folder);
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** A log of a worker that has these partitions; it has looked. */
async function openLog(partitions = "01", of = store): Promise<ParkedLog> {
  const log = new ParkedLog(of, TABLE, (track) => partitions.includes(track.at(-1)!));
  await log.look();
  return log;
}

function eventsFrom(first: number, count: number, size = 10): ParkedEvents {
  const numbers = Array.from({ length: count }, (_, i) => first + i);
  return {
    count,
    partitions: numbers.map((n) => String(n % 2)),
    positions: numbers.map((n) => String(n).padStart(6, "0")),
    receivedAt: numbers.map((n) => 1_700_000_000_000 + n + 0.5),
    event: (i) => Buffer.from(`event ${first + i} `.padEnd(size, "-")),
  };
}

/** What is parked, taking it out: numbers in the order in which they come. */
async function drain(log: ParkedLog, maxEvents = 7): Promise<number[]> {
  const found: number[] = [];
  for (;;) {
    const chunk = await log.peek(maxEvents, 1_000_000);
    if (chunk === undefined) return found;
    for (let i = 0; i < chunk.count; i++) found.push(Number(chunk.positions[i]));
    await log.drop(chunk);
  }
}

/** Even numbers come by one partition, odd ones by the other. */
const byPartition = (numbers: readonly number[]): number[][] =>
  [0, 1].map((partition) => numbers.filter((n) => n % 2 === partition));
const numbers = (first: number, count: number) => Array.from({ length: count }, (_, i) => first + i);
const keysOf = async (): Promise<string[]> => {
  const keys: string[] = [];
  for await (const { key } of store.list("parked/")) keys.push(key);
  return keys;
};

describe("parked events", () => {
  test("come out as they went in, each partition's in order, and leave nothing behind", async () => {
    const log = await openLog();
    expect([log.empty, log.bytes, await log.peek(1, 1)]).toEqual([true, 0, undefined]);
    await log.append("s1", eventsFrom(2, 5));
    await log.append("s1", eventsFrom(7, 5));
    expect(await parkedTables(store)).toEqual([TABLE]);
    const chunk = (await log.peek(100, 100_000))!;
    expect([chunk.stream, chunk.count]).toEqual(["s1", 10]);
    const all = eventsFrom(0, 12);
    for (let i = 0; i < 10; i++) {
      const n = Number(chunk.positions[i]);
      expect([chunk.partitions[i], chunk.receivedAt[i]]).toEqual([all.partitions[n], all.receivedAt[n]]);
      expect(String(chunk.event(i))).toBe(String(all.event(n)));
    }
    expect(byPartition(chunk.positions.map(Number))).toEqual(byPartition(numbers(2, 10)));
    expect(log.bytes).toBeGreaterThan(100);
    expect((await parkedPositions(store, "s1")).length).toBe(10);
    expect(await parkedPositions(store, "s2")).toEqual([]);
    await log.drop(chunk);
    expect([log.empty, log.bytes, await keysOf()]).toEqual([true, 0, []]);
    await log.append("s1", eventsFrom(11, 1));
    expect(await drain(log)).toEqual([11]);
  });

  test("of two streams are never in one chunk", async () => {
    const log = await openLog();
    await log.append("a", eventsFrom(1, 3));
    await log.append("b", eventsFrom(1, 2));
    const first = (await log.peek(100, 100_000))!;
    expect([first.stream, first.count]).toEqual(["a", 3]);
    await log.drop(first);
    expect([(await log.peek(100, 100_000))!.stream, await drain(log)]).toEqual(["b", [2, 1]]);
  });

  test("come in chunks of about as much as is asked for, at least one append's of a partition", async () => {
    const log = await openLog();
    for (const first of [2, 10, 18])
      await log.append("s", { ...eventsFrom(first, 4), partitions: Array(4).fill("0") });
    const size = log.bytes / 3;
    const count = async (maxEvents: number, maxBytes: number) => (await log.peek(maxEvents, maxBytes))!.count;
    expect([await count(1, 9999), await count(7, 9999), await count(8, 9999)]).toEqual([4, 4, 8]);
    expect([await count(99, 1), await count(99, 2 * size - 1), await count(99, 2 * size)]).toEqual([4, 4, 8]);
  });

  test("are there from the moment they are being parked", async () => {
    const log = await openLog();
    const parking = log.append("s", eventsFrom(1, 1));
    expect(log.empty).toBe(false);
    await parking;
    expect(await drain(log)).toEqual([1]);
  });

  test("that are being parked while another looks are not overlooked", async () => {
    const log = await openLog();
    let listed: () => void = () => undefined;
    const slow = overriding(store, {
      async *list(prefix) {
        yield* store.list(prefix);
        await new Promise<void>((resolve) => {
          listed = resolve;
        });
      },
    });
    const looking = new ParkedLog(slow, TABLE, () => true);
    const look = looking.look();
    await expect.poll(() => String(listed).length > 20).toBe(true);
    await looking.append("s", eventsFrom(1, 2));
    listed();
    await look;
    expect(await drain(looking)).toEqual([2, 1]);
    expect(log.empty).toBe(true);
  });

  test("are taken over by whoever has the partition now, and by nobody else", async () => {
    const before = await openLog("01");
    await before.append("s", eventsFrom(1, 8));
    const [even, odd] = [await openLog("0"), await openLog("1")];
    expect(await drain(even)).toEqual([2, 4, 6, 8]);
    expect(even.empty).toBe(true);
    expect(await drain(odd)).toEqual([1, 3, 5, 7]);
    // They are gone from under it: nothing is left to land.
    expect(before.empty).toBe(false);
    expect([await before.peek(9, 9999), before.empty]).toEqual([undefined, true]);
  });

  test("of partitions that are another's are not parked: that one reads them from the stream", async () => {
    const log = await openLog("1");
    await log.append("s", eventsFrom(1, 4));
    expect(await drain(await openLog("01"))).toEqual([1, 3]);
  });

  test("that overlap come in the order of their first ones, so that positions tell the doubles", async () => {
    const one = await openLog("0");
    const other = await openLog("0");
    const even = (first: number, count: number): ParkedEvents => ({
      ...eventsFrom(first, count),
      partitions: Array(count).fill("0"),
    });
    await one.append("s", even(6, 5));
    await other.append("s", even(1, 6));
    await one.append("s", even(11, 2));
    const whole = await (await openLog("0")).peek(99, 99_999);
    expect(whole?.positions.map(Number)).toEqual(numbers(1, 12));
    let last = 0;
    for (const n of await drain(await openLog("0"), 1)) {
      expect(n).toBeLessThanOrEqual(last + 1);
      last = Math.max(last, n);
    }
    expect(last).toBe(12);
  });

  test.each([
    ["to its beginning", () => 0],
    ["to its head", () => 20],
    ["to its last event", (size: number) => size - 3],
  ])("damage %s is told, never skipped", async (_, at) => {
    const log = await openLog("0");
    await log.append("s", eventsFrom(1, 5));
    const path = join(folder, "lake", (await keysOf())[0]!);
    const bytes = readFileSync(path);
    bytes[at(bytes.length)]! ^= 1;
    writeFileSync(path, bytes);
    await expect(log.peek(1, 1)).rejects.toMatchObject({ code: "TRB-STREAM-CORRUPT" });
    expect([log.empty, (await keysOf()).length]).toEqual([false, 1]);
    writeFileSync(path, bytes.subarray(0, 14));
    await expect((await openLog("0")).peek(1, 1)).rejects.toMatchObject({ code: "TRB-STREAM-CORRUPT" });
  });

  test("that were acknowledged are there however puts fail, in order, also those that failed and happened", async () => {
    for (const seed of seeds(3)) {
      const random = new Random(seed);
      let log = await openLog("01", await fileStore(folder));
      const faulty = overriding(store, {
        put: async (key, bytes) => {
          const happens = random.chance(0.5);
          if (random.chance(0.6) || happens) await store.put(key, bytes);
          else throw new TributaryError("TRB-STORE-FAILED");
          if (random.chance(0.2)) throw new TributaryError("TRB-STORE-FAILED");
        },
      });
      log = await openLog("01", faulty);
      let next = 1;
      for (let step = 0; step < 15; step++) {
        const count = 1 + random.below(5);
        // As often as it takes: whoever parks does not go on before.
        while (
          !(await log.append("s", eventsFrom(next, count)).then(
            () => true,
            () => false,
          ))
        );
        next += count;
        if (random.chance(0.2)) log = await openLog("01", faulty);
      }
      const found = byPartition(await drain(await openLog()));
      for (const [partition, all] of found.entries()) {
        const once = all.filter((n, i) => all.indexOf(n) === i);
        expect(once, `seed ${seed}`).toEqual(byPartition(numbers(1, next - 1))[partition]);
      }
    }
  });
});
