import pino from "pino";
import { Registry } from "prom-client";
import { ImportLander, type ImportLanderOptions } from "../../services/bulk/imports/import-lander.js";
import { ImportQueue, queuedAs } from "../../services/bulk/imports/import-queue.js";
import { type BootstrapJob, type Job, jobState } from "../../services/bulk/jobs/job.js";
import type { EventBatch } from "../../services/ingest/event-batch.js";
import { RawWriter } from "../../services/ingest/raw-writer.js";
import { append } from "../../services/table/append.js";
import type { CommitResult } from "../../services/table/commit-request.js";
import { positionsOf } from "../../services/table/progress.js";
import { bootstrapOf } from "./jobs.js";
import type { Lake } from "./lake.js";

/** Appends a batch to the import queue, as a producer does that stands behind what is queued of its stream. */
export function enqueue(
  { context }: Lake,
  queue: Pick<ImportQueue, "table">,
  batch: EventBatch,
): Promise<CommitResult> {
  const stream = queuedAs(batch.stream, batch.entityType);
  return context.duck.with((connection) =>
    append(queue.table, stream, positionsOf(queue.table.snapshot, stream), async (path) => ({
      file: await new RawWriter(connection).write(batch, path),
      to: batch.reached(),
    })),
  );
}

export const openQueue = ({ context }: Lake): Promise<ImportQueue> => ImportQueue.openOrCreate(context);

/** A job of that id, with what matters to the queue. */
export const jobOf = (
  id: string,
  {
    wish = "run",
    phase = "landing",
    ...order
  }: Partial<Pick<BootstrapJob, "priority" | "at" | "source" | "mapping" | "through">> & {
    readonly wish?: Job["wish"];
    readonly phase?: Job["state"]["phase"];
  } = {},
): Job => {
  const at = new Date().toISOString();
  const asked = { at, source: "exports/x", mapping: undefined, through: undefined };
  return {
    order: bootstrapOf(id, { ...asked, ...order }),
    wish,
    state: jobState.parse({ phase, writtenAt: at }),
  };
};

/** Lands the queue until it is closed; jobs are those that `jobs` tells. */
export function landerOf(
  { context }: Lake,
  ingest: ImportLanderOptions["ingest"],
  jobs: () => readonly Job[] = () => [],
  options: Partial<ImportLanderOptions> = {},
): ImportLander {
  return new ImportLander({
    context,
    jobs: { list: async () => [...jobs()] },
    ingest,
    isOurs: () => true,
    pace: { after: async () => undefined },
    log: pino({ level: "silent" }),
    registry: new Registry(),
    lookMs: 5,
    ...options,
  });
}
