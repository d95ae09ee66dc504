import type { Command } from "commander";
import { Registry } from "prom-client";
import type { Config } from "../../base/config.js";
import type { IngestContext } from "../../ingest/context.js";
import { openContext } from "../../ingest/ingest.js";
import { type LetterFilter, redrive, type StoredLetter, storedLetters } from "../../ingest/redrive.js";
import { openLog, openReader, openStore } from "../runtime.js";
import { textTable } from "../text-table.js";
import { configOf, type DataOptions, withData } from "./options.js";

interface Options extends DataOptions, LetterFilter {
  readonly dryRun?: boolean;
}

export function addDeadLetterCommands(program: Command): void {
  const group = program.command("deadletter").description("events that could not be taken in");
  filtered(group.command("ls"))
    .description("list them: where from, why")
    .action(async (options: Options) => {
      await withContext(configOf(options), async (context) => {
        const letters = await storedLetters(context, options);
        if (options.json) console.log(JSON.stringify({ deadLetters: letters.map(summary) }));
        else if (letters.length === 0) console.log("no dead letters");
        else console.log(lettersTable(letters));
      });
    });
  filtered(group.command("redrive"))
    .description("apply them again, after the model or the descriptor was mended")
    .option("--dry-run", "say what would be applied, change nothing")
    .action(async (options: Options) => {
      await withContext(configOf(options), async (context) => {
        const letters = await storedLetters(context, options);
        if (options.dryRun) {
          if (options.json) console.log(JSON.stringify({ dryRun: true, wouldApply: letters.map(summary) }));
          else console.log(`would apply ${letters.length}:\n${lettersTable(letters)}`);
          return;
        }
        const { applied, failed } = await redrive(context, letters);
        const still = failed.map(({ letter, reason }) => ({ ...summary(letter), reason }));
        if (options.json) console.log(JSON.stringify({ applied, failed: still }));
        else {
          console.log(`applied ${applied}, failed again ${failed.length}`);
          for (const { partition, position, reason } of still)
            console.log(`  ${partition}/${position}: ${reason}`);
        }
        if (failed.length > 0) process.exitCode = 1;
      });
    });
}

const filtered = (command: Command): Command =>
  withData(command)
    .option("--model <name>", "only letters of this model, e.g. scm.files")
    .option("--code <code>", "only letters with this code");

const summary = ({ file: _, event, row: __, ...letter }: StoredLetter) => ({
  ...letter,
  bytes: event.length,
});

function lettersTable(letters: readonly StoredLetter[]): string {
  return textTable(
    ["model", "code", "tenant", "entity", "partition", "position", "reason"],
    letters.map((letter) => [
      letter.model,
      letter.code,
      letter.tenantId ?? "",
      letter.entityId ?? "",
      letter.partition,
      letter.position,
      letter.reason.slice(0, 60),
    ]),
  );
}

async function withContext(config: Config, use: (context: IngestContext) => Promise<void>): Promise<void> {
  const reader = await openReader(config);
  const store = await openStore(config, `cli-${process.pid}`);
  const context = await openContext({
    config,
    store,
    stream: reader.name,
    log: openLog(config),
    registry: new Registry(),
  });
  try {
    await use(context);
  } finally {
    context.duck.close();
    await reader.close();
  }
}
