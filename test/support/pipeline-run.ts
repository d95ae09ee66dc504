import { setTimeout as sleep } from "node:timers/promises";
import { TributaryError } from "../../services/base/errors.js";
import { Pipeline } from "../../services/ingest/pipeline.js";
import { overriding } from "./faulty-store.js";
import { encodeTestEvent, Lake, type LakeOptions, type TestEvent, THING } from "./lake.js";
import type { MemoryReader } from "./memory-reader.js";

/** A whole pipeline over a lake in a temporary folder and a stream in memory. */

const RAW_LOG = `raw/${THING}/_delta_log/`;
const INGEST = { lingerMs: 1, commitsPerSecond: 1000 };

export const pipelineLake = (options: LakeOptions): Promise<Lake> =>
  Lake.create({ ...options, ingest: { ...INGEST, ...options.ingest } });

/** A pipeline that runs until `stop`, which resolves when it has ended. `done` tells how. */
export function startPipeline(lake: Lake, reader: MemoryReader) {
  lake.context.health.start();
  const pipeline = new Pipeline(lake.context, reader);
  const done = pipeline.run();
  done.catch(() => undefined);
  const stop = async () => {
    pipeline.stop();
    await done;
  };
  return { pipeline, stop, done };
}

export function publishTo(reader: MemoryReader, events: readonly TestEvent[]): string[] {
  return events.map(
    (event) => `${reader.name}/${reader.append(event.id.length % 3, encodeTestEvent(event))}`,
  );
}

export async function until(
  what: string,
  check: () => boolean | Promise<boolean>,
  ms = 20_000,
): Promise<void> {
  const end = performance.now() + ms;
  while (!(await check())) {
    if (performance.now() > end) throw new Error(`timed out: ${what}`);
    await sleep(5);
  }
}

/** A store whose raw commits fail while `down`. */
export function breakable(state: { down: boolean }): NonNullable<LakeOptions["store"]> {
  return (inner) =>
    overriding(inner, {
      putIfAbsent: async (key, bytes) => {
        if (state.down && key.startsWith(RAW_LOG))
          throw new TributaryError("TRB-STORE-FAILED", "a test's fault");
        return inner.putIfAbsent(key, bytes);
      },
    });
}
