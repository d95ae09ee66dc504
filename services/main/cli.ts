#!/usr/bin/env node
import { Command, CommanderError } from "commander";
import { CODES } from "../base/codes.js";
import { TributaryError } from "../base/errors.js";
import { addDeadLetterCommands } from "./commands/dead-letters.js";
import { addDemoCommand } from "./commands/demo.js";
import { addModelCommands } from "./commands/models.js";
import { addPublishCommand } from "./commands/publish.js";
import { addServerCommands } from "./commands/servers.js";
import { addSqlCommand } from "./commands/sql.js";
import { addTableCommands } from "./commands/tables.js";
import { addTokenCommand } from "./commands/token.js";
import { printable } from "./terminal/text-table.js";

const program = new Command("tributary")
  .description("A replication bus and customer data lake.")
  .version("0.1.0")
  .showHelpAfterError("(see --help)")
  .exitOverride();

addServerCommands(program);
addPublishCommand(program);
addSqlCommand(program);
addTokenCommand(program);
addTableCommands(program);
addModelCommands(program);
addDeadLetterCommands(program);
addDemoCommand(program);

try {
  await program.parseAsync();
} catch (error) {
  process.exitCode = report(error);
}

/** Prints what went wrong, as JSON where --json was asked for; returns the exit code. */
function report(error: unknown): number {
  if (error instanceof CommanderError) {
    // Help and version end this way too, with exit code 0.
    return error.exitCode === 0 ? 0 : 2;
  }
  const known = error instanceof TributaryError ? error : undefined;
  if (process.argv.includes("--json")) {
    const body = known?.toBody() ?? { error: { code: "TRB-INTERNAL", message: String(error) } };
    console.error(JSON.stringify(body));
  } else if (known !== undefined) {
    console.error(`${known.code}: ${printable(known.message)}`);
    // The place in the SQL, the request id.
    if (known.details !== undefined) console.error(`  ${printable(JSON.stringify(known.details))}`);
    console.error(`  ${CODES[known.code].remedy}`);
  } else {
    console.error(error);
  }
  return known?.code === "TRB-CLI-USAGE" ? 2 : 1;
}
