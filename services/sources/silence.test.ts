import { type ChildProcess, spawn } from "node:child_process";
import { availableParallelism } from "node:os";
import { afterEach, expect, test } from "vitest";
import { Silence, waitsOf } from "./silence.js";

test("silence is what a process has had a core for, or has wanted none", () => {
  let [now, first, second] = [0, 100, 0];
  const silence = new Silence(
    () =>
      new Map([
        ["1", first],
        ["2", second],
      ]),
    () => now,
  );
  expect(silence.ms).toBe(0);
  now = 1_000;
  expect(silence.ms).toBe(1_000);
  // One after the other wants to go on: threads that wait at the same time do not wait twice.
  [now, first, second] = [3_000, 1_900, 1_500];
  expect(silence.ms).toBe(1_200);
  silence.heard();
  expect(silence.ms).toBe(0);
  now = 3_500;
  expect(silence.ms).toBe(500);
  second += 400;
  expect(silence.ms).toBe(100);
});

const children: ChildProcess[] = [];
afterEach(() => {
  for (const child of children.splice(0)) child.kill("SIGKILL");
});
const busy = (nice: number) => {
  const child = spawn("nice", ["-n", String(nice), process.execPath, "-e", "for (;;);"], { stdio: "ignore" });
  children.push(child);
  return child;
};
const most = (pid: number) => Math.max(0, ...waitsOf(pid).values());

test.runIf(process.platform === "linux")("a process that others leave no core waits for one", async () => {
  const { pid } = busy(19);
  for (let i = 0; i < 2 * availableParallelism(); i++) busy(0);
  await expect.poll(() => most(pid!), { timeout: 30_000 }).toBeGreaterThan(500);
});
