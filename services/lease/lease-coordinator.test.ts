import fc from "fast-check";
import { pino } from "pino";
import { beforeEach, expect, test } from "vitest";
import { MemoryLeases } from "../../test/support/memory-leases.js";
import { LeaseCoordinator } from "./lease-coordinator.js";
import { newLease } from "./lease-store.js";

const DURATION = 10_000;
const LOOK = 1_000;

let store: MemoryLeases;
let now: number;
let wallJump: number;

/** One worker by its own clock, which says nothing about anybody else's. */
class Worker {
  readonly has = new Set<string>();
  readonly log: string[] = [];
  readonly coordinator: LeaseCoordinator;
  /** What handing over waits for. */
  drained: Promise<void> = Promise.resolve();
  private readonly offset = Math.random() * 1e9;

  constructor(readonly name: string) {
    this.coordinator = new LeaseCoordinator({
      store,
      worker: name,
      scope: "s/",
      durationMs: DURATION,
      clock: { steady: () => this.offset + now, wall: () => this.offset + now + wallJump },
      log: pino({ level: "silent" }),
      user: {
        taken: (leases) => {
          for (const lease of leases) this.has.add(lease.name);
          this.log.push(`taken ${leases.map((lease) => lease.name)}`);
        },
        leaving: (names) => {
          this.log.push(`leaving ${names}`);
          return this.drained;
        },
        lost: (names) => {
          for (const lost of names) this.has.delete(lost);
          this.log.push(`lost ${names}`);
        },
      },
    });
  }
}

const add = (...names: string[]) =>
  store.change(names.map((name) => ({ from: undefined, to: newLease(`s/${name}`) })));
const numbered = (count: number) => Array.from({ length: count }, (_, i) => String(i));
/** Lets what waits for nothing but promises go on. */
const settle = async () => {
  for (let i = 0; i < 50; i++) await Promise.resolve();
};
async function looks(workers: readonly Worker[], rounds: number): Promise<void> {
  for (let round = 0; round < rounds; round++) {
    now += LOOK;
    for (const { coordinator } of workers) await coordinator.look();
    await settle();
  }
}
const loads = (workers: readonly Worker[]) => workers.map(({ has }) => has.size).sort((a, b) => a - b);

beforeEach(() => {
  store = new MemoryLeases();
  now = 0;
  wallJump = 0;
});

test("a worker alone takes all of its scope at its first look, and keeps it while it looks", async () => {
  await add(...numbered(5));
  await store.change([{ from: undefined, to: newLease("elsewhere") }]);
  const [a] = [new Worker("a")];
  await looks([a], 40);
  expect(a.has.size).toBe(5);
  expect(a.log).toHaveLength(1);
  expect(store.leases.get("elsewhere")?.owner).toBeUndefined();
});

test("property: whatever their number, workers come to even shares, one asking at a time, and then rest", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.integer({ min: 1, max: 12 }),
      fc.integer({ min: 1, max: 6 }),
      async (leases, count) => {
        store = new MemoryLeases();
        now = 0;
        await add(...numbered(leases));
        const workers: Worker[] = [];
        for (let i = 0; i < count; i++) {
          workers.push(new Worker(`w${i}`));
          await looks(workers, 2 + i);
        }
        await looks(workers, 2 * leases + 4);
        const [least, most] = [loads(workers)[0]!, loads(workers).at(-1)!];
        expect(most - least).toBeLessThanOrEqual(1);
        expect(workers.reduce((sum, { has }) => sum + has.size, 0)).toBe(leases);
        const told = workers.map(({ log }) => log.length);
        await looks(workers, 30);
        expect(workers.map(({ log }) => log.length)).toEqual(told);
      },
    ),
    { numRuns: 40 },
  );
});

test("what is handed over is drained first, then taken at the heir's next look", async () => {
  await add(...numbered(4));
  const [a, b] = [new Worker("a"), new Worker("b")];
  await looks([a], 1);
  let drain: () => void = () => undefined;
  a.drained = new Promise<void>((resolve) => {
    drain = resolve;
  });
  await looks([b, a], 3);
  expect([a.has.size, b.has.size]).toEqual([4, 0]);
  expect(a.log.filter((line) => line.startsWith("leaving"))).toHaveLength(1);
  drain();
  a.drained = Promise.resolve();
  await settle();
  expect(a.has.size).toBe(3);
  await looks([b], 1);
  expect(b.has.size).toBe(1);
});

