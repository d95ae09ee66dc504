import { expect } from "vitest";
import type { IngestContext } from "../../services/ingest/context.js";
import type { EventBatch } from "../../services/ingest/event-batch.js";
import { takeIn } from "../../services/ingest/intake.js";
import { whole } from "../../services/ingest/payloads.js";
import { Refiner } from "../../services/ingest/refine.js";
import { refinedRoot } from "../../services/ingest/refined-table.js";
import { DeltaTable } from "../../services/table/delta-table.js";

/**
 * Puts into a model's table what no event of raw says: the rows that the model makes of these events, or that it would
 * with other SQL. As any writer does it, beside all others.
 */
export async function injure(
  context: IngestContext,
  name: string,
  batch: EventBatch,
  sql: (sql: string) => string = (same) => same,
): Promise<void> {
  if (batch.count === 0) return;
  const { store, duck, tableOptions, registry } = context;
  const model = context.models.find((each) => each.name === name)!;
  const table = (await DeltaTable.open(store, refinedRoot(model), duck, tableOptions))!;
  const connection = await duck.connect();
  try {
    const refiner = new Refiner(connection, registry, { ...model, sql: sql(model.sql) }, 60_000);
    await refiner.prepare();
    for (;;) {
      await table.refresh();
      const { kind } = await takeIn(refiner, context.writerFor(table, model.entityType), whole(batch), {
        from: new Map(),
        to: new Map(),
        again: true,
        landed: Promise.resolve(true),
        setAside: async () => expect.unreachable(),
      });
      if (kind === "taken") return;
    }
  } finally {
    connection.closeSync();
    await table.settled();
  }
}
