import { describe, expect, test } from "vitest";
import { pauseAfter, Retry } from "./retry.js";

describe("pauses between tries", () => {
  test("double from a quarter of a second up to a minute, a quarter of each left to chance", () => {
    const longest = [1, 2, 3, 8, 9, 10, 5000].map((failures) => pauseAfter(failures, () => 0));
    expect(longest).toEqual([250, 500, 1_000, 32_000, 60_000, 60_000, 60_000]);
    expect(pauseAfter(10, () => 1)).toBe(45_000);
  });
});

describe("Retry", () => {
  test("tries until it succeeds, telling of each failure", async () => {
    let calls = 0;
    const failures: unknown[] = [];
    const retry = new Retry(new AbortController().signal);
    const result = await retry.run(
      async () => {
        if (++calls < 3) throw new Error(`no ${calls}`);
        return "done";
      },
      ({ error, attempts, pauseMs }) => {
        failures.push([String(error), attempts, pauseMs > 0]);
        queueMicrotask(() => setImmediate(() => retry.hurry()));
      },
    );
    expect(result).toBe("done");
    expect(failures).toEqual([
      ["Error: no 1", 1, true],
      ["Error: no 2", 2, true],
    ]);
  });

  test("ends a pause when told to hurry, and throws the last error when given up", async () => {
    const stop = new AbortController();
    const retry = new Retry(stop.signal);
    let tries = 0;
    const running = retry.run(
      async () => {
        throw new Error(`no ${++tries}`);
      },
      ({ attempts }) => setImmediate(() => (attempts < 9 ? retry.hurry() : stop.abort())),
    );
    // Nine pauses would take a minute and more.
    await expect(running).rejects.toThrow("no 9");
  });

  test("a failure told after it was given up is not told any more", async () => {
    const stop = new AbortController();
    const told: unknown[] = [];
    const running = new Retry(stop.signal).run(
      async () => {
        stop.abort();
        throw new Error("late");
      },
      (failure) => told.push(failure),
    );
    await expect(running).rejects.toThrow("late");
    expect(told).toEqual([]);
  });
});
