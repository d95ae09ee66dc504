import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The folder that holds package.json, whether this file runs from source or from dist/. */
export const packageRoot = (() => {
  let folder = dirname(fileURLToPath(import.meta.url));
  while (!existsSync(join(folder, "package.json"))) folder = dirname(folder);
  return folder;
})();

/** The version of this program, as package.json says. */
export const packageVersion: string = (
  JSON.parse(readFileSync(join(packageRoot, "package.json"), "utf8")) as { version: string }
).version;

/** Where things lie below a data folder. The layout is a public contract (README, "On disk"). */
export const layout = (data: string) => ({
  stream: join(data, "stream"),
  lake: join(data, "lake"),
  keys: join(data, "keys"),
  /** On the lake's volume: files are written here and renamed into the lake. */
  staging: join(data, "staging"),
  /** Copies of objects of a store that is no folder. Can be removed while nothing runs. */
  cache: join(data, "cache"),
  /** What DuckDB spills; may be another disk, and may be full. */
  scratch: join(data, "scratch"),
});
