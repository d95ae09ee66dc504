import type { ObjectStore } from "../storage/object-store.js";
import type { Checkpoint } from "../stream/change-stream.js";
import { DeltaTable } from "../table/delta-table.js";
import { positionsOf } from "../table/progress.js";
import type { IngestContext } from "./context.js";
import { DEAD_LETTERS_ROOT } from "./dead-letters.js";
import { ENTITY_TYPE } from "./event-batch.js";
import { foldersOf, parkedTables } from "./parked-log.js";
import { rawRoot } from "./raw-table.js";

/** Entity types that have a raw table or parked events. Errors: TRB-STORE-FAILED. */
export async function knownTypes(store: ObjectStore): Promise<string[]> {
  const names = new Set([...(await foldersOf(store, "raw/")), ...(await parkedTables(store))]);
  return [...names].filter((name) => ENTITY_TYPE.test(name));
}

/**
 * How far whichever table has come the farthest has come along these partitions of the stream. It opens all tables.
 * Errors: TRB-STORE-FAILED, TRB-TABLE-CORRUPT.
 */
export async function farthest(context: IngestContext, partitions: readonly string[]): Promise<Checkpoint> {
  const { store, duck, tableOptions, stream } = context;
  const wanted = new Set(partitions);
  const found = new Map<string, string>();
  const roots = [...(await knownTypes(store)).map(rawRoot), DEAD_LETTERS_ROOT];
  for (const root of roots) {
    const table = await DeltaTable.open(store, root, duck, tableOptions);
    if (table === undefined) continue;
    for (const [partition, position] of positionsOf(table.snapshot, stream)) {
      if (wanted.has(partition) && position > (found.get(partition) ?? "")) found.set(partition, position);
    }
  }
  return found;
}
