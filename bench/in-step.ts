import type { Config } from "../services/base/config.js";
import { rawRoot } from "../services/ingest/raw-table.js";
import { refinedRoot } from "../services/ingest/refined-table.js";
import { readingDuck, withStore } from "../services/main/compose/runtime.js";
import { loadModels } from "../services/models/project.js";
import { DeltaTable } from "../services/table/delta-table.js";
import { progressOf } from "../services/table/progress.js";

/** Gives `use` a look at whether every model has taken in all that its raw table has, as the tables themselves say. */
export async function withRefined<T>(
  config: Config,
  use: (inStep: () => Promise<boolean>) => Promise<T>,
): Promise<T> {
  const duck = await readingDuck();
  const models = loadModels(config.transformsDir);
  const tables = new Map<string, DeltaTable>();
  try {
    return await withStore(config, async (store) => {
      const reached = async (root: string) => {
        const known = tables.get(root);
        const table = known ?? (await DeltaTable.open(store, root, duck, config.table));
        if (table === undefined) return undefined;
        tables.set(root, table);
        return progressOf(known === undefined ? table.snapshot : await table.refresh());
      };
      return use(async () => {
        for (const model of models) {
          const raw = await reached(rawRoot(model.entityType));
          if (raw === undefined) continue;
          const refined = await reached(refinedRoot(model));
          for (const [track, position] of raw) if (refined?.get(track) !== position) return false;
        }
        return true;
      });
    });
  } finally {
    duck.close();
  }
}
