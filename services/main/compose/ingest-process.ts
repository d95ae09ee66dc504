import { rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Registry } from "prom-client";
import type { Config } from "../../base/config.js";
import { TributaryError } from "../../base/errors.js";
import { layout } from "../../base/paths.js";
import type { ProcessLock } from "../../base/process-lock.js";
import { type Ingest, openContext, startIngest } from "../../ingest/ingest.js";
import { lockData, openLog, openReader, openStore } from "./runtime.js";

const LOCK_WAIT_MS = 10_000;
const LOCK_RETRY_MS = 100;

export interface RunningIngest extends Ingest {
  readonly metrics: Registry;
}

/** Ingest on one data folder; one process at a time, the next waits a little for the last one to end. */
export async function runIngest(config: Config): Promise<RunningIngest> {
  const log = openLog(config);
  const lock = await waitForLock(config);
  try {
    // Files of a run that was killed; nobody else stages here while the lock is held.
    await rm(join(layout(config.data).scratch, "ingest"), { recursive: true, force: true });
    const store = await openStore(config, "ingest");
    const reader = await openReader(config);
    const metrics = new Registry();
    const context = await openContext({ config, store, stream: reader.name, log, registry: metrics });
    const ingest = await startIngest(context, reader);
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

async function waitForLock(config: Config): Promise<ProcessLock> {
  for (const until = Date.now() + LOCK_WAIT_MS; ; ) {
    try {
      return await lockData(config, "ingest");
    } catch (error) {
      const held = error instanceof TributaryError && error.code === "TRB-STREAM-LOCKED";
      if (!held || Date.now() > until) throw error;
      await sleep(LOCK_RETRY_MS);
    }
  }
}
