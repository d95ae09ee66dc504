import type { Config } from "../services/base/config.js";
import { rawRoot } from "../services/ingest/raw-table.js";
import { refinedRoot } from "../services/ingest/refined-table.js";
import { readingDuck, withStore } from "../services/main/compose/runtime.js";
import { loadModels } from "../services/models/project.js";
import { DeltaTable } from "../services/table/delta-table.js";
import { progressOf } from "../services/table/progress.js";

/** Whether every model has taken in all that its raw table has, as the tables themselves say. */
export async function refinedInStep(config: Config): Promise<boolean> {
  const duck = await readingDuck();
  try {
    return await withStore(config, async (store) => {
      const open = (root: string) => DeltaTable.open(store, root, duck, config.table);
      for (const model of loadModels(config.transformsDir)) {
        const raw = await open(rawRoot(model.entityType));
        if (raw === undefined) continue;
        const refined = await open(refinedRoot(model));
        const reached = progressOf(refined?.snapshot ?? { domains: new Map() });
        for (const [track, position] of progressOf(raw.snapshot)) {
          if (reached.get(track) !== position) return false;
        }
      }
      return true;
    });
  } finally {
    duck.close();
  }
}
