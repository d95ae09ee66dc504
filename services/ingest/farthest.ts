import { hasCode } from "../base/errors.js";
import { inGroups } from "../base/in-groups.js";
import type { ObjectStore } from "../storage/object-store.js";
import type { Checkpoint } from "../stream/change-stream.js";
import { DeltaTable } from "../table/delta-table.js";
import { positionsOf } from "../table/progress.js";
import type { IngestContext } from "./context.js";
import { ENTITY_TYPE } from "./event-batch.js";
import { foldersOf, parkedPositions, parkedTables } from "./parked-log.js";
import { rawRoot } from "./raw-table.js";

const AT_ONCE = 8;

/** Entity types that have a raw table or parked events. Errors: TRB-STORE-FAILED. */
export async function knownTypes(store: ObjectStore): Promise<string[]> {
  const names = new Set([...(await foldersOf(store, "raw/")), ...(await parkedTables(store))]);
  return [...names].filter((name) => ENTITY_TYPE.test(name));
}

/**
 * How far whichever table has come the farthest, or has events parked, along each partition of the stream; undefined when
 * none has any of it. It opens all raw tables; what one cannot tell that is damaged the others tell. Errors:
 * TRB-STORE-FAILED, TRB-STREAM-CORRUPT.
 */
export async function farthest(context: IngestContext): Promise<Checkpoint | undefined> {
  const { store, duck, tableOptions, stream } = context;
  const found = new Map<string, string>();
  const reached = (partition: string, position: string) => {
    if (position > (found.get(partition) ?? "")) found.set(partition, position);
  };
  await inGroups(await knownTypes(store), AT_ONCE, async (type) => {
    const table = await DeltaTable.open(store, rawRoot(type), duck, tableOptions).catch((error: unknown) => {
      if (hasCode(error, "TRB-TABLE-CORRUPT")) return undefined;
      throw error;
    });
    if (table === undefined) return;
    for (const [partition, position] of positionsOf(table.snapshot, stream)) reached(partition, position);
  });
  for (const { partition, position } of await parkedPositions(store, stream)) reached(partition, position);
  return found.size === 0 ? undefined : found;
}
