import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { packageRoot } from "../../services/base/paths.js";

/** Real change logs with the answers they must give, kept beside the repository. */
const folder = process.env.TEST_SHARED_DATA ?? join(packageRoot, "..", "shared", "data");

export interface ChangeLog {
  readonly name: string;
  readonly path: string;
  readonly lines: readonly string[];
  /** What git says, by the data's own README. */
  readonly answers: {
    readonly events: number;
    readonly liveFiles: number;
    readonly commits: number;
    readonly linesAdded: number;
    readonly changeCount: number;
    readonly insertions: number;
  };
}

export function changeLogs(): ChangeLog[] {
  if (!existsSync(folder))
    throw new Error("no change logs: set TEST_SHARED_DATA to the folder that holds them");
  const table = readFileSync(join(folder, "README.md"), "utf8");
  const rows = [...table.matchAll(/^\| (\S+)\.ndjson\.gz \|(.+)\|$/gm)];
  if (rows.length === 0) throw new Error("the change logs' README has no table of answers");
  return rows.map(([, name, cells]) => {
    const figures = cells!.split("|").map((cell) => Number(cell.replaceAll(",", "").trim()));
    const [events, liveFiles, , commits, linesAdded, changeCount, insertions] = figures as [
      number,
      number,
      number,
      number,
      number,
      number,
      number,
    ];
    const path = join(folder, `${name}.ndjson.gz`);
    const lines = gunzipSync(readFileSync(path)).toString("utf8").trimEnd().split("\n");
    const answers = { events, liveFiles, commits, linesAdded, changeCount, insertions };
    return { name: name!, path, lines, answers };
  });
}
