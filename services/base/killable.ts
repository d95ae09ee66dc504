import { type ChildProcess, fork } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";

/** Child processes that read what strangers wrote, and are killed without regret. */

/** Starts `script` (JavaScript) with `options` as its only argument, and nothing of ours: no keys, settings, paths. */
export const forkKillable = (script: string, options: unknown, heapMegabytes: number): ChildProcess =>
  fork(script, [JSON.stringify(options)], {
    // One statement at a time runs in it: on one thread, as the engine keeps memory ready for each that it has been on.
    env: { TZ: "UTC", UV_THREADPOOL_SIZE: "1" },
    execArgv: [`--max-old-space-size=${heapMegabytes}`],
    serialization: "advanced",
    stdio: ["ignore", "ignore", "ignore", "ipc"],
  });

/** Resolves when the process is gone, once `end` has been told of it, and of the signal if it was one. */
export const gone = (child: ChildProcess, end: (signal: NodeJS.Signals | null) => void): Promise<void> =>
  new Promise((resolve) => {
    const ended = (signal: NodeJS.Signals | null) => {
      end(signal);
      resolve();
    };
    child.once("exit", (_, signal) => ended(signal));
    child.once("error", () => {
      // A failed send or kill is followed by an exit; a process that never began is not.
      if (child.pid === undefined) ended(null);
    });
  });

/** Memory that a process holds, in bytes; undefined where that is not told, or it has just ended. */
export function residentBytes(pid: number): number | undefined {
  try {
    const resident = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "latin1"))?.[1];
    return resident === undefined ? undefined : Number(resident) * 1024;
  } catch {
    return undefined;
  }
}

/** In the child: this process goes before others when memory runs out, and with its parent. */
export function beKillable(): void {
  // Should memory run out on the machine as a whole, this process goes first and not the bus. Linux only.
  try {
    writeFileSync("/proc/self/oom_score_adj", "1000");
  } catch {
    // Not Linux, or not allowed: the parent's watch remains.
  }
  // A terminal interrupts the whole group; the parent decides when a worker ends.
  process.on("SIGINT", () => undefined);
  process.on("disconnect", () => process.kill(process.pid, "SIGKILL"));
}
