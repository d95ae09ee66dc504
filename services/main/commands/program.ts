import { Command } from "commander";
import { packageVersion } from "../../base/paths.js";
import { addAuditCommand } from "./audit.js";
import { addBootstrapCommands } from "./bootstrap.js";
import { addDeadLetterCommands } from "./dead-letters.js";
import { addDemoCommand } from "./demo.js";
import { addLakeCommands } from "./lake.js";
import { addModelCommands } from "./models.js";
import { addPublishCommand } from "./publish.js";
import { addRawCommands } from "./raw.js";
import { addRepairCommand } from "./repair.js";
import { addReplayCommand } from "./replay.js";
import { reportFailure } from "./report.js";
import { addServerCommands } from "./servers.js";
import { addSqlCommand } from "./sql.js";
import { addStreamCommands } from "./stream.js";
import { addTableCommands } from "./tables.js";
import { addTailCommand } from "./tail.js";
import { addTokenCommand } from "./token.js";

/** Runs one command line, without the program's own name. Resolves to the exit code; never throws. */
export async function runProgram(args: readonly string[]): Promise<number> {
  const end = args.indexOf("--");
  const json = args.slice(0, end < 0 ? args.length : end).includes("--json");
  process.exitCode = undefined;
  try {
    await program(json).parseAsync(args, { from: "user" });
    return Number(process.exitCode ?? 0);
  } catch (error) {
    return reportFailure(error, json);
  }
}

function program(json: boolean): Command {
  const quiet = () => undefined;
  const root = new Command("tributary")
    .description("A replication bus and customer data lake.")
    .version(packageVersion)
    .showHelpAfterError("(see --help)")
    .addHelpText("after", "\nExit codes: 0 done, 1 failed, 2 wrong command line, 130 stopped by a signal.")
    // With --json, standard error holds the one error body and nothing else.
    .configureOutput(json ? { writeErr: quiet, outputError: quiet } : {})
    .exitOverride();
  addServerCommands(root);
  addPublishCommand(root);
  addSqlCommand(root);
  addTailCommand(root);
  addTokenCommand(root);
  addTableCommands(root);
  addLakeCommands(root);
  addStreamCommands(root);
  addRawCommands(root);
  addReplayCommand(root);
  addRepairCommand(root);
  addModelCommands(root);
  addDeadLetterCommands(root);
  addBootstrapCommands(root);
  addAuditCommand(root);
  addDemoCommand(root);
  return root;
}
