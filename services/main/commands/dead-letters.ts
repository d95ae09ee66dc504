import type { Command } from "commander";
import { Registry } from "prom-client";
import type { Config } from "../../base/config.js";
import { DEAD_LETTERS_ROOT } from "../../ingest/dead-letters.js";
import { openContext } from "../../ingest/ingest.js";
import {
  type LetterFilter,
  type Redriven,
  redrive,
  type StoredLetter,
  storedLetters,
} from "../../ingest/redrive.js";
import { DeltaTable } from "../../table/delta-table.js";
import { openLog, readingDuck, withStore } from "../compose/runtime.js";
import { textTable } from "../terminal/text-table.js";
import { configOf, type DataOptions, withData } from "./options.js";

interface Options extends DataOptions, LetterFilter {
  readonly dryRun?: boolean;
}

export function addDeadLetterCommands(program: Command): void {
  const group = program.command("deadletter").description("events that could not be taken in");
  filtered(group.command("ls"))
    .description("list them: where from, why")
    .action(async (options: Options) => {
      const letters = await lettersOf(options);
      if (options.json) console.log(JSON.stringify({ deadLetters: letters.map(summary) }));
      else if (letters.length === 0) console.log("no dead letters");
      else console.log(lettersTable(letters));
    });
  filtered(group.command("redrive"))
    .description("apply them again, after the model or the descriptor was mended")
    .option("--dry-run", "say what would be applied, change nothing")
    .action(async (options: Options) => {
      const letters = await lettersOf(options);
      if (options.dryRun) {
        if (options.json) console.log(JSON.stringify({ dryRun: true, wouldApply: letters.map(summary) }));
        else console.log(`would apply ${letters.length}:\n${lettersTable(letters)}`);
        return;
      }
      const { applied, failed } = await apply(configOf(options), letters);
      const still = failed.map(({ letter, reason }) => ({ ...summary(letter), reason }));
      if (options.json) console.log(JSON.stringify({ applied, failed: still }));
      else {
        console.log(`applied ${applied}, failed again ${failed.length}`);
        for (const { partition, position, reason } of still)
          console.log(`  ${partition}/${position}: ${reason}`);
      }
      if (failed.length > 0) process.exitCode = 1;
    });
}

const filtered = (command: Command): Command =>
  withData(command)
    .option("--model <name>", "only letters of this model, e.g. scm.files")
    .option("--code <code>", "only letters with this code");

const summary = ({ event, stream: _, ...letter }: StoredLetter) => ({
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

/** Reads the letters alone: neither a model that is broken nor a lake without letters is in the way. */
function lettersOf(options: Options): Promise<StoredLetter[]> {
  const config = configOf(options);
  return withStore(config, async (store) => {
    const duck = await readingDuck();
    try {
      const table = await DeltaTable.open(store, DEAD_LETTERS_ROOT, duck, {
        checkpointEvery: config.table.checkpointEvery,
      });
      return table === undefined ? [] : await storedLetters({ deadLetters: { table } }, options);
    } finally {
      duck.close();
    }
  });
}

/** Letters say which stream they came by; it need not be there any more. */
function apply(config: Config, letters: readonly StoredLetter[]): Promise<Redriven> {
  return withStore(config, async (store) => {
    const context = await openContext({ config, store, log: openLog(config), registry: new Registry() });
    try {
      return await redrive(context, letters);
    } finally {
      context.duck.close();
    }
  });
}
