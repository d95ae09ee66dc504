import type { Command } from "commander";
import { loadConfig } from "../../base/config.js";
import { copyLake, type LakeCopied, type LakeCopyProgress } from "../../operate/lake-copy.js";
import { readingDuck, withNewStore, withStore } from "../compose/runtime.js";
import { ProgressBar } from "../terminal/progress-bar.js";
import { textTable } from "../terminal/text-table.js";
import { configOf, type DataOptions, withData } from "./options.js";
import { stopSignal } from "./stop-signal.js";

interface CopyOptions extends DataOptions {
  readonly to: string;
  readonly close?: boolean;
}

export function addLakeCommands(program: Command): void {
  const group = program.command("lake").description("the lake as a whole");
  withData(group.command("copy"))
    .description("copy it elsewhere while it is written and read; stopped, it goes on where it was")
    .requiredOption("--to <file>", "configuration of the lake to copy to")
    .option("--close", "close this one for good, copy the rest, and read back all of it")
    .action(async (options: CopyOptions) => {
      const copied = await copy(options);
      if (options.json) console.log(JSON.stringify(copied));
      else show(copied);
    });
}

async function copy({ to, close = false, ...options }: CopyOptions): Promise<LakeCopied> {
  // The variables are this lake's.
  const destination = loadConfig({}, { file: to, env: {} });
  const bars = new Map<string, ProgressBar>();
  const progress = ({ step, bytes, ofBytes }: LakeCopyProgress) => {
    const bar = bars.get(step) ?? new ProgressBar(process.stderr, step, "bytes");
    bars.set(step, bar);
    bar.update({ count: bytes, fraction: ofBytes === 0 ? 1 : bytes / ofBytes });
  };
  const duck = await readingDuck();
  try {
    return await withStore(configOf(options), (source) =>
      withNewStore(destination, (target) =>
        copyLake({ source, target, duck, close, progress, signal: stopSignal() }),
      ),
    );
  } finally {
    for (const bar of bars.values()) bar.end();
    duck.close();
  }
}

function show({ tables, objects, bytes, closed }: LakeCopied): void {
  const rows = tables.map(({ root, version, verified }) => [root, version, closed ? verified : null]);
  console.log(textTable(["table", "version", "files read back"], rows));
  console.log(`\ncopied ${objects} objects, ${bytes} bytes`);
  console.log(
    closed
      ? "this lake is closed: restart the bus, then start ingest and query, with the other configuration"
      : "writers went on meanwhile: copy again as often as you like, the last time with --close",
  );
}
