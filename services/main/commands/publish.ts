import type { Command } from "commander";
import { runPublish } from "../client/publish-report.js";
import { type ClientOptions, positiveNumber, withClient } from "./options.js";
import { stopSignal } from "./stop-signal.js";

interface PublishCommandOptions extends ClientOptions {
  readonly batch: number;
  readonly concurrency: number;
  readonly resume: boolean;
  readonly resumeFile?: string;
}

export function addPublishCommand(program: Command): void {
  withClient(program.command("publish").argument("<file>", "NDJSON, plain or gzip; - for standard input"))
    .description("publish change events; exit code 0 when every one was accepted")
    .option("--batch <n>", "events a request", positiveNumber, 500)
    .option("--concurrency <n>", "requests in flight", positiveNumber, 4)
    .option("--no-resume", "start over instead of going on where an earlier run was stopped")
    .option("--resume-file <file>", "where the resume point is kept (default: beside the file)")
    .action(async (file: string, options: PublishCommandOptions) => {
      process.exitCode = await runPublish({ ...options, input: file, signal: stopSignal() });
    });
}
