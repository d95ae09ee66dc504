import type { IngestContext } from "../../ingest/context.js";
import type { Reject } from "../../sources/formats.js";
import type { JobOrder, JobState } from "./job.js";
import type { RejectedFile } from "./rejects.js";

/** What a kind of job works with while it runs. Whoever runs jobs makes one a run. */
export interface JobHost {
  /** Aborted when the job is to stop behind what it is just committing: paused, cancelled, or its process ends. */
  readonly signal: AbortSignal;
  /** What operators are to see of it; written down now and then, never waited for. */
  tell(
    change: Partial<Omit<JobState, "phase" | "writtenAt">> & {
      readonly phase?: "checking" | "landing" | "refining" | "verifying";
    },
  ): void;
  /**
   * Resolves when so much more may be worked on: limits of the job and of all jobs, windows of time, and live traffic
   * that lags. Called before each chunk, with what the last one was. Rejects with the signal's reason once it is aborted.
   */
  pace(work: { readonly rows: number; readonly bytes: number }): Promise<void>;
  /** Resolves while live traffic does not wait for too long, as `pace` sees it; for work that is done ahead of a chunk's turn. */
  calm(): Promise<void>;
  /**
   * Keeps rows that are no events: all of a file's next records that are none. Durable when resolved; the same ones told
   * again are kept once. Errors: TRB-JOB-REJECTS once there are more than the order allows: the job pauses.
   */
  reject(file: RejectedFile, rejects: readonly Reject[]): Promise<void>;
  /** How many it has kept, in all of its runs. */
  readonly rejected: number;
}

/**
 * Runs jobs of one kind. Called again after a kill, a pause or a failure, and beside another that still runs: how far
 * the job is stands in the tables' own positions, so that neither loses nor doubles anything. Resolves to whether it is
 * done, false when the signal stopped it; errors are those of the kind, and fail the job with their code unless they
 * are `retryable`.
 */
export type RunJob<Order extends JobOrder> = (
  context: IngestContext,
  order: Order,
  host: JobHost,
) => Promise<boolean>;
