import { describe, expect, test } from "vitest";
import { CommitBudget, OVERDUE_LANES, OVERDUE_MS } from "./commit-budget.js";

/** Ticks of a millisecond; every type has an event at every tick; a flush of one takes `flushMs` and two commits. */
function longestWait(types: number, perSecond: number, flushMs: number): { wait: number; commits: number } {
  let now = 0;
  const budget = new CommitBudget(perSecond, () => now);
  const since = new Array<number>(types).fill(0);
  let running: { readonly type: number; readonly end: number }[] = [];
  let wait = 0;
  let commits = 0;
  for (; now < 20_000; now++) {
    running = running.filter(({ end }) => end > now);
    const order = since.map((began, type) => ({ began, type })).sort((a, b) => a.began - b.began);
    for (const { began, type } of order) {
      if (running.some((one) => one.type === type) || !budget.allows(now - began, running.length)) continue;
      if (now > 5_000) wait = Math.max(wait, now - began);
      budget.spend(2);
      commits += 2;
      running.push({ type, end: now + flushMs });
      since[type] = now;
    }
  }
  return { wait, commits };
}

describe("the commit budget", () => {
  test("keeps a few types to the rate", () => {
    const { commits } = longestWait(4, 40, 5);
    expect(commits).toBeLessThanOrEqual(40 * 21);
  });

  test("lets no type of two hundred wait much longer than a second, as long as a few lanes can do it", () => {
    // Two hundred flushes of 16 ms, four at a time, take 0.8 s. By the rate alone each would wait for ten.
    expect(longestWait(200, 40, 16).wait).toBeLessThan(OVERDUE_MS + 200);
  });

  test("an overdue batch waits while enough others flush", () => {
    const budget = new CommitBudget(1, () => 0);
    budget.spend(1);
    expect(budget.allows(OVERDUE_MS - 1, 0)).toBe(false);
    expect(budget.allows(OVERDUE_MS, OVERDUE_LANES - 1)).toBe(true);
    expect(budget.allows(OVERDUE_MS, OVERDUE_LANES)).toBe(false);
    expect(budget.until(OVERDUE_MS - 300)).toBe(300);
  });
});
