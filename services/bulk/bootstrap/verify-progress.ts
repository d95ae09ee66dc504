import type { JobHost } from "../jobs/job-run.js";

type Host = Pick<JobHost, "signal" | "pace" | "tell">;

/**
 * Tells how far a comparison of source and lake is: of the job's rows, which are gone through in the source, and for each
 * model once more. What it is given it passes on.
 */
export class VerifyProgress {
  private done = 0;
  readonly host: Pick<JobHost, "signal" | "pace">;

  constructor(
    private readonly given: Host,
    /** About, that have landed. */
    private readonly rows: number,
    private readonly models: number,
  ) {
    this.host = {
      signal: given.signal,
      pace: async (work) => {
        this.reach(this.done + work.rows);
        await given.pace(work);
      },
    };
  }

  /** All of the source was read; what was known of it was not read again. */
  sourceRead(): void {
    this.reach(this.rows);
  }

  private reach(done: number): void {
    this.done = done;
    const all = this.rows * (1 + this.models);
    this.given.tell({ verified: all === 0 ? 0 : Math.min(1, done / all) });
  }
}

/** As `tell`, of one of several parts that are verified one after the other. */
export const partOf =
  (tell: JobHost["tell"], part: number, parts: number): JobHost["tell"] =>
  ({ verified, ...change }) =>
    tell({ ...change, ...(verified === undefined ? {} : { verified: (part + verified) / parts }) });
