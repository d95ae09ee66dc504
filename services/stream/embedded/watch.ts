import type { FileOps } from "../../base/files.js";

/** A change may be missed by the system's notices (other machines, full queues), so look by oneself now and then. */
const POLL_MS = 200;
/** Where notices cannot be had at all. */
const BUSY_POLL_MS = 10;

/** Wakes readers when something in the log's folder changes. */
export class FolderWatch {
  private changeCount = 0;
  private readonly waiting = new Set<() => void>();
  private readonly stop: () => void;
  private readonly pollMs: number;

  constructor(files: FileOps, folder: string) {
    let stop: () => void = () => undefined;
    let pollMs = POLL_MS;
    try {
      stop = files.watch(folder, () => this.wake());
    } catch {
      pollMs = BUSY_POLL_MS;
    }
    this.stop = stop;
    this.pollMs = pollMs;
  }

  /** Taken before looking for data, so that a change between looking and waiting is not slept through. */
  get changes(): number {
    return this.changeCount;
  }

  wake(): void {
    this.changeCount++;
    for (const done of this.waiting) done();
  }

  /** Resolves on a change after `seen` was taken, on abort, or after `waitMs` or the poll interval. */
  wait(seen: number, waitMs: number, signal?: AbortSignal): Promise<void> {
    if (this.changeCount !== seen || signal?.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer);
        this.waiting.delete(done);
        signal?.removeEventListener("abort", done);
        resolve();
      };
      const timer = setTimeout(done, Math.min(waitMs, this.pollMs));
      this.waiting.add(done);
      signal?.addEventListener("abort", done);
    });
  }

  close(): void {
    this.stop();
    this.wake();
  }
}
