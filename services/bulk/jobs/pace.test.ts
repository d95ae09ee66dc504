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

test("live events that wait too long go first, but not for ever", async () => {
  const { clock, pace } = set({});
  pace.tell({ jobs: 1, lagMs: 501 });
  clock.onSleep = () => clock.ms >= 700 && pace.tell({ jobs: 1, lagMs: 500 });
  await pace.after({ rows: 1, bytes: 1 }, signal);
  expect(clock.ms).toBe(700);
  clock.onSleep = () => undefined;
  pace.tell({ jobs: 1, lagMs: 10_000 });
  await pace.after({ rows: 1, bytes: 1 }, signal);
  expect(clock.ms).toBe(30_700);
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
