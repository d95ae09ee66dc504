#!/usr/bin/env node
import { errno } from "../base/errors.js";
import { runProgram } from "./commands/program.js";

// Who reads the answer may have seen enough (`| head`): that is no failure of the command.
process.stdout.on("error", (error) => {
  if (errno(error) !== "EPIPE") throw error;
  process.exit();
});

process.exitCode = await runProgram(process.argv.slice(2));
