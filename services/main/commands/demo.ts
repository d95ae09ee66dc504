import { type Command, Option } from "commander";
import { loadConfig } from "../../base/config.js";
import { startServer } from "../compose/server.js";
import { type DemoOptions, runDemo } from "../demo/demo.js";
import { portNumber, positiveNumber } from "./options.js";
import { stopSignal } from "./stop-signal.js";

type DemoCommandOptions = Pick<DemoOptions, "repo" | "domain" | "events" | "exit" | "port" | "data" | "json">;

export function addDemoCommand(program: Command): void {
  program
    .command("demo")
    .description("the whole stack on real input: publish a git history, ask, compare with git")
    .option("--repo <path>", "a git repository (default: the one it stands in)")
    .addOption(new Option("--domain <name>", "what to publish").choices(["scm", "tracker"]))
    .option("--events <n>", "events of the generator", positiveNumber)
    .option("--exit", "end with a verdict instead of staying up; non-zero on a mismatch")
    .option("--port <n>", "port; 0 = any free one (default)", portNumber)
    .option("--data <dir>", "a fresh data folder to keep (default: a temporary one)")
    .option("--json", "answer in JSON")
    .action(async (options: DemoCommandOptions) => {
      process.exitCode = await runDemo({
        ...options,
        signal: stopSignal(),
        startStack: ({ data, port }) =>
          startServer(loadConfig({ data, http: { port }, log: { level: "warn" } }), {
            bus: true,
            query: true,
            ingest: true,
          }),
      });
    });
}
