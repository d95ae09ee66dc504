import type { Duck } from "../base/duckdb.js";
import type { ObjectStore } from "../storage/object-store.js";
import { commitKey } from "./actions.js";
import { requireNoFiles } from "./delta-log.js";
import { DeltaTable, type TableOptions } from "./delta-table.js";
import type { TableFile, TableSnapshot } from "./types.js";

/** A table on the repairer's bench. */
export type Bench =
  | { readonly kind: "absent" }
  | { readonly kind: "readable"; readonly table: DeltaTable }
  /** It opens without its newest commit. What is committed to `table` takes that one's place, of which a copy is kept. */
  | {
      readonly kind: "newest";
      readonly table: DeltaTable;
      readonly version: number;
      readonly reason: unknown;
    }
  /** Something older is damaged. */
  | { readonly kind: "unreadable"; readonly reason: unknown };

/** Errors: TRB-STORE-FAILED. */
export async function openBench(
  store: ObjectStore,
  root: string,
  duck: Duck,
  options: TableOptions,
): Promise<Bench> {
  let reason: unknown;
  try {
    const table = await DeltaTable.open(store, root, duck, options);
    if (table !== undefined) return { kind: "readable", table };
    await requireNoFiles({ store, root, duck });
    return { kind: "absent" };
  } catch (error) {
    reason = error;
  }
  let version: number | undefined;
  for await (const { key } of store.list(`${root}/_delta_log/`)) {
    const found = /\/(\d{20})\.json$/.exec(key);
    if (found !== null) version = Number(found[1]);
  }
  if (version === undefined) return { kind: "unreadable", reason };
  try {
    const table = await DeltaTable.open(withoutCommit(store, root, version), root, duck, options);
    if (table !== undefined) return { kind: "newest", table, version, reason };
  } catch {
    // Then it is not that one alone.
  }
  return { kind: "unreadable", reason };
}

/**
 * The store as if one commit were not there. The commit that is put in its place replaces it in one step: whoever has
 * believed the version must not find it gone, or the next one would leave a hole.
 */
function withoutCommit(store: ObjectStore, root: string, version: number): ObjectStore {
  const hidden = commitKey(root, version);
  let replaced = false;
  const isHidden = (key: string) => key === hidden && !replaced;
  return {
    staging: store.staging,
    leaseBytes: store.leaseBytes,
    get: async (key) => (isHidden(key) ? undefined : store.get(key)),
    getRange: (key, start, end) => store.getRange(key, start, end),
    stat: (key) => store.stat(key),
    put: (key, bytes) => store.put(key, bytes),
    putIfAbsent: async (key, bytes) => {
      if (!isHidden(key)) return store.putIfAbsent(key, bytes);
      const damaged = await store.get(key);
      if (damaged !== undefined) await store.put(`${root}/_damaged/${version}-${Date.now()}.json`, damaged);
      await store.put(key, bytes);
      replaced = true;
      return "created";
    },
    adopt: (files) => store.adopt(files),
    withLocal: (keys, use, options) => store.withLocal(keys, use, options),
    async *list(prefix, startAfter) {
      for await (const object of store.list(prefix, startAfter)) if (!isHidden(object.key)) yield object;
    },
    confirm: (keys) => store.confirm(keys),
    presignPut: (key, content, lifeMs) => store.presignPut(key, content, lifeMs),
    delete: (keys) => store.delete(keys),
  };
}

export interface Inventory {
  /** Live files that are not there. */
  readonly missing: readonly TableFile[];
  /** Keys of data files in the table's folder that no live file is: of commits that failed, or removed since. */
  readonly strays: readonly string[];
}

export async function takeInventory(table: DeltaTable, snapshot: TableSnapshot): Promise<Inventory> {
  const { store, root } = table;
  const live = new Map(snapshot.files.map((file) => [`${root}/${file.path}`, file]));
  const strays: string[] = [];
  for await (const { key } of store.list(`${root}/`)) {
    if (live.delete(key)) continue;
    const name = key.slice(root.length + 1);
    if (name.endsWith(".parquet") && !/^(_|rebuilt-)/.test(name)) strays.push(key);
  }
  return { missing: [...live.values()], strays };
}

/** Takes a table's log away, keeping a copy, newest first: what a crash leaves is an older version of the table. */
export async function setLogAside(store: ObjectStore, root: string): Promise<void> {
  const aside = `${root}/_damaged/log-${Date.now()}/`;
  const keys: string[] = [];
  for await (const { key } of store.list(`${root}/_delta_log/`)) {
    keys.push(key);
    const bytes = await store.get(key);
    if (bytes !== undefined) await store.put(aside + key.slice(key.lastIndexOf("/") + 1), bytes);
  }
  const isLog = (key: string) => /\/\d{20}\.json$/.test(key);
  // Log checkpoints and their pointer first: they would tell of commits that are gone.
  await store.delete(keys.filter((key) => !isLog(key)));
  for (const key of keys.filter(isLog).reverse()) await store.delete([key]);
}
