import { copyFileSync, cpSync, mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { expectedThings, type Lake, Random, randomEvents, THING } from "../../test/support/lake.js";
import { MemoryReader } from "../../test/support/memory-reader.js";
import { pipelineLake, publishTo, startPipeline, until } from "../../test/support/pipeline-run.js";
import type { RepairReport } from "../status/repair-request.js";
import { repairTable } from "./repair.js";

const RAW = `lake/raw/${THING}`;
const REFINED = "lake/refined/t/things";
const events = randomEvents(new Random(9), 90);

let lake: Lake;
let reader: MemoryReader;
let run: ReturnType<typeof startPipeline>;
let positions: string[];

beforeEach(async () => {
  lake = await pipelineLake({ checkpointEvery: 5, compactAfterFiles: 1000 });
  reader = new MemoryReader("test");
  run = startPipeline(lake, reader);
  positions = publishTo(reader, events.slice(0, 1));
  // Only then do models take live batches.
  await until("the models to be in step", async () => {
    const behind = await lake.context.metrics.behind.get();
    return behind.values.length > 0 && behind.values.every(({ value }) => value === 0);
  });
  for (let at = 1; at < 60; at += 20) {
    positions.push(...publishTo(reader, events.slice(at, Math.min(at + 20, 60))));
    await until("events to land", () => reader.caughtUp);
  }
});
afterEach(async () => {
  await run.stop();
  await lake.close();
});

const repair = (name: string, dryRun = false, running = true): Promise<RepairReport> => {
  const { store, duck, tableOptions, models } = lake.context;
  const parts = { store, duck, tableOptions, models };
  const work = () => repairTable({ ...parts, stream: "test", lowWater: reader.done }, name, dryRun);
  return dryRun || !running ? work() : run.pipeline.repaired(name, work);
};

const inLake = (path: string) => join(lake.folder, path);
const commitsOf = (root: string) =>
  readdirSync(inLake(`${root}/_delta_log`))
    .filter((name) => /^\d{20}\.json$/.test(name))
    .sort();
const filesOf = (root: string) =>
  readdirSync(inLake(root), { recursive: true, encoding: "utf8" }).filter((name) =>
    /^[^_]*\bpart-.*parquet$/.test(name),
  );

/** Overwrites the newest commit. */
function tear(root: string): string {
  const path = inLake(`${root}/_delta_log/${commitsOf(root).at(-1)!}`);
  writeFileSync(path, '{"commitInfo":{"timest');
  return path;
}

/** Lands the rest and compares everything. */
async function expectWhole(): Promise<void> {
  positions.push(...publishTo(reader, events.slice(60)));
  await until("all to land", () => reader.caughtUp && lake.context.health.get("raw", THING) === undefined);
  expect(await lake.rawPositions()).toEqual([...positions].sort());
  await run.stop();
  await lake.reopen();
  expect(await lake.rows()).toEqual(expectedThings(events));
}

describe("a raw table whose newest commit is torn", () => {
  test("gets it again from the file it has left: nothing is lost, a copy of what was there is kept", async () => {
    const before = commitsOf(RAW).length;
    tear(RAW);
    const told = await repair(`raw/${THING}`, true);
    expect(told.done[0]).toMatch(/made again with its \d+ rows/);
    expect(readdirSync(inLake(RAW))).not.toContain("_damaged");
    const { found, done, left } = await repair(`raw/${THING}`);
    expect([found.length, done, left]).toEqual([1, told.done, []]);
    expect(commitsOf(RAW).length).toBe(before);
    expect(readdirSync(inLake(`${RAW}/_damaged`))).toHaveLength(1);
    await expectWhole();
  });

  test("is left as it is when its events are nowhere else, and told what to restore", async () => {
    const path = tear(RAW);
    const [newest] = filesOf(RAW)
      .map((name) => inLake(`${RAW}/${name}`))
      .sort((a, b) => (a < b ? -1 : 1));
    // Whichever file held them: without any of the data files nothing can be made again.
    const aside = inLake("aside");
    mkdirSync(aside);
    for (const name of filesOf(RAW)) copyFileSync(inLake(`${RAW}/${name}`), join(aside, name));
    const opened = await lake.lane().catch(() => undefined);
    expect(opened).toBeUndefined();
    const strays = (await repair(`raw/${THING}`, true)).done;
    expect(strays).toHaveLength(1);
    for (const name of filesOf(RAW)) {
      rmSync(inLake(`${RAW}/${name}`), { force: true });
      const { left } = await repair(`raw/${THING}`);
      copyFileSync(join(aside, name), inLake(`${RAW}/${name}`));
      expect(left.join("\n")).toMatch(/are nowhere else|put raw\/t\.v1\.Thing\/part-\S+ .* back from a copy/);
      expect(left.at(-1)).toMatch(/nothing was changed$/);
    }
    expect(newest).toBeDefined();
    expect(readdirSync(inLake(RAW))).not.toContain("_damaged");
    expect(path).toMatch(/json$/);
    await repair(`raw/${THING}`);
    await expectWhole();
  });

  test("is left as it is where positions do not count events, unless the file that it has left has all of them", async () => {
    tear(RAW);
    const { store, duck, tableOptions, models } = lake.context;
    // Of the kind that Kinesis has.
    const low = `${"9".repeat(64)}.0000001`;
    const parts = { store, duck, tableOptions, models, stream: "test", lowWater: new Map([["0", low]]) };
    const { done, left } = await repairTable(parts, `raw/${THING}`, true);
    expect(done).toEqual([]);
    expect(left[0]).toMatch(/^whether events of partition 0 .* cannot be told/);
    expect(left.at(-1)).toMatch(/nothing was changed$/);
    await repair(`raw/${THING}`);
    await expectWhole();
  });

  test("of another program loses nothing when it is set aside", async () => {
    const next = String(commitsOf(RAW).length).padStart(20, "0");
    writeFileSync(inLake(`${RAW}/_delta_log/${next}.json`), '{"add":{"path":"x.parquet"');
    const { done, left } = await repair(`raw/${THING}`);
    expect([done, left]).toEqual([[expect.stringMatching(/it held no event that is not elsewhere/)], []]);
    await expectWhole();
  });
});

describe("a raw table that lacks a data file", () => {
  test("is told which one, and mended when it is put back", async () => {
    const [name] = filesOf(RAW);
    const path = inLake(`${RAW}/${name}`);
    renameSync(path, `${path}.kept`);
    const { found, left } = await repair(`raw/${THING}`);
    expect(found).toEqual([expect.stringContaining(`${name} is missing: `)]);
    expect(left).toEqual([
      expect.stringMatching(`put raw/${THING}/${name} .*rows, positions \\d+ to \\d+.* back from a copy`),
    ]);
    expect((await repair("t.things", true)).left).toEqual([
      expect.stringContaining(`\`tributary table repair raw/${THING}\``),
    ]);
    renameSync(`${path}.kept`, path);
    expect((await repair(`raw/${THING}`)).found).toEqual([]);
    await expectWhole();
  });

  test("gets its rows back from the files that compaction has left", async () => {
    await run.stop();
    await lake.reopen();
    const { compactAppended } = await import("../table/compact.js");
    const lane = await lake.lane();
    const sources = lane.raw.snapshot.files;
    await lake.context.duck.with((connection) =>
      compactAppended(lane.raw, connection, sources, ["tenant_id", "position"]),
    );
    const [merged] = lane.raw.snapshot.files;
    rmSync(inLake(`${RAW}/${merged!.path}`), { force: true });
    const { done, left } = await repair(`raw/${THING}`, false, false);
    expect([done, left]).toEqual([[expect.stringMatching(/its 60 rows were found/)], []]);
    expect(await lake.rawPositions()).toEqual([...positions].sort());
  });
});

describe("a refined table", () => {
  test("whose newest commit is torn comes back from raw", async () => {
    tear(REFINED);
    const { done, left } = await repair("t.things");
    expect([done.length, left]).toEqual([1, []]);
    await expectWhole();
  });

  test("that lacks a data file is built anew from raw", async () => {
    const name = readdirSync(inLake(`${REFINED}/tenant_partition=~shared`)).find((each) =>
      each.startsWith("part-"),
    )!;
    rmSync(inLake(`${REFINED}/tenant_partition=~shared/${name}`), { force: true });
    const { found, done, left } = await repair("t.things");
    expect(found[0]).toContain(name);
    expect([done, left]).toEqual([[expect.stringMatching(/built anew from raw/)], []]);
    await expectWhole();
  });

  test("whose log is damaged in the middle is built anew from raw, a copy of the log kept", async () => {
    const commits = commitsOf(REFINED);
    for (const name of readdirSync(inLake(`${REFINED}/_delta_log`)).filter((each) => /checkpoint/.test(each)))
      rmSync(inLake(`${REFINED}/_delta_log/${name}`), { force: true });
    writeFileSync(inLake(`${REFINED}/_delta_log/${commits.at(-2)}`), "{");
    const { done, left } = await repair("t.things");
    expect([done, left]).toEqual([[expect.stringMatching(/built anew from raw/)], []]);
    await expectWhole();
  });
});

describe("a refined table that was dropped", () => {
  const drops = {
    "its folder is gone": () => rmSync(inLake(REFINED), { recursive: true }),
    "its log is gone": () => rmSync(inLake(`${REFINED}/_delta_log`), { recursive: true }),
    "its folder was set aside": () => renameSync(inLake(REFINED), inLake("things-aside")),
  };

  test.each(Object.keys(drops) as (keyof typeof drops)[])(
    "is built anew from raw by one command, while events land: %s",
    async (name) => {
      drops[name]();
      // Those who write it may have noticed, and may not.
      positions.push(...publishTo(reader, events.slice(60, 63)));
      await until("events to land", () => reader.caughtUp);
      const landing = (async () => {
        for (let at = 63; at < 75; at++) {
          positions.push(...publishTo(reader, events.slice(at, at + 1)));
          await until("an event to land", () => reader.caughtUp);
        }
      })();
      const { found, done, left } = await repair("t.things");
      await landing;
      expect(left).toEqual([]);
      // A log that is gone may have been written again by who had it in memory; rows that are gone were not.
      if (name !== "its log is gone") {
        expect(found.length).toBeGreaterThan(0);
        expect(done).toEqual([expect.stringMatching(/built anew from raw/)]);
      }
      await until("the model to be in step", async () => {
        const behind = await lake.context.metrics.behind.get();
        return behind.values.every(({ value }) => value === 0);
      });
      positions.push(...publishTo(reader, events.slice(75)));
      await until("all to land", () => reader.caughtUp);
      await run.stop();
      await lake.reopen();
      expect(await lake.rows()).toEqual(expectedThings(events));
      expect((await repair("t.things", false, false)).found).toEqual([]);
    },
  );

  test.each(Object.keys(drops) as (keyof typeof drops)[])("and without ingest: %s", async (name) => {
    await run.stop();
    drops[name]();
    const { found, done, left } = await repair("t.things", false, false);
    expect([found.length, done, left]).toEqual([1, [expect.stringMatching(/built anew from raw/)], []]);
    await lake.reopen();
    expect(await lake.rows()).toEqual(expectedThings(events.slice(0, 60)));
  });
});

describe("a raw table that was restored from an older copy", () => {
  test("leaves its model ahead of it: told, untouched, and built anew when somebody asks", async () => {
    cpSync(inLake(RAW), inLake("copy"), { recursive: true });
    publishTo(reader, events.slice(60, 80));
    await until("events to land", () => reader.caughtUp);
    const before = commitsOf(REFINED);
    await run.stop();
    await lake.reopen();
    rmSync(inLake(RAW), { recursive: true });
    renameSync(inLake("copy"), inLake(RAW));
    run = startPipeline(lake, reader);
    const { health } = lake.context;
    const status = () => health.get("model", "t.things");
    await until("the model to be told", () => status()?.state === "quarantined");
    expect(status()).toMatchObject({ code: "TRB-TABLE-CORRUPT", remedy: "tributary table repair t.things" });
    expect(status()?.reason).toMatch(/raw was set back/);
    expect(commitsOf(REFINED)).toEqual(before);
    const report = await repair("t.things");
    expect([report.found, report.left]).toEqual([[status()?.reason], []]);
    await until("the model to be well", () => status() === undefined);
    publishTo(reader, events.slice(80));
    await until("events to land", () => reader.caughtUp);
    expect(await lake.rows()).toEqual(expectedThings([...events.slice(0, 60), ...events.slice(80)]));
  });
});

test("a raw table whose log is gone is not begun anew beside its files", async () => {
  await run.stop();
  await lake.reopen();
  renameSync(inLake(`${RAW}/_delta_log`), inLake("log"));
  run = startPipeline(lake, reader);
  const status = () => lake.context.health.get("raw", THING);
  await until("it to be told", () => status() !== undefined);
  expect(status()).toMatchObject({ code: "TRB-TABLE-CORRUPT", state: "quarantined" });
  const report = await repair(`raw/${THING}`);
  expect(report.left.join()).toMatch(/restore raw\/t.v1.Thing\/_delta_log from a copy/);
  publishTo(reader, events.slice(60));
  await until("events to be parked", () => reader.caughtUp);
  renameSync(inLake("log"), inLake(`${RAW}/_delta_log`));
  run.pipeline.hurry();
  await until("it to be well", () => status() === undefined);
  expect(await lake.rows()).toEqual(expectedThings(events));
});

test("the dead letters' newest commit is made again, and a name that is none is refused", async () => {
  reader.append(0, Buffer.from("no event"));
  await until("the letter", () => reader.caughtUp);
  tear("lake/dead_letters");
  const { done, left } = await repair("dead_letters");
  expect([done, left]).toEqual([[expect.stringMatching(/made again with its 1 rows/)], []]);
  await expect(repair("t.nothing")).rejects.toMatchObject({ code: "TRB-TABLE-NOT-FOUND" });
  await run.stop();
  await lake.reopen();
  expect(await lake.deadLetters()).toHaveLength(1);
});
