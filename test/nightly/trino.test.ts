import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { type Answer, runForeign, runTrino } from "../support/foreign.js";
import { makeForeignLake } from "../support/foreign-lake.js";

/** Seconds to start, and a download of most of a gigabyte: for a schedule, not for every change. */
test("I6: Trino reads every table as the oracle does, and is refused when it would write", async () => {
  const folder = await mkdtemp(join(tmpdir(), "tributary-trino-"));
  try {
    const lake = join(folder, "lake");
    await makeForeignLake(lake, Number(process.env.TRIBUTARY_SEED ?? 7), 300);
    const oracle = async (name: string) => {
      await runForeign("oracle.py", lake, join(folder, name));
      return JSON.parse(await readFile(join(folder, name), "utf8")) as Record<string, Answer>;
    };
    const answers = await oracle("answers.json");
    const { readings, attempts } = await runTrino(lake, join(folder, "answers.json"));
    expect(Object.keys(readings).sort()).toEqual(["dead_letters", "raw/t.v1.Thing", "refined/t/things"]);
    for (const [kind, { milliseconds, filters }] of Object.entries(answers)) {
      expect(readings[kind], kind).toEqual({
        versions: milliseconds,
        integerFilters: filters.filter(({ time }) => !time).map(({ rows }) => rows),
      });
    }
    expect(Object.keys(attempts)).toHaveLength(27);
    for (const [attempt, outcome] of Object.entries(attempts)) {
      // Rows on a local file system it does not change for anybody; the rest is refused by the table's own words.
      expect(outcome, attempt).toMatch(
        /tributary\.(append|upsert)|appendOnly|not enabled on the local filesystem/,
      );
    }
    expect(await oracle("after.json")).toEqual(answers);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});
