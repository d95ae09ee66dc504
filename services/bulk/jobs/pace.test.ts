import { expect, test } from "vitest";
import { Pace, type PaceOptions } from "./pace.js";

/** Time passes while somebody sleeps, and at no other. */
class FakeClock {
  ms = 0;
  used = 0;
  start = Date.parse("2026-02-04T21:30:00Z");
  onSleep: () => void = () => undefined;
  now = () => this.ms;
  wall = () => this.start + this.ms;
  cpu = () => this.used;
  sleep = async (ms: number) => {
    expect(ms).toBeGreaterThan(0);
    this.ms += ms;
    this.onSleep();
  };
}

const NONE: PaceOptions = { own: {}, total: {}, windows: [], yieldAtMs: 500, cores: 2 };
const { signal } = new AbortController();
const set = (options: Partial<PaceOptions>) => {
  const clock = new FakeClock();
  return { clock, pace: new Pace({ ...NONE, ...options }, clock) };
};

test("without limits nothing waits", async () => {
  const { clock, pace } = set({});
  clock.used = 1e6;
  await pace.after({ rows: 1e9, bytes: 1e12 }, signal);
  expect(clock.ms).toBe(0);
});

test("rows, bytes and CPU each take their time at least, and the time that work took counts", async () => {
  for (const [own, work, cpu, ms] of [
    [{ rowsPerSecond: 1000 }, { rows: 5000, bytes: 0 }, 0, 5000],
    [{ bytesPerSecond: 100 }, { rows: 0, bytes: 250 }, 0, 2500],
    [{ cpuShare: 0.25 }, { rows: 0, bytes: 0 }, 1000, 2000],
    [{ rowsPerSecond: 1000, bytesPerSecond: 1000 }, { rows: 1000, bytes: 3000 }, 0, 3000],
  ] as const) {
    const { clock, pace } = set({ own });
    clock.ms += 400;
    clock.used += cpu;
    await pace.after(work, signal);
    expect(clock.ms).toBe(ms);
  }
});

test("being slow once is not made up for by being too fast later", async () => {
  const { clock, pace } = set({ own: { rowsPerSecond: 1000 } });
  clock.ms += 60_000;
  await pace.after({ rows: 1000, bytes: 0 }, signal);
  expect(clock.ms).toBe(60_000);
  await pace.after({ rows: 1000, bytes: 0 }, signal);
  expect(clock.ms).toBe(61_000);
  // It was its own limits that it waited for.
  expect(pace.yieldedMs).toBe(0);
});

test("the least of a job's own limit and its part of the total holds, by what runs beside it now", async () => {
  const { clock, pace } = set({ own: { rowsPerSecond: 900 }, total: { rowsPerSecond: 1000 } });
  pace.tell({ jobs: 4, lagMs: 0 });
  clock.onSleep = () => pace.tell({ jobs: 1, lagMs: 0 });
  await pace.after({ rows: 1800, bytes: 0 }, signal);
  expect(clock.ms).toBe(2000);
  clock.onSleep = () => undefined;
  pace.tell({ jobs: 2, lagMs: 0 });
  await pace.after({ rows: 1000, bytes: 0 }, signal);
  expect(clock.ms).toBe(4000);
});

/** Live events wait for `lagMs(now)`, as is told five times a second. */
function telling(clock: FakeClock, pace: Pace, lagMs: (now: number) => number): void {
  let told = Number.NEGATIVE_INFINITY;
  clock.onSleep = () => {
    if (clock.ms - told < 200) return;
    told = clock.ms;
    pace.tell({ jobs: 1, lagMs: lagMs(clock.ms) });
  };
}

test("while live events wait too long nothing goes on, nor before they have not for a while", async () => {
  const { clock, pace } = set({});
  // Now and then there is one that has just come.
  telling(clock, pace, (now) => (now < 3000 && now % 1000 >= 400 ? 501 : 20));
  pace.tell({ jobs: 1, lagMs: 501 });
  await pace.after({ rows: 1, bytes: 1 }, signal);
  expect(clock.ms).toBeGreaterThanOrEqual(3800);
  expect(clock.ms).toBeLessThan(4200);
  expect(pace.yieldedMs).toBe(clock.ms);
  const calm = clock.ms;
  await pace.calm(signal);
  await pace.after({ rows: 1, bytes: 1 }, signal);
  expect(clock.ms).toBe(calm);
});

test("a lag that rests do not help against stops nothing: they become shorter, until one helps", async () => {
  const { clock, pace } = set({});
  telling(clock, pace, () => 10_000);
  pace.tell({ jobs: 1, lagMs: 10_000 });
  const rests: number[] = [];
  for (let chunk = 0; chunk < 8; chunk++) {
    const before = clock.ms;
    await pace.after({ rows: 1, bytes: 1 }, signal);
    rests.push(Math.round((clock.ms - before) / 1000));
  }
  expect(rests).toEqual([30, 15, 8, 4, 2, 1, 1, 1]);
  telling(clock, pace, () => 10);
  await pace.after({ rows: 1, bytes: 1 }, signal);
  telling(clock, pace, () => 10_000);
  pace.tell({ jobs: 1, lagMs: 10_000 });
  const before = clock.ms;
  await pace.after({ rows: 1, bytes: 1 }, signal);
  expect(Math.round((clock.ms - before) / 1000)).toBe(30);
});

test("of several that wait for the same calm all go on when it has come", async () => {
  const { clock, pace } = set({});
  telling(clock, pace, (now) => (now < 500 ? 600 : 0));
  pace.tell({ jobs: 1, lagMs: 600 });
  await Promise.all([pace.calm(signal), pace.calm(signal), pace.after({ rows: 1, bytes: 1 }, signal)]);
  expect(clock.ms).toBeLessThan(2000);
  // Once, however many wait.
  expect(pace.yieldedMs).toBe(clock.ms);
});

test("outside its windows nothing goes on", async () => {
  const { clock, pace } = set({ windows: ["22:00-06:00"] });
  await pace.after({ rows: 1, bytes: 1 }, signal);
  expect(new Date(clock.wall()).toISOString()).toBe("2026-02-04T22:00:00.000Z");
  await pace.after({ rows: 1, bytes: 1 }, signal);
  expect(new Date(clock.wall()).toISOString()).toBe("2026-02-04T22:00:00.000Z");
});

test("who is told to stop does not wait for the end of a pause", async () => {
  const { clock, pace } = set({ own: { rowsPerSecond: 1 } });
  const stop = new AbortController();
  clock.onSleep = () => clock.ms >= 3_000 && stop.abort(new Error("stopped"));
  await expect(pace.after({ rows: 1e6, bytes: 0 }, stop.signal)).rejects.toThrow("stopped");
  expect(clock.ms).toBe(3_000);
});
