import { rmSync } from "node:fs";
import { afterAll } from "vitest";
import { Duck } from "../../services/base/duckdb.js";
import type { ObjectStore } from "../../services/storage/object-store.js";
import type { Action } from "../../services/table/actions.js";
import type { DeltaTable } from "../../services/table/delta-table.js";
import { fileStore, temporaryFolder } from "./lake.js";

/** No log checkpoints of their own accord. */
export const NEVER = { checkpointEvery: 1_000_000 };

export interface Workbench {
  readonly folder: string;
  readonly store: ObjectStore;
  readonly duck: Duck;
  /** A place for a table where none is. */
  freshRoot(): string;
}

/** What the tests of one file make tables with; gone after them. */
export async function openWorkbench(): Promise<Workbench> {
  const folder = temporaryFolder();
  const duck = await Duck.create({ memoryBytes: 256 * 1024 * 1024 });
  afterAll(() => {
    duck.close();
    rmSync(folder, { recursive: true, force: true });
  });
  let roots = 0;
  return { folder, store: await fileStore(folder), duck, freshRoot: () => `tables/${++roots}` };
}

/** A commit that moves no positions. */
export const commit = (
  table: DeltaTable,
  actions: readonly Action[],
  { serializable = false }: { readonly serializable?: boolean } = {},
) =>
  table.commit({
    operation: "WRITE",
    actions,
    expect: new Map(),
    basedOn: table.snapshot.version,
    serializable,
  });
