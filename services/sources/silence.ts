import { readdirSync, readFileSync } from "node:fs";

/** What each thread of a process has waited so far for a core that it wanted, in ms. */
export type Waits = ReadonlyMap<string, number>;

/**
 * How long a process has given no sign that it gets on. The time in which it had no core, though it wanted one, does not count:
 * what makes chunks gets what others leave of the machine, and that may be next to nothing for minutes.
 */
export class Silence {
  private heardAt: number;
  /** As of the first look since the last sign. */
  private before: Waits | undefined;

  constructor(
    private readonly waitsNow: () => Waits,
    private readonly now: () => number = () => performance.now(),
  ) {
    this.heardAt = now();
  }

  /** The process has given a sign. */
  heard(): void {
    this.heardAt = this.now();
    this.before = undefined;
  }

  /** To be asked every now and then: waits are known from the first time on since the last sign. */
  get ms(): number {
    const waits = this.waitsNow();
    this.before ??= waits;
    let waited = 0;
    for (const [thread, ms] of waits) waited = Math.max(waited, ms - (this.before.get(thread) ?? 0));
    return this.now() - this.heardAt - waited;
  }
}

/** Of a process, as Linux tells it; elsewhere none. */
export function waitsOf(pid: number | undefined): Waits {
  const waits = new Map<string, number>();
  if (pid === undefined) return waits;
  const tasks = `/proc/${pid}/task`;
  try {
    for (const thread of readdirSync(tasks)) {
      // Nanoseconds on a core, and waiting for one.
      const waited = readFileSync(`${tasks}/${thread}/schedstat`, "latin1").split(" ")[1];
      waits.set(thread, Number(waited) / 1e6);
    }
  } catch {
    // It is ending, or this is not Linux.
  }
  return waits;
}
