import type { IngestContext } from "../../ingest/context.js";
import { rawRoot } from "../../ingest/raw-table.js";
import { Target } from "../../ingest/target.js";
import { DeltaTable } from "../../table/delta-table.js";
import { partsOf, type Track, trackOf } from "../../table/progress.js";
import { rowsUpTo } from "../jobs/job-rows.js";
import type { JobHost } from "../jobs/job-run.js";
import { LANE, streamOf } from "../jobs/job-tracks.js";

/** How often what the models have taken in is told, in ms. */
const TELL_MS = 1_000;

/**
 * Moves every model of the entity type along the job's own tracks, to where raw stands; all others are somebody else's.
 * A table that is another model's is waited for: who tends it builds it anew, with the job's rows among all others.
 * Resolves to whether they are there, false when the signal stopped it. Errors: those of Target.
 */
export async function refineJob(
  context: IngestContext,
  job: string,
  entityType: string,
  host: Pick<JobHost, "signal" | "tell" | "pace">,
  /** That have landed, about. */
  rows: number,
): Promise<boolean> {
  const stream = streamOf(job);
  const own: IngestContext = {
    ...context,
    stream,
    ours: { has: (_, track: Track) => partsOf(track).stream === stream, slots: undefined },
    crew: { tends: () => false, isFree: () => false, runs: () => false, lookMs: undefined },
  };
  const { store, duck, tableOptions } = context;
  const raw = await DeltaTable.open(store, rawRoot(entityType), duck, tableOptions);
  if (raw === undefined) return true;
  const models = context.models.filter((model) => model.entityType === entityType);
  // One after the other: each may take all the memory that the job has.
  for (const [done, model] of models.entries()) {
    if (host.signal.aborted) return false;
    const target = await Target.open(own, model);
    const telling = setInterval(() => {
      const track = trackOf(stream, LANE);
      const taken = done * rows + rowsUpTo(raw.snapshot, track, target.progress.get(track) ?? "");
      host.tell({ rowsRefined: Math.floor(taken / models.length) });
    }, TELL_MS).unref();
    try {
      await target.catchUp(raw, host.signal, (read) => host.pace(read));
    } catch (error) {
      if (host.signal.aborted) return false;
      throw error;
    } finally {
      clearInterval(telling);
      await target.close();
    }
  }
  await raw.settled();
  if (models.length > 0) host.tell({ rowsRefined: rows });
  return true;
}
