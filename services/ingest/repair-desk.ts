import { setTimeout as sleep } from "node:timers/promises";
import { TributaryError } from "../base/errors.js";
import { answerRepair, takeRepairRequests } from "../status/repair-request.js";
import type { IngestContext } from "./context.js";
import { tell } from "./failure.js";
import { CONSUMER, type Pipeline } from "./pipeline.js";
import { repairTable } from "./repair.js";

const LOOK_MS = 1_000;
/** What is tended by the worker that answers. */
const DESK = "repairs";

/** Does the repairs that `tributary table repair` asks a running ingest for, one after the other. */
export async function serveRepairs(
  context: IngestContext,
  pipelines: ReadonlyMap<string, Pipeline>,
  signal: AbortSignal,
): Promise<void> {
  const { store, log, crew } = context;
  while (!signal.aborted) {
    const requests = crew.tends(DESK)
      ? await takeRepairRequests(store).catch((error: unknown) => {
          log.warn({ err: error }, "requests for repair cannot be read");
          return [];
        })
      : [];
    for (const { id, table, hopeless } of requests) {
      log.info({ table }, "repairing");
      const work = hopeless ? Promise.reject(hopelessly()) : repairNow(context, pipelines, table);
      const answer = await work.then(
        (report) => ({ report }),
        (error: unknown) => {
          log.error({ err: error, table }, "a repair failed");
          return { failed: tell(error).reason };
        },
      );
      await answerRepair(store, id, answer).catch((error: unknown) =>
        log.warn({ err: error, table }, "the answer to a repair was not written"),
      );
    }
    await sleep(LOOK_MS, undefined, { signal, ref: false }).catch(() => undefined);
  }
}

const hopelessly = () =>
  new TributaryError("TRB-INTERNAL", "ingest ended each time it was tried; stop it, and repair without it");

async function repairNow(context: IngestContext, pipelines: ReadonlyMap<string, Pipeline>, table: string) {
  const { store, duck, tableOptions, models } = context;
  const all = [...pipelines.values()];
  const pipeline = all.find((each) => each.moves(table)) ?? all[0];
  if (pipeline === undefined) throw new TributaryError("TRB-BUS-STREAM-DOWN", "no stream is open yet");
  const { reader } = pipeline;
  return pipeline.repaired(table, async () =>
    repairTable(
      { store, duck, tableOptions, models, stream: reader.name, lowWater: await reader.lowWater(CONSUMER) },
      table,
      false,
    ),
  );
}
