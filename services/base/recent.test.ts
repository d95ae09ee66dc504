import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Recent } from "./recent.js";

beforeEach(() => {
  vi.useFakeTimers();
});
afterEach(() => {
  vi.useRealTimers();
});

test("however many ask, there is one look in its time", async () => {
  let looks = 0;
  const recent = new Recent(async () => ++looks, 1_000, 200);
  const many = () => Promise.all(Array.from({ length: 100 }, () => recent.get()));
  expect(new Set(await many())).toEqual(new Set([1]));
  vi.advanceTimersByTime(900);
  expect(new Set(await many())).toEqual(new Set([1]));
  vi.advanceTimersByTime(200);
  expect(new Set(await many())).toEqual(new Set([2]));
});

test("nobody waits for a look that hangs, nor is it made again; what was found before stands", async () => {
  let looks = 0;
  let answer: (found: string) => void = () => undefined;
  const recent = new Recent(
    () => (++looks === 1 ? Promise.resolve("first") : new Promise((resolve) => (answer = resolve))),
    1_000,
    200,
  );
  expect(await recent.get()).toBe("first");
  for (let i = 0; i < 10; i++) {
    vi.advanceTimersByTime(2_000);
    const got = recent.get();
    await vi.advanceTimersByTimeAsync(200);
    expect(await got).toBe("first");
  }
  expect(looks).toBe(2);
  answer("second");
  await vi.advanceTimersByTimeAsync(0);
  expect(await recent.get()).toBe("second");
});

test("a look that fails is made again, at its time", async () => {
  let looks = 0;
  const recent = new Recent(
    async () => {
      if (++looks === 1) throw new Error("away");
      return "there";
    },
    1_000,
    200,
  );
  expect(await recent.get()).toBeUndefined();
  expect(await recent.get()).toBeUndefined();
  vi.advanceTimersByTime(1_100);
  expect(await recent.get()).toBe("there");
});
