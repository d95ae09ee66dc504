#!/usr/bin/env node
import { errno } from "../base/errors.js";
import { runProgram } from "./commands/program.js";

// Who reads the answer may have seen enough (`| head`): that is no failure of the command.
process.stdout.on("error", (error) => {
  if (errno(error) !== "EPIPE") throw error;
  process.exit();
});

// AWS's SDK warns at each start that its coming versions want another Node. This one is pinned, which is our business.
process.env.AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED ??= "true";

process.exitCode = await runProgram(process.argv.slice(2));
