import type { JobState } from "./job.js";

/** Between two reports of one job, in ms. */
const EVERY_MS = 1_000;
/** What a rate is told of, in ms. */
const WINDOW_MS = 30_000;

/** What changes of a state while a job runs. */
export type Told = Partial<Omit<JobState, "writtenAt">>;

interface Point {
  readonly at: number;
  readonly rows: number;
  /** Of all there is to do, as far as that is known. */
  readonly share: number;
}

/** One job's state on its way to the lake: written now and then, with how fast it goes. */
export class JobReport {
  private points: Point[] = [];
  private timer: NodeJS.Timeout | undefined;
  private writing: Promise<void> = Promise.resolve();
  private left = false;
  /** When the time began that is not counted yet. */
  private since: number;

  constructor(
    private current: JobState,
    private readonly write: (state: JobState) => Promise<void>,
    private readonly onFailure: (error: unknown) => void,
    private readonly clock: () => number = () => performance.now(),
  ) {
    this.since = clock();
  }

  get state(): JobState {
    return this.current;
  }

  /** Written within a second. */
  tell(told: Told): void {
    const before = this.current.phase;
    this.count();
    this.current = { ...this.current, ...told };
    if (told.phase !== undefined && told.phase !== before) this.points = [];
    if (this.left) return;
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      void this.put();
    }, EVERY_MS).unref();
  }

  /** Resolves when it is written, or could not be. */
  async now(told: Told): Promise<void> {
    clearTimeout(this.timer);
    this.timer = undefined;
    this.count();
    this.current = { ...this.current, ...told };
    this.points = [];
    await this.put();
  }

  /** What is told from here on is not written: somebody else writes it. */
  leave(): void {
    this.left = true;
    clearTimeout(this.timer);
    this.timer = undefined;
  }

  /** Adds the time since it was last counted to that of the phase. */
  private count(): void {
    const now = this.clock();
    const seconds = (now - this.since) / 1000;
    this.since = now;
    const { phase, seconds: before } = this.current;
    if (phase !== "landing" && phase !== "refining" && phase !== "verifying") return;
    const sum = Math.round(((before?.[phase] ?? 0) + seconds) * 1000) / 1000;
    this.current = { ...this.current, seconds: { ...before, [phase]: sum } };
  }

  private put(): Promise<void> {
    this.writing = this.writing
      .then(() => {
        this.count();
        const { rowsPerSecond: _, etaSeconds: __, ...state } = this.current;
        return this.write({ ...state, ...this.pace(), writtenAt: new Date().toISOString() });
      })
      .catch(this.onFailure);
    return this.writing;
  }

  private pace(): Pick<JobState, "rowsPerSecond" | "etaSeconds"> {
    const { phase, rowsLanded, rowsRefined, bytes, bytesDone, verified = 0 } = this.current;
    if (phase !== "landing" && phase !== "refining" && phase !== "verifying") return {};
    const rows = phase === "landing" ? rowsLanded : rowsRefined;
    const [done, all] =
      phase === "landing"
        ? [bytesDone, bytes]
        : phase === "refining"
          ? [rowsRefined, rowsLanded]
          : [verified, 1];
    const now: Point = { at: this.clock(), rows, share: all === 0 ? 0 : Math.min(1, done / all) };
    this.points = [...this.points.filter(({ at }) => now.at - at <= WINDOW_MS), now];
    const first = this.points[0]!;
    const seconds = (now.at - first.at) / 1000;
    if (seconds <= 0) return {};
    const rowsPerSecond = Math.round((now.rows - first.rows) / seconds);
    const sharePerSecond = (now.share - first.share) / seconds;
    return {
      ...(phase === "verifying" ? {} : { rowsPerSecond }),
      ...(sharePerSecond > 0 ? { etaSeconds: Math.ceil((1 - now.share) / sharePerSecond) } : {}),
    };
  }
}
