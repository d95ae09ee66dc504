import { TributaryError } from "../base/errors.js";
import type { IngestContext } from "../ingest/context.js";
import { rawRoot } from "../ingest/raw-table.js";
import type { ChangeStreamReader } from "../stream/change-stream.js";
import { DeltaTable } from "../table/delta-table.js";
import { progressAlong, progressOf } from "../table/progress.js";
import type { Watermark } from "./jobs/job.js";

/**
 * How far raw and its type's stream are now. Who takes it before an export begins knows that all up to it was written
 * before: where a product's changes are in the stream once they are in its database. Errors: TRB-BULK-MAPPING for a type
 * that is not known; those of the table and of the stream.
 */
export async function watermarkOf(
  {
    store,
    duck,
    tableOptions,
    registry,
  }: Pick<IngestContext, "store" | "duck" | "tableOptions" | "registry">,
  entityType: string,
  reader: Pick<ChangeStreamReader, "name" | "head">,
): Promise<Watermark> {
  if (registry.entityType(entityType) === undefined)
    throw new TributaryError("TRB-BULK-MAPPING", "entityType: expected one that this lake knows");
  const ahead = progressAlong(reader.name, await reader.head());
  const raw = await DeltaTable.open(store, rawRoot(entityType), duck, tableOptions);
  const positions = raw === undefined ? new Map<string, string>() : progressOf(raw.snapshot);
  for (const [track, position] of ahead)
    if (position > (positions.get(track) ?? "")) positions.set(track, position);
  return { positions: Object.fromEntries([...positions].sort(([a], [b]) => (a < b ? -1 : 1))) };
}
