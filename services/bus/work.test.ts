import { setImmediate as nextTurn } from "node:timers/promises";
import { gzipSync } from "node:zlib";
import { describe, expect, test } from "vitest";
import { FairQueue } from "../base/fair-queue.js";
import { Work, Workshop } from "./work.js";

const tooLarge = expect.objectContaining({ code: "TRB-REQ-TOO-LARGE" }) as Error;
/** Occupies the event loop. */
function busy(ms: number): void {
  for (const end = performance.now() + ms; performance.now() < end; );
}

test("a queue takes producers one after the other, and each one's items in order", () => {
  const queue = new FairQueue<string>();
  for (const item of ["a1", "a2", "a3", "b1", "c1", "c2"]) queue.add(item[0]!, item);
  expect(queue.size).toBe(6);
  const taken = [];
  for (let item = queue.take(); item !== undefined; item = queue.take()) taken.push(item);
  expect(taken).toEqual(["a1", "b1", "c1", "a2", "c2", "a3"]);
  expect(queue.size).toBe(0);
});

describe("a workshop", () => {
  test("lets the loop turn between slices, whoever waits", async () => {
    const workshop = new Workshop();
    let turns = 0;
    let done = false;
    const counting = (async () => {
      for (; !done; turns++) await nextTurn();
    })();
    const slices = 40;
    await Promise.all(
      Array.from({ length: slices }, async (_, i) => {
        const work = new Work(workshop, `p${i % 4}`, 1);
        const wait = work.begin();
        if (wait) await wait;
        busy(6);
        work.pause();
      }),
    );
    done = true;
    await counting;
    // Each of these is longer than a turn has time for.
    expect(turns).toBeGreaterThanOrEqual(slices - 2);
  });

  test("does much in one turn where each takes little", async () => {
    const workshop = new Workshop();
    workshop.spend(100);
    let done = 0;
    for (let i = 0; i < 50; i++) void workshop.turn("a").then(() => done++);
    for (let turns = 0; turns < 5; turns++) await nextTurn();
    expect(done).toBe(50);
  });

  test("serves a producer of one request before the second of one that has many", async () => {
    const workshop = new Workshop();
    workshop.spend(100);
    const order: string[] = [];
    const all = [..."aaaab"].map((producer) => workshop.turn(producer).then(() => order.push(producer)));
    await Promise.all(all);
    expect(order.join("")).toBe("abaaa");
  });

  test("has few payloads inflated at once, and takes their producers one after the other", async () => {
    const workshop = new Workshop();
    let running = 0;
    let most = 0;
    const order: string[] = [];
    const inflate = (producer: string, fails = false) =>
      workshop.aside(producer, async () => {
        order.push(producer);
        most = Math.max(most, ++running);
        await nextTurn();
        running--;
        if (fails) throw new Error("it does not matter");
      });
    const results = await Promise.allSettled([
      ...[..."aaaaaa"].map((producer, i) => inflate(producer, i === 3)),
      inflate("b"),
    ]);
    expect(results.filter(({ status }) => status === "rejected")).toHaveLength(1);
    expect([most, running]).toEqual([2, 0]);
    expect(order.indexOf("b")).toBe(3);
    await inflate("c");
    expect(order.at(-1)).toBe("c");
  });
});

describe("the work on one request", () => {
  test("tires after some milliseconds, not after some events", async () => {
    const work = new Work(new Workshop(), "p", 1);
    await work.begin();
    let tired = 0;
    for (let i = 0; i < 1000; i++) tired += work.tired(0) ? 1 : 0;
    expect(tired).toBe(0);
    busy(10);
    for (let i = 0; i < 1000; i++) tired += work.tired(1000) ? 1 : 0;
    expect(tired).toBeGreaterThan(10);
    await work.rest();
    expect(work.tired(100_000)).toBe(false);
  });

  test("joins a body's pieces, and counts them as decoded", async () => {
    const work = new Work(new Workshop(), "p", 100_000);
    const pieces = Array.from({ length: 9 }, (_, i) => Buffer.alloc(10_000, i));
    await work.begin();
    expect((await work.join(pieces)).equals(Buffer.concat(pieces))).toBe(true);
    expect(await work.join([])).toHaveLength(0);
    expect(await work.join([Buffer.from("one")])).toEqual(Buffer.from("one"));
    await expect(work.join(pieces)).rejects.toThrow(tooLarge);
  });

  test("may decode so much and no more, by what comes out", async () => {
    const gzip = gzipSync(Buffer.alloc(100_000));
    const small = gzipSync(Buffer.alloc(1_000));
    const work = new Work(new Workshop(), "p", 250_000);
    await work.begin();
    work.decode(48_990);
    expect(await work.unpack(1, gzip, 100_000)).toHaveLength(100_000);
    expect(await work.unpack(1, small, 100_000)).toHaveLength(1_000);
    // Found too large only by unpacking as much as is allowed.
    expect(await work.unpack(1, gzip, 99_999)).toBe("TRB-EVENT-PAYLOAD-SIZE");
    expect(await work.unpack(1, Buffer.from("no"), 100_000)).toBe("TRB-EVENT-COMPRESSION");
    await expect(work.unpack(1, small, 100_000)).rejects.toThrow(tooLarge);
  });
});
