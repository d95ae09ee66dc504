const FIRST_MS = 100;
const LONGEST_MS = 5_000;

/**
 * How long to wait before attempt `attempt` (from 1) is repeated, in ms: somewhere between nothing and a bound that
 * doubles, so that clients that failed together do not come back together; after what the server asked for, if it did.
 */
export const pauseMs = (attempt: number, retryAfterMs = 0, random: () => number = Math.random): number =>
  retryAfterMs + random() * Math.min(FIRST_MS * 2 ** Math.min(attempt, 16), LONGEST_MS);
