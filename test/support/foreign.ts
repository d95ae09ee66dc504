import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { packageRoot } from "../../services/base/paths.js";

const run = promisify(execFile);

/** A Python with the packages of test/requirements.txt; .ci/run makes one. */
function python(): string {
  const path = process.env.TEST_PYTHON ?? join(packageRoot, ".venv", "bin", "python");
  if (!existsSync(path)) {
    throw new Error("no Python with deltalake: run .ci/run once, or set TEST_PYTHON");
  }
  return path;
}

/** Standard output of a script of test/support. */
export async function runForeign(script: string, ...args: readonly string[]): Promise<string> {
  const path = join(packageRoot, "test", "support", script);
  const { stdout } = await run(python(), [path, ...args], { maxBuffer: 1024 * 1024 * 1024 });
  return stdout;
}

/** Rows of a Delta table as an engine that is not ours reads them. `sql` reads the table `t`. */
export async function readForeign(
  folder: string,
  sql = "SELECT * FROM t",
): Promise<Record<string, unknown>[]> {
  return (await runForeign("foreign_reader.py", folder, sql))
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as Record<string, unknown>);
}
