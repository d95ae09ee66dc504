import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type Answer, kernelReader, type Reading, runForeign, runSpark } from "../support/foreign.js";
import { makeForeignLake } from "../support/foreign-lake.js";

/**
 * I6: readers that share nothing with us see the rows of every kind of table, newest version and an older one, as an
 * oracle of its own finds them, by a digest over all rows and columns; and engines that could write are refused.
 */

const SEED = Number(process.env.TRIBUTARY_SEED ?? 5);
const COMMITS = 300;
const KINDS = ["dead_letters", "raw/t.v1.Thing", "refined/t/things"];

let folder: string;
let lake: string;
let answers: Record<string, Answer>;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "tributary-foreign-"));
  lake = join(folder, "lake");
  await makeForeignLake(lake, SEED, COMMITS);
  await runForeign("oracle.py", lake, join(folder, "answers.json"));
  answers = JSON.parse(await readFile(join(folder, "answers.json"), "utf8")) as Record<string, Answer>;
}, 300_000);
afterAll(() => rm(folder, { recursive: true, force: true }));

function expectSame(readings: Record<string, Reading>): void {
  expect(Object.keys(readings).sort()).toEqual(KINDS);
  for (const kind of KINDS) {
    const { versions, filters, bounds } = answers[kind]!;
    expect(readings[kind]!.versions, `${kind}, seed ${SEED}`).toEqual(versions);
    if (readings[kind]!.filters)
      expect(readings[kind]!.filters, kind).toEqual(filters.map(({ rows }) => rows));
    if (readings[kind]!.bounds) expect(readings[kind]!.bounds, kind).toEqual(bounds);
  }
}

test("the lake has what the readers are tried on", () => {
  // A rebuild leaves no table within a table.
  expect(Object.keys(answers).sort()).toEqual(KINDS);
  for (const kind of KINDS) {
    const { versions, newest, checkpointed, filters } = answers[kind]!;
    expect(
      Object.values(versions).every(({ rows }) => rows > 0),
      kind,
    ).toBe(true);
    expect(filters.length).toBeGreaterThan(3);
    if (kind === "dead_letters") continue;
    expect(newest).toBeGreaterThanOrEqual(COMMITS);
    expect(checkpointed).toBe(true);
  }
  expect(answers["refined/t/things"]!.vectors).toBeGreaterThan(0);
});

/** Maintenance that finds nothing to do asks no leave to commit. That it was harmless is shown below: nothing changes. */
const MAINTENANCE = /^(OPTIMIZE|REORG|VACUUM) /;

describe("every table is what the oracle says, to", () => {
  for (const reader of ["deltalake", "polars"]) {
    test(reader, async () => {
      expectSame(JSON.parse(await runForeign(`read_${reader}.py`, lake, join(folder, "answers.json"))));
    });
  }

  for (const release of ["4", "35"] as const) {
    test(`Spark ${release}, which then tries to write and is refused`, async () => {
      const { readings, times, attempts } = await runSpark(release, lake, join(folder, "answers.json"));
      expectSame(readings);
      for (const kind of KINDS) expect(times[kind], kind).toEqual(answers[kind]!.times);
      expect(Object.keys(attempts).length).toBeGreaterThanOrEqual(20);
      for (const [attempt, outcome] of Object.entries(attempts)) {
        if (outcome === "done" && MAINTENANCE.test(attempt)) continue;
        // By the name of our own feature; raw may say first that it only grows.
        expect(outcome, attempt).toMatch(/tributary\.(append|upsert)|append[ -]only|only allow appends/i);
      }
      // And nothing has changed.
      await runForeign("oracle.py", lake, join(folder, "after.json"));
      expect(JSON.parse(await readFile(join(folder, "after.json"), "utf8"))).toEqual(answers);
    }, 600_000);
  }

  test("readers without deletion vectors, where there are none; the others they refuse", async () => {
    const told = JSON.parse(
      await runForeign("read_without_vectors.py", lake, join(folder, "answers.json")),
    ) as Record<string, Record<string, unknown>>;
    expect(Object.keys(told)).toEqual(["deltalake to pyarrow", "daft"]);
    for (const [reader, tables] of Object.entries(told)) {
      for (const kind of ["dead_letters", "raw/t.v1.Thing"]) {
        expect(tables[kind], `${reader}, ${kind}`).toEqual(answers[kind]!.versions);
      }
      expect(tables["refined/t/things"], reader).toMatch(/deletion ?vectors/i);
    }
  });

  // Its jars come with the newer Spark's.
  test("Delta Kernel", async () => expectSame(await kernelReader(lake, answers)));
});
