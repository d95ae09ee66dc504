import { type ChildProcess, fork } from "node:child_process";
import { join } from "node:path";
import { packageRoot } from "../../base/paths.js";

/**
 * COPY statements run on libuv's threads; a raw and a refined one of several lanes go at once. glibc's allocator gives
 * large blocks back to the kernel at once by default and faults them in again with the next batch: a fifth of
 * ingest's CPU (other allocators ignore these).
 */
const ENVIRONMENT = {
  UV_THREADPOOL_SIZE: "8",
  MALLOC_MMAP_THRESHOLD_: "33554432",
  MALLOC_TRIM_THRESHOLD_: "1073741824",
};

/** Compiled: a child process needs JavaScript, also when the parent runs from source. */
const FOLDER = join(packageRoot, "dist", "services", "main", "compose");

/** What a process takes beside the engine and key indexes: heap, batches, payloads being unpacked, code. */
export const OTHER_BYTES = 1536 * 1024 * 1024;

/**
 * Starts a script of this folder in a process of its own, with its settings and so many bytes of data at most: the
 * engine's own limit does not count what functions allocate (`repeat('x', 2e9)`); beyond this their allocations fail,
 * and the engine says so like of its own limit. `niceness`: others go first.
 */
export function forkLimited(script: string, dataBytes: number, niceness = 0): ChildProcess {
  // The shell only sets limits, then becomes the process.
  const become = niceness === 0 ? 'exec "$NODE" "$0"' : `exec nice -n ${niceness} "$NODE" "$0"`;
  return fork(join(FOLDER, script), [], {
    env: {
      ...process.env,
      ...ENVIRONMENT,
      NODE: process.execPath,
      DATA_KIB: String(Math.ceil(dataBytes / 1024)),
    },
    execPath: "/bin/sh",
    execArgv: ["-c", `ulimit -S -d "$DATA_KIB"; ${become}`],
    stdio: ["ignore", "inherit", "inherit", "ipc"],
    // For bytes and maps as they are.
    serialization: "advanced",
  });
}
