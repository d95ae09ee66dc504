import { setTimeout as sleep } from "node:timers/promises";
import { answerRepair, takeRepairRequests } from "../status/repair-request.js";
import type { ChangeStreamReader } from "../stream/change-stream.js";
import type { IngestContext } from "./context.js";
import { tell } from "./failure.js";
import { CONSUMER, type Pipeline } from "./pipeline.js";
import { repairTable } from "./repair.js";

const LOOK_MS = 1_000;

/** Does the repairs that `tributary table repair` asks a running ingest for, one after the other. */
export async function serveRepairs(
  context: IngestContext,
  reader: ChangeStreamReader,
  pipeline: Pipeline,
  signal: AbortSignal,
): Promise<void> {
  const { store, log } = context;
  while (!signal.aborted) {
    const requests = await takeRepairRequests(store).catch((error: unknown) => {
      log.warn({ err: error }, "requests for repair cannot be read");
      return [];
    });
    for (const { id, table } of requests) {
      log.info({ table }, "repairing");
      const answer = await repairNow(context, reader, pipeline, table).then(
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

async function repairNow(
  context: IngestContext,
  reader: ChangeStreamReader,
  pipeline: Pipeline,
  table: string,
) {
  const { store, duck, tableOptions, stream } = context;
  return pipeline.repaired(table, async () =>
    repairTable(
      {
        store,
        duck,
        tableOptions,
        models: context.models,
        stream,
        lowWater: await reader.lowWater(CONSUMER),
      },
      table,
      false,
    ),
  );
}