test("the leases of one that is gone are taken once they have not moved for as long as they last, shared", async () => {
  await add(...numbered(6));
  const [a, b, c] = [new Worker("a"), new Worker("b"), new Worker("c")];
  await looks([a, b, c], 12);
  expect(loads([a, b, c])).toEqual([2, 2, 2]);
  // It renewed up to a third of that time before it went.
  await looks([b, c], 6);
  expect(loads([b, c])).toEqual([2, 2]);
  await looks([b, c], 6);
  expect(loads([b, c])).toEqual([3, 3]);
});

test("one that was frozen knows that it is sure of nothing, before it looks; then that it has lost", async () => {
  await add("0");
  const [a, b] = [new Worker("a"), new Worker("b")];
  await looks([a, b], 2);
  expect(a.coordinator.owns("s/0")).toBe(true);
  await looks([b], 12);
  expect(b.has.size).toBe(1);
  expect(a.coordinator.owns("s/0")).toBe(false);
  expect([...(await a.coordinator.update(new Map([["s/0", { checkpoint: "old" }]])))]).toEqual([]);
  expect(store.leases.get("s/0")).toMatchObject({ owner: "b", checkpoint: "" });
  await a.coordinator.look();
  expect([a.has.size, a.log.at(-1)]).toEqual([0, "lost s/0"]);
});

test("a machine that slept with its steady clock notices by the other one, and renews before it goes on", async () => {
  await add("0");
  const a = new Worker("a");
  await looks([a], 2);
  wallJump = 60_000;
  expect(a.coordinator.owns("s/0")).toBe(false);
  await a.coordinator.look();
  expect(a.coordinator.owns("s/0")).toBe(true);
  expect(a.log).toEqual(["taken s/0"]);
});

test("a store that is down for less than leases last loses nothing; for longer, nobody is sure of anything", async () => {
  await add(...numbered(4));
  const workers = [new Worker("a"), new Worker("b")];
  await looks(workers, 8);
  const before = store.owned();
  for (const { log } of workers) log.length = 0;
  store.down = true;
  now += 5_000;
  await expect(workers[0]!.coordinator.look()).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
  expect(workers[0]!.coordinator.owns(before.a![0]!)).toBe(true);
  now += 9_000;
  expect(workers[0]!.coordinator.owns(before.a![0]!)).toBe(false);
  store.down = false;
  await looks(workers, 5);
  expect(store.owned()).toEqual(before);
  expect(workers.flatMap(({ log }) => log)).toEqual([]);
});

test("a lease waits for those before it; what is done is let go and taken by nobody", async () => {
  await add("0");
  await store.change([{ from: undefined, to: newLease("s/1", ["s/0", "s/gone"]) }]);
  const a = new Worker("a");
  await looks([a], 3);
  expect([...a.has]).toEqual(["s/0"]);
  await a.coordinator.update(new Map([["s/0", { checkpoint: "9", finished: true }]]));
  expect(a.log.at(-1)).toBe("lost s/0");
  await looks([a], 2);
  expect([...a.has]).toEqual(["s/1"]);
  expect(store.leases.get("s/0")).toMatchObject({ finished: true, checkpoint: "9", owner: undefined });
});

test("a checkpoint is written also while another asks for the lease", async () => {
  await add("0", "1");
  const [a, b] = [new Worker("a"), new Worker("b")];
  await looks([a], 1);
  now += LOOK;
  await b.coordinator.look();
  expect([...store.leases.values()].filter(({ heir }) => heir === "b")).toHaveLength(1);
  const all = new Map([...a.has].map((name) => [name, { checkpoint: "7" }]));
  expect((await a.coordinator.update(all)).size).toBe(2);
  expect([...store.leases.values()].map(({ checkpoint }) => checkpoint)).toEqual(["7", "7"]);
});

test("closing drains and hands everything back, so that others have it at their next look", async () => {
  await add(...numbered(4));
  const [a, b] = [new Worker("a"), new Worker("b")];
  await looks([a, b], 8);
  await a.coordinator.close();
  expect(a.has.size).toBe(0);
  expect(a.log.filter((line) => line.startsWith("leaving")).length).toBeGreaterThan(0);
  await looks([b], 1);
  expect(b.has.size).toBe(4);
});

test("what was taken by a change whose answer was lost is taken again, not left lying", async () => {
  await add("0");
  const a = new Worker("a");
  const { change } = store;
  store.change = async (changes) => {
    await change.call(store, changes);
    store.change = change;
    throw new Error("the answer was lost");
  };
  await expect(a.coordinator.look()).rejects.toThrow("lost");
  expect(a.has.size).toBe(0);
  await looks([a], 1);
  expect(a.has.size).toBe(1);
});
