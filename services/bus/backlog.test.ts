import { expect, test } from "vitest";
import { Backlog } from "./backlog.js";

const MAX = 256_000;

/** A stream that nothing leaves unless it is told to. */
function stream() {
  const state = { waiting: 0 };
  const backlog = new Backlog(MAX, () => state.waiting);
  return {
    state,
    /** Publishes until it is refused, `most` bytes at most; resolves to the bytes that were taken. */
    flood(share: string, most = MAX * 2): number {
      let taken = 0;
      while (taken < most) {
        if (backlog.refusal(share) !== undefined) return taken;
        backlog.appended(share, 1_000);
        state.waiting += 1_000;
        taken += 1_000;
      }
      return taken;
    },
  };
}

test("who floods alone may use half of the backlog, and leaves room for others, one after the other", () => {
  const { flood, state } = stream();
  expect(flood("a") / MAX).toBeCloseTo(1 / 2, 1);
  expect(flood("b") / MAX).toBeCloseTo(1 / 4, 1);
  expect(flood("c") / MAX).toBeCloseTo(1 / 8, 1);
  // Not even those are in the way of one that publishes little.
  expect(flood("d", 5_000)).toBe(5_000);
  expect(state.waiting).toBeLessThan(MAX);
});

test("those who flood side by side get the same", () => {
  const { flood } = stream();
  const taken = { a: 0, b: 0 };
  for (let i = 0; i < 1_000; i++)
    for (const share of ["a", "b"] as const) taken[share] += flood(share, 1_000);
  expect(taken.a / MAX).toBeCloseTo(1 / 3, 1);
  expect(taken.b / MAX).toBeCloseTo(1 / 3, 1);
});

test("what has landed counts no more, the oldest first", () => {
  const { flood, state } = stream();
  flood("a");
  const other = flood("b");
  // All of the first one's has landed.
  state.waiting = other;
  expect(flood("a", 10_000)).toBe(10_000);
  expect(flood("b", 10_000)).toBe(10_000);
  state.waiting = 0;
  expect(flood("a", 100_000)).toBe(100_000);
});

test("what was there before this process keeps everybody waiting only once it fills the limit", () => {
  const { flood, state } = stream();
  state.waiting = MAX * 0.9;
  expect(flood("a", 5_000)).toBe(5_000);
  state.waiting = MAX + 1;
  expect(flood("a")).toBe(0);
});
