import { setTimeout as sleep } from "node:timers/promises";

const FIRST_MS = 250;
const LONGEST_MS = 60_000;
/** How much of a pause is left to chance, so that what failed together is not tried again together. */
const JITTER = 0.25;

/** The pause after so many failures in a row (1 = the first), in ms: it doubles up to a minute. */
export function pauseAfter(failures: number, random: () => number = Math.random): number {
  const whole = Math.min(LONGEST_MS, FIRST_MS * 2 ** Math.min(failures - 1, 30));
  return Math.round(whole * (1 - JITTER * random()));
}

export interface Failure {
  readonly error: unknown;
  /** Tries so far, this one included. */
  readonly attempts: number;
  /** Until the next one, in ms. */
  readonly pauseMs: number;
}

/** The one way to try again: one piece of work until it succeeds or is given up. Not for two `run`s at a time. */
export class Retry {
  private pause = new AbortController();

  /** `signal` gives up: a pause ends, and the last error is thrown. */
  constructor(private readonly signal: AbortSignal) {}

  /** Runs `work` until it succeeds. `failed` is told of each failure; what it throws ends the tries. */
  async run<T>(work: () => Promise<T>, failed: (failure: Failure) => void): Promise<T> {
    for (let attempts = 1; ; attempts++) {
      try {
        return await work();
      } catch (error) {
        if (this.signal.aborted) throw error;
        const pauseMs = pauseAfter(attempts);
        this.pause = new AbortController();
        failed({ error, attempts, pauseMs });
        const either = AbortSignal.any([this.signal, this.pause.signal]);
        await sleep(pauseMs, undefined, { signal: either, ref: false }).catch(() => undefined);
        if (this.signal.aborted) throw error;
      }
    }
  }

  /** Ends the pause that runs, if one does. */
  hurry(): void {
    this.pause.abort();
  }
}
