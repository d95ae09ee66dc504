import { CODES } from "../../base/codes.js";
import { duration, grouped, printable } from "../../base/in-words.js";
import { ProgressBar, type ProgressStream } from "../terminal/progress-bar.js";
import { textTable } from "../terminal/text-table.js";
import { type PublishOptions, type PublishSummary, publishFile } from "./publish.js";

/** Where a command speaks: answers to `out`, what goes on meanwhile to `err`. */
export interface Console {
  readonly out: { write(text: string): unknown };
  readonly err: ProgressStream;
}

/**
 * `tributary publish`: publishes with a progress bar and tells what became of it; with `json` as one JSON object.
 * Resolves to the exit code: 0 when every event was accepted, 130 when it was stopped, 1 otherwise.
 * Errors: those of publishFile.
 */
export async function runPublish(
  options: PublishOptions & { readonly json?: boolean },
  { out, err }: Console = { out: process.stdout, err: process.stderr },
): Promise<number> {
  const bar = options.json ? undefined : new ProgressBar(err, "publishing");
  const summary = await publishFile({
    ...options,
    onProgress: (progress) => {
      const { bytes, totalBytes, events } = progress;
      bar?.update({ count: events, fraction: totalBytes === undefined ? undefined : bytes / totalBytes });
      options.onProgress?.(progress);
    },
  });
  bar?.end();
  if (options.json) out.write(`${JSON.stringify(asJson(summary))}\n`);
  else tell(summary, out, err);
  if (summary.interrupted) return 130;
  return summary.failure === undefined && summary.rejected === 0 ? 0 : 1;
}

function tell(summary: PublishSummary, out: Console["out"], err: Console["err"]): void {
  const { accepted, rejected, rejections, failure, resumedAfterLines, interrupted } = summary;
  const resumed = resumedAfterLines > 0 ? `, going on after line ${grouped(resumedAfterLines)}` : "";
  const time = `${duration(summary.elapsedMs)}, ${grouped(summary.eventsPerSecond)} events/s${resumed}`;
  out.write(`${grouped(accepted)} accepted, ${grouped(rejected)} rejected (${time})\n`);
  if (rejections.length > 0) {
    const rows = rejections.map(({ line, code, message }) => [line, code, message]);
    out.write(`${textTable(["line", "code", "message"], rows, { maxWidth: 100 })}\n`);
    if (rejected > rejections.length) out.write(`… ${grouped(rejected - rejections.length)} more\n`);
  }
  if (failure !== undefined) {
    err.write(`${failure.code}: ${printable(failure.message)}\n  ${CODES[failure.code].remedy}\n`);
  } else if (interrupted) err.write("stopped\n");
  if (summary.resumeFile !== undefined) err.write("The same command again goes on from here.\n");
}

function asJson({ failure, ...rest }: PublishSummary): object {
  return { ...rest, ...(failure === undefined ? {} : failure.toBody()) };
}
