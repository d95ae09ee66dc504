import { setTimeout as sleep } from "node:timers/promises";
import type { Command } from "commander";
import type { Config } from "../../base/config.js";
import { TributaryError } from "../../base/errors.js";
import { layout } from "../../base/paths.js";
import { CONSUMER } from "../../ingest/pipeline.js";
import type { ChangeStreamReader } from "../../stream/change-stream.js";
import { closeLog } from "../../stream/embedded/closing.js";
import { EmbeddedLogReader } from "../../stream/embedded/reader.js";
import { ProgressBar } from "../terminal/progress-bar.js";
import { configOf, type DataOptions, withData } from "./options.js";
import { stopSignal } from "./stop-signal.js";

const LOOK_MS = 200;
/** Without progress for so long, somebody is missing. */
const IDLE_MS = 5_000;

export function addStreamCommands(program: Command): void {
  const group = program.command("stream").description("the stream of change events");
  withData(group.command("move"))
    .description("close the embedded log for good and wait until all of it is in the lake")
    .action(async (options: DataOptions) => {
      const events = await move(configOf(options));
      if (options.json) console.log(JSON.stringify({ closed: true, landed: events }));
      else console.log(`the log is closed; all of its ${events} events are in the lake`);
    });
}

/** Resolves to the events that the log has had. Errors: TRB-CLI-USAGE, TRB-STREAM-LOCKED. */
async function move({ data, stream }: Config): Promise<number> {
  if (stream.kind !== "embedded") {
    throw new TributaryError("TRB-CLI-USAGE", `stream.kind: expected embedded, found ${stream.kind}`);
  }
  const { folder, ...settings } = { folder: layout(data).stream, ...stream };
  // It must be there: a log that is made here would be closed and nothing else.
  const reader = await EmbeddedLogReader.open({ folder });
  try {
    await closeLog({ folder, partitions: settings.partitions, segmentBytes: settings.segmentBytes });
    return await drained(reader, stopSignal());
  } finally {
    await reader.close();
  }
}

async function drained(reader: ChangeStreamReader, signal: AbortSignal): Promise<number> {
  const bar = new ProgressBar(process.stderr, "landing", "events");
  const total = count(await reader.head());
  const first = count(await reader.lowWater(CONSUMER));
  let before = -1;
  let since = performance.now();
  let told = false;
  for (;;) {
    const done = count(await reader.lowWater(CONSUMER));
    bar.update({ count: done - first, fraction: total === first ? 1 : (done - first) / (total - first) });
    if (done === total) break;
    if (done !== before) {
      before = done;
      since = performance.now();
    } else if (performance.now() - since > IDLE_MS && !told) {
      told = true;
      console.error("nothing lands: is `tributary ingest` running with this configuration?");
    }
    await sleep(LOOK_MS, undefined, { signal });
  }
  bar.end();
  return total;
}

/** The embedded log's positions count the events of their partition. */
const count = (positions: ReadonlyMap<string, string>): number =>
  [...positions.values()].reduce((sum, position) => sum + Number(position), 0);
