import type { Command } from "commander";
import { ProgressBar } from "../progress-bar.js";
import { type PublishSummary, publishFile } from "../publish.js";
import { type ClientOptions, wholeNumber, withClient } from "./options.js";

interface PublishCommandOptions extends ClientOptions {
  readonly batch: number;
  readonly concurrency: number;
  readonly resume: boolean;
  readonly resumeFile?: string;
}

export function addPublishCommand(program: Command): void {
  withClient(program.command("publish").argument("<file>", "NDJSON, plain or gzip; - for standard input"))
    .description("publish change events; exit code 0 when every one was accepted")
    .option("--batch <n>", "events a request", wholeNumber, 500)
    .option("--concurrency <n>", "requests in flight", wholeNumber, 4)
    .option("--no-resume", "start over instead of going on where an earlier run was stopped")
    .option("--resume-file <file>", "where the resume point is kept (default: beside the file)")
    .action(async (file: string, options: PublishCommandOptions) => {
      const stop = new AbortController();
      for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => stop.abort());
      const bar = new ProgressBar(process.stderr, "publishing");
      const summary = await publishFile({
        ...options,
        input: file,
        signal: stop.signal,
        onProgress: ({ bytes, totalBytes, events }) =>
          bar.update({ fraction: totalBytes === undefined ? undefined : bytes / totalBytes, count: events }),
      });
      bar.end();
      report(summary, options.json === true);
      if (summary.rejected > 0 || summary.interrupted || summary.failure !== undefined) process.exitCode = 1;
      if (summary.failure !== undefined) throw summary.failure;
    });
}

function report({ failure: _, ...summary }: PublishSummary, json: boolean): void {
  if (json) {
    console.log(JSON.stringify(summary));
    return;
  }
  const { accepted, rejected, elapsedMs, eventsPerSecond, rejections, interrupted, resumedAfterLines } =
    summary;
  if (resumedAfterLines > 0) console.log(`resumed after line ${resumedAfterLines}`);
  console.log(
    `accepted ${accepted}, rejected ${rejected}, in ${(elapsedMs / 1000).toFixed(1)} s (${Math.round(eventsPerSecond)} events/s)`,
  );
  for (const { line, code, message } of rejections) console.log(`  line ${line}: ${code} ${message}`);
  if (interrupted) console.log("stopped early; the same command goes on from here");
}
