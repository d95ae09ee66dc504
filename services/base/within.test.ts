import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { within } from "./within.js";

test("work that ends in time is awaited, and leaves no timer behind", async () => {
  const before = process.getActiveResourcesInfo().filter((name) => name === "Timeout").length;
  let done = false;
  const work = sleep(5).then(() => {
    done = true;
  });
  expect(await within(60_000, work)).toBe(true);
  expect(done).toBe(true);
  expect(process.getActiveResourcesInfo().filter((name) => name === "Timeout").length).toBe(before);
});

test("work that takes longer goes on without being waited for", async () => {
  let end: () => void = () => undefined;
  const work = new Promise<void>((resolve) => {
    end = resolve;
  });
  expect(await within(5, work)).toBe(false);
  end();
  await work;
});

test("work that fails in time throws; later it is its owner's", async () => {
  await expect(within(60_000, Promise.reject(new Error("early")))).rejects.toThrow("early");
  const late = sleep(20).then(() => Promise.reject(new Error("late")));
  expect(await within(1, late)).toBe(false);
  await expect(late).rejects.toThrow("late");
});
