import { readdir, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { Registry } from "prom-client";
import type { Config } from "../../base/config.js";
import { checkData } from "../../base/data-format.js";
import { nodeFiles } from "../../base/files.js";
import { layout } from "../../base/paths.js";
import { waitForLock } from "../../base/process-lock.js";
import { type Ingest, openContext, startIngest } from "../../ingest/ingest.js";
import type { Project } from "../../ingest/project.js";
import { cachesIn } from "../../storage/object-cache.js";
import { openStore } from "./lake-store.js";
import { lockData, openLog, openReader } from "./runtime.js";

const LOCK_WAIT_MS = 10_000;
const DAY_MS = 24 * 3600 * 1000;

export interface RunningIngest extends Ingest {
  readonly metrics: Registry;
}

/**
 * Ingest on one data folder; one process at a time, the next waits a little for the last one to end.
 * Errors: TRB-DATA-VERSION, TRB-STREAM-LOCKED, TRB-CONFIG.
 */
export async function runIngest(config: Config, project: Project): Promise<RunningIngest> {
  const log = openLog(config);
  const lock = await waitForLock(LOCK_WAIT_MS, () => lockData(config, "ingest"));
  try {
    // A server that goes on running may start ingest long after a newer version has taken the folder over.
    await checkData(nodeFiles, config.data);
    await cleanUp(config);
    const metrics = new Registry();
    const store = await openStore(config, "ingest", metrics);
    const reader = await openReader(config, metrics);
    const context = await openContext({
      config,
      store,
      stream: reader.name,
      log,
      registry: metrics,
      project,
    });
    const ingest = startIngest(context, reader);
    const done = ingest.done.finally(async () => {
      await reader.close();
      await lock.release();
    });
    return { ...ingest, done, metrics };
  } catch (error) {
    await lock.release();
    throw error;
  }
}

/** Removes files of a run that was killed; nobody else stages or spills here while the lock is held. */
async function cleanUp(config: Config): Promise<void> {
  const { staging, scratch, cache } = layout(config.data);
  await rm(join(staging, "ingest"), { recursive: true, force: true });
  // A scratch disk that is full or gone stops only what has to spill.
  await rm(join(scratch, "ingest"), { recursive: true, force: true }).catch(() => undefined);
  // What commands left that were killed; none of them takes a day.
  for (const above of [staging, cachesIn(cache)]) {
    for (const name of await readdir(above).catch(() => [])) {
      const folder = join(above, name);
      const touched = name.startsWith("cli-") ? (await stat(folder)).mtimeMs : Number.POSITIVE_INFINITY;
      if (touched < Date.now() - DAY_MS) await rm(folder, { recursive: true, force: true });
    }
  }
}
