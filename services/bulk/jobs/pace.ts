import { untilOpen } from "../../base/time-windows.js";

/** What a job may take. None of it is set where there is no limit. */
export interface Limits {
  readonly rowsPerSecond?: number | undefined;
  readonly bytesPerSecond?: number | undefined;
  /** Of all of the machine's cores, from 0 to 1. */
  readonly cpuShare?: number | undefined;
}

/** What goes on beside a job, as its parent last told it. */
export interface Beside {
  /** Jobs that run, this one among them: limits in total are shared out evenly. */
  readonly jobs: number;
  /** For how long the event has waited that live traffic has waited for the longest, in ms. */
  readonly lagMs: number;
}

export interface PaceOptions {
  readonly own: Limits;
  readonly total: Limits;
  readonly windows: readonly string[];
  /** Live events that wait longer go first. */
  readonly yieldAtMs: number;
  readonly cores: number;
}

/** Of a clock, in ms: `now` never goes back, `wall` is since the epoch. `cpu` is what the job has used, in ms. */
export interface PaceClock {
  now(): number;
  wall(): number;
  cpu(): number;
  /** Resolves after so long, or once the signal is aborted. */
  sleep(ms: number, signal: AbortSignal): Promise<void>;
}

const LOOK_MS = 100;
/** Live traffic counts as calm once it has been so for as long. */
const CALM_MS = 1_000;
/** Live traffic that lags for a reason of its own is not helped by a job that stands still: after a rest that did not help
 * the next is half as long. */
const LONGEST_REST_MS = 30_000;
const SHORTEST_REST_MS = 1_000;
/** As long as a wait may last before what is told is looked at again. */
const LONGEST_MS = 1_000;

/** Says when a job may go on, after what it has just done. */
export class Pace {
  private beside: Beside = { jobs: 1, lagMs: 0 };
  /** When live events last waited for too long. */
  private lagged = Number.NEGATIVE_INFINITY;
  private restMs = LONGEST_REST_MS;
  private rested = 0;
  /** The rest that is under way, which may be waited for by several. */
  private rest: Promise<void> | undefined;
  /** When the work began that is told next, and when its share of time ends. */
  private free: number;
  private cpu: number;

  constructor(
    private readonly options: PaceOptions,
    private readonly clock: PaceClock,
  ) {
    this.free = clock.now();
    this.cpu = clock.cpu();
  }

  tell(beside: Beside): void {
    this.beside = beside;
    if (beside.lagMs > this.options.yieldAtMs) this.lagged = this.clock.now();
  }

  /** Resolves when more may be done. Rejects with the signal's reason once it is aborted. */
  async after(work: { readonly rows: number; readonly bytes: number }, signal: AbortSignal): Promise<void> {
    const { clock } = this;
    const cpu = clock.cpu();
    const used = cpu - this.cpu;
    this.cpu = cpu;
    const began = this.free;
    // What others leave while this waits is taken at once; what it lost by being slow is not made up for.
    while (clock.now() < began + this.due(work, used)) {
      signal.throwIfAborted();
      await clock.sleep(Math.min(LONGEST_MS, began + this.due(work, used) - clock.now()), signal);
    }
    await this.calm(signal);
    await this.open(signal);
    this.free = clock.now();
  }

  /** Resolves when live events have not waited too long for a while, or have for so long that it is not the job's doing. */
  calm(signal: AbortSignal): Promise<void> {
    this.rest ??= this.untilCalm(signal).finally(() => {
      this.rest = undefined;
    });
    return this.rest;
  }

  /** For how long it has held back so far while live events waited, in ms. */
  get yieldedMs(): number {
    return this.rested;
  }

  private async untilCalm(signal: AbortSignal): Promise<void> {
    const { clock } = this;
    const since = clock.now();
    while (clock.now() - this.lagged < CALM_MS) {
      if (clock.now() - since >= this.restMs) {
        this.restMs = Math.max(SHORTEST_REST_MS, this.restMs / 2);
        return;
      }
      signal.throwIfAborted();
      const before = clock.now();
      await clock.sleep(LOOK_MS, signal);
      this.rested += clock.now() - before;
      if (this.beside.lagMs > this.options.yieldAtMs) this.lagged = clock.now();
    }
    if (clock.now() > since) this.restMs = LONGEST_REST_MS;
  }

  /** Resolves while a window is open. */
  async open(signal: AbortSignal): Promise<void> {
    const { clock, options } = this;
    for (;;) {
      signal.throwIfAborted();
      const wait = untilOpen(options.windows, clock.wall());
      if (wait === 0) return;
      await clock.sleep(Math.min(LONGEST_MS, wait), signal);
    }
  }

  /** How long the work has to take at least, in ms. */
  private due({ rows, bytes }: { readonly rows: number; readonly bytes: number }, cpuMs: number): number {
    const { cores } = this.options;
    return Math.max(
      (rows / this.limit("rowsPerSecond")) * 1000,
      (bytes / this.limit("bytesPerSecond")) * 1000,
      cpuMs / (this.limit("cpuShare") * cores),
    );
  }

  private limit(name: keyof Limits): number {
    const { own, total } = this.options;
    const share = (total[name] ?? Number.POSITIVE_INFINITY) / Math.max(1, this.beside.jobs);
    return Math.min(own[name] ?? Number.POSITIVE_INFINITY, share);
  }
}
