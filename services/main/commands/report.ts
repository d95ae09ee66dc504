import { CommanderError } from "commander";
import { CODES } from "../../base/codes.js";
import { TributaryError } from "../../base/errors.js";
import { printable } from "../../base/in-words.js";

/** What a command ends with; 130 is a command that was stopped and says so by itself. */
export const EXIT = { done: 0, failed: 1, usage: 2 } as const;

/** A failure whose place is shown to people as it stands in `shown`, instead of its details in JSON. */
export class ShownFailure extends TributaryError {
  readonly shown: string;

  constructor(failure: TributaryError, shown: string) {
    const { code, message, details } = failure;
    super(code, message, { cause: failure, ...(details === undefined ? {} : { details }) });
    this.shown = shown;
  }
}

/** Prints what went wrong to standard error, as the error body where --json was asked for. Returns the exit code. */
export function reportFailure(error: unknown, json: boolean): number {
  if (error instanceof CommanderError) {
    // Help and version end this way too.
    if (error.exitCode === 0) return EXIT.done;
    // To people commander has spoken already.
    if (json) console.error(JSON.stringify(usageOf(error).toBody()));
    return EXIT.usage;
  }
  const known = error instanceof TributaryError ? error : undefined;
  if (json)
    console.error(JSON.stringify((known ?? new TributaryError("TRB-INTERNAL", String(error))).toBody()));
  else if (known === undefined) console.error(error);
  else console.error(inWords(known));
  return known?.code === "TRB-CLI-USAGE" ? EXIT.usage : EXIT.failed;
}

function usageOf({ code, message }: CommanderError): TributaryError {
  const text = code === "commander.help" ? "expected a command" : message.replace(/^error: /, "");
  return new TributaryError("TRB-CLI-USAGE", text);
}

function inWords(error: TributaryError): string {
  const lines = [`${error.code}: ${printable(error.message)}`];
  if (error instanceof ShownFailure) lines.push(error.shown);
  else if (error.details !== undefined) lines.push(`  ${printable(JSON.stringify(error.details))}`);
  return [...lines, `  ${CODES[error.code].remedy}`].join("\n");
}
