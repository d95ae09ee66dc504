import { setTimeout as sleep } from "node:timers/promises";
import type { PaceClock } from "../../bulk/jobs/pace.js";

/** `cpu`: what whoever is held to a pace has used, in ms. */
export const paceClock = (cpu: () => number): PaceClock => ({
  now: () => performance.now(),
  wall: () => Date.now(),
  cpu,
  sleep: (ms, signal) => sleep(ms, undefined, { signal }).catch(() => undefined),
});
