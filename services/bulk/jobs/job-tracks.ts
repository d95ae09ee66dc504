import type { Crew } from "../../ingest/crew.js";
import { partsOf, type Track } from "../../table/progress.js";
import { hasEnded, type Job } from "./job.js";

const PREFIX = "bootstrap-";

/** The partition that a job's deletes come along, of what its export lacks; no lane of its rows has that name. */
export const DELETES = "deletes";

/** The stream that a job's rows come along, as positions have it. No stream of events has such a name. */
export const streamOf = (job: string): string => `${PREFIX}${job}`;

/** The one lane of a job. */
export const LANE = "0";

/**
 * Which tracks are a job's to move tables along: those of each job that is not over, whether or not it runs at the
 * moment, and whoever runs it. Once it is over they are like those of any stream that nobody holds.
 */
export class JobTracks {
  /** Job → whether it is over. */
  private known = new Map<string, boolean>();
  /** Jobs that tracks were seen of and no order yet, with the number of the look that ran or came last then. */
  private readonly unknown = new Map<string, number>();
  private begun = 0;
  private seen = 0;

  /** Takes in what `list` tells of all jobs. Errors: those of `list`. */
  async look(list: () => Promise<readonly Job[]>): Promise<readonly Job[]> {
    const number = ++this.begun;
    const jobs = await list();
    this.known = new Map(jobs.map(({ order, state }) => [order.id, hasEnded(state)]));
    this.seen = number;
    return jobs;
  }

  /** An order stands before there are tracks of its job: who has looked since knows of it. */
  holds(track: Track): boolean {
    const { stream } = partsOf(track);
    if (!stream.startsWith(PREFIX)) return false;
    const id = stream.slice(PREFIX.length);
    const isOver = this.known.get(id);
    if (isOver !== undefined) return !isOver;
    const at = this.unknown.get(id) ?? this.begun;
    this.unknown.set(id, at);
    return this.seen <= at;
  }

  /** As others of the crew see it. */
  sparedBy(crew: Crew): Crew {
    return {
      tends: (table) => crew.tends(table),
      isFree: (track) => !this.holds(track) && crew.isFree(track),
      runs: (fingerprint) => crew.runs(fingerprint),
      get lookMs() {
        return crew.lookMs;
      },
    };
  }
}
