import { existsSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, expect, test } from "vitest";
import { overriding } from "../../test/support/faulty-store.js";
import { Lake, type TestEvent, TestStream } from "../../test/support/lake.js";
import { TributaryError } from "../base/errors.js";
import type { ObjectStore } from "../storage/object-store.js";
import { commitKey } from "./actions.js";
import { compactAppended, compactUpserted } from "./compact.js";
import { planCompaction } from "./compaction-plan.js";
import { DeltaTable } from "./delta-table.js";
import { Staging } from "./staging.js";
import { Sweep } from "./sweep.js";

const open: Lake[] = [];
afterEach(async () => {
  for (const lake of open.splice(0)) await lake.close();
});

const event = (id: number, version = 1n): TestEvent => ({
  tenant: "acme",
  id: `e${id}`,
  operation: 1,
  version,
  thing: { name: `n${id}`, number: "1" },
});

const down = () => Promise.reject(new TributaryError("TRB-STORE-FAILED", "down"));
const filesBelow = (folder: string): string[] =>
  readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name));

/** Data and vector files of all tables, and how many of them the tables name. */
async function files(lake: Lake): Promise<{ there: number; named: number }> {
  const lane = await lake.lane();
  let named = 0;
  for (const table of [lane.raw, ...lane.targets.map((target) => target.table)]) {
    const all = table.snapshot.files;
    const vectors = all.map(({ add }) => add.deletionVector?.pathOrInlineDv).filter((v) => v !== undefined);
    named += all.length + new Set(vectors).size;
  }
  const there = filesBelow(join(lake.folder, "lake")).filter((path) => !path.includes("_delta_log")).length;
  return { there, named };
}

test.each([
  ["putIfAbsent", "at once"],
  ["adopt", "at once"],
  ["put", "at once"],
  ["put", "after the fact"],
] as const)(
  "nothing piles up while %s fails, %s, and nothing is left once it works again",
  async (operation, when) => {
    let failing = false;
    let tries = 0;
    const lake = await Lake.create({
      compactAfterFiles: 1000,
      store: (inner) => {
        const run = inner[operation].bind(inner) as (...args: unknown[]) => Promise<never>;
        const flaky = (...args: unknown[]) => {
          if (!failing) return run(...args);
          tries++;
          return when === "at once" ? down() : run(...args).then(down);
        };
        return overriding(inner, { [operation]: flaky } as Partial<ObjectStore>);
      },
    });
    open.push(lake);
    const stream = new TestStream();
    const lane = await lake.lane();
    await lane.land(stream.batch([event(1), event(2)]));
    await lake.settled();
    const before = await files(lake);
    expect(before.there).toBe(before.named);
    failing = true;
    // Replaces a row, so that a file of vectors is made as well.
    const landing = lake.land(stream.batch([event(1, 2n), event(3)]));
    // Raw and refined each may hold the files of one commit in doubt, however often they try.
    await expect.poll(() => tries, { timeout: 20_000 }).toBeGreaterThan(operation === "putIfAbsent" ? 7 : 2);
    expect((await files(lake)).there - before.there).toBeLessThanOrEqual(4);
    failing = false;
    await landing;
    await lake.settled();
    const after = await files(lake);
    expect(after.there).toBe(after.named);
    expect(filesBelow(join(lake.folder, "staging"))).toEqual([]);
    expect(await lake.rows()).toHaveLength(3);
    expect(await lake.rawPositions()).toEqual([...stream.positions].sort());
  },
);

test("vectors and data files go up side by side, and when one fails the other is waited for and removed", async () => {
  let late = "none";
  let together: { readonly meet: () => Promise<void>; readonly fails: boolean } | undefined;
  const lake = await Lake.create({
    compactAfterFiles: 1000,
    store: (inner) =>
      overriding(inner, {
        adopt: async (files) => {
          if (together !== undefined && files.some(({ key }) => key.startsWith("refined/"))) {
            const { meet, fails } = together;
            await meet();
            if (fails) await down();
          }
          return inner.adopt(files);
        },
        put: async (key, bytes) => {
          if (together !== undefined && key.includes("deletion_vector")) {
            const { meet, fails } = together;
            await meet();
            // It arrives after the other has failed.
            if (fails) {
              late = key;
              await sleep(50);
            }
          }
          return inner.put(key, bytes);
        },
      }),
  });
  open.push(lake);
  const stream = new TestStream();
  await lake.land(stream.batch([event(1), event(2), event(3)]));
  await lake.settled();
  for (const fails of [false, true]) {
    let arrived = 0;
    let go: () => void = () => undefined;
    const both = new Promise<void>((resolve) => {
      go = resolve;
    });
    together = {
      fails,
      meet: async () => {
        if (++arrived === 2) {
          together = undefined;
          go();
        }
        await Promise.race([both, sleep(5_000)]);
      },
    };
    // Replaces one row of the first file, so that a file of vectors is made as well.
    await lake.land(stream.batch([event(fails ? 2 : 1, 2n)]));
    await lake.settled();
    expect(arrived).toBe(2);
  }
  expect(late).toContain("deletion_vector");
  expect(existsSync(join(lake.folder, "lake", late))).toBe(false);
  expect(await lake.rows()).toHaveLength(3);
});

test("no files are made while a commit is in doubt: those of each try would pile up where nothing can be deleted", async () => {
  let failing = false;
  const lake = await Lake.create({
    store: (inner) =>
      overriding(inner, {
        putIfAbsent: (key, bytes) => (failing ? down() : inner.putIfAbsent(key, bytes)),
        delete: (keys) => (failing ? down() : inner.delete(keys)),
      }),
  });
  open.push(lake);
  const stream = new TestStream();
  const lane = await lake.lane();
  await lane.land(stream.batch([event(1)]));
  await lake.settled();
  const there = () =>
    filesBelow(join(lake.folder, "lake", lane.raw.root)).filter((path) => path.endsWith(".parquet"));
  expect(there()).toHaveLength(1);
  failing = true;
  const batch = stream.batch([event(2)]);
  for (let tries = 0; tries < 4; tries++) {
    await expect(lane.land(batch)).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
    await lane.reopen();
  }
  expect(there()).toHaveLength(2);
  failing = false;
  await lane.reopen();
  await lane.land(batch);
  await lake.settled();
  expect(there()).toHaveLength(2);
  // What could not be deleted of the model's goes with the next occasion.
  await (await lake.target()).table.discard([]);
  const all = await files(lake);
  expect(all.there).toBe(all.named);
});

test("a local file that is still being written when the work fails is removed once it is written", async () => {
  const lake = await Lake.create();
  open.push(lake);
  const { table } = await lake.target();
  const failed = Staging.run(table, async (staging) => {
    void staging.write("slow.parquet", async (path) => {
      await sleep(50);
      writeFileSync(path, "x");
    });
    throw new Error("the work failed");
  });
  await expect(failed).rejects.toThrow("the work failed");
  expect(filesBelow(join(lake.folder, "staging"))).toEqual([]);
});

test("a sweep leaves alone what a commit under way is being made of, and nothing counts so for ever", async () => {
  let commits: Promise<void> | undefined;
  let waiting = 0;
  let release: () => void = () => undefined;
  const lake = await Lake.create({
    compactAfterFiles: 1000,
    store: (inner) =>
      overriding(inner, {
        putIfAbsent: async (key, bytes) => {
          if (commits !== undefined) waiting++;
          await commits;
          return inner.putIfAbsent(key, bytes);
        },
      }),
  });
  open.push(lake);
  const stream = new TestStream();
  const lane = await lake.lane();
  await lane.land(stream.batch([event(1), event(2)]));
  const { table, writer } = await lake.target();
  commits = new Promise((resolve) => {
    release = resolve;
  });
  const compacting = lake.context.duck.with((connection) =>
    compactUpserted(writer, connection, table.snapshot.files),
  );
  await expect.poll(() => waiting).toBe(1);
  // Through another object of the table, which waits for none of its turns.
  const swept = await DeltaTable.open(table.store, table.root, table.duck, { checkpointEvery: 1000 });
  expect(await new Sweep(swept!).run(-60_000)).toBe(0);
  release();
  commits = undefined;
  expect(await compacting).toMatchObject({ kind: "compacted" });
  expect(await lake.rows()).toHaveLength(2);
  expect([...table.inFlight, ...lane.raw.inFlight]).toEqual([]);
});

test("files of a commit whose answer was lost stay until it is known, then go with it or stay with it", async () => {
  for (const stands of [true, false]) {
    const late: (() => Promise<unknown>)[] = [];
    let failing = false;
    const lake = await Lake.create({
      store: (inner) =>
        overriding(inner, {
          putIfAbsent: (key, bytes) => {
            if (!failing) return inner.putIfAbsent(key, bytes);
            late.push(() => inner.putIfAbsent(key, bytes));
            return down();
          },
        }),
    });
    open.push(lake);
    const { table } = await lake.target();
    const add = { ...(await staged(lake)), dataChange: true };
    const request = {
      operation: "WRITE" as const,
      actions: [{ add }],
      expect: new Map(),
      basedOn: table.snapshot.version,
      serializable: false,
      files: [`${table.root}/${add.path}`],
    };
    failing = true;
    await expect(table.commit(request)).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
    const there = () => lake.context.store.get(`${table.root}/${add.path}`);
    await new Sweep(table).run(-60_000);
    expect(await there()).toBeDefined();
    failing = false;
    if (stands) {
      // It comes through long after it was given up.
      await late.at(-1)!();
    } else {
      const other = (await (await lake.twin()).target()).table;
      await other.commit({ ...request, actions: [], files: [] });
    }
    await table.settle();
    await table.refresh();
    expect((await there()) !== undefined).toBe(stands);
    expect(table.snapshot.files.some(({ path }) => path === add.path)).toBe(stands);
  }
});

/** A table whose commits fail while `down`, and a commit to it that does so. */
async function inDoubt() {
  const state = { down: false };
  const lake = await Lake.create({
    store: (inner) =>
      overriding(inner, {
        putIfAbsent: (key, bytes) => (state.down ? down() : inner.putIfAbsent(key, bytes)),
      }),
  });
  open.push(lake);
  const { table } = await lake.target();
  const add = { ...(await staged(lake)), dataChange: true };
  const nothing = {
    operation: "WRITE" as const,
    actions: [],
    expect: new Map(),
    basedOn: table.snapshot.version,
    serializable: false,
  };
  const key = `${table.root}/${add.path}`;
  state.down = true;
  const failed = table.commit({ ...nothing, actions: [{ add }], files: [key] });
  await expect(failed).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
  state.down = false;
  return { lake, table, add, key, nothing, version: nothing.basedOn + 1 };
}

test("a commit in doubt comes before the next one", async () => {
  const { table, add, nothing, version } = await inDoubt();
  expect(await table.commit(nothing)).toEqual({ kind: "committed", version: version + 1 });
  expect(table.snapshot.files.some(({ path }) => path === add.path)).toBe(true);
});

test("a commit in doubt whose version was cleared away since is not made anew, and its files stay", async () => {
  const { lake, table, key, nothing, version } = await inDoubt();
  const other = (await (await lake.twin()).target()).table;
  for (const _ of [1, 2]) await other.commit(nothing);
  const { store } = lake.context;
  await store.delete([commitKey(table.root, version)]);
  await table.settle();
  expect(await store.get(commitKey(table.root, version))).toBeUndefined();
  expect(await store.get(key)).toBeDefined();
});

/** A file that lies in the table's folder and is named by nothing. */
async function staged(lake: Lake) {
  const { table } = await lake.target();
  const path = `part-${Math.random()}.parquet`;
  await lake.context.store.put(`${table.root}/${path}`, Buffer.from("x"));
  return {
    path,
    partitionValues: {},
    size: 1,
    modificationTime: 0,
    stats: JSON.stringify({ numRecords: 1, tightBounds: true }),
  };
}

test("a compaction that fails leaves no file behind", async () => {
  let failing = false;
  const lake = await Lake.create({
    compactAfterFiles: 1000,
    store: (inner) =>
      overriding(inner, {
        adopt: (adopted) => (failing ? inner.adopt(adopted).then(down) : inner.adopt(adopted)),
      }),
  });
  open.push(lake);
  const stream = new TestStream();
  const lane = await lake.lane();
  for (let i = 0; i < 4; i++) await lane.land(stream.batch([event(i), event(0, BigInt(i + 2))]));
  const { writer, table } = await lake.target();
  const before = await files(lake);
  failing = true;
  await lake.context.duck.with(async (connection) => {
    const sources = planCompaction(table.snapshot, 2)!;
    await expect(compactUpserted(writer, connection, sources)).rejects.toThrow();
    const raw = planCompaction(lane.raw.snapshot, 2)!;
    await expect(compactAppended(lane.raw, connection, raw, ["tenant_id"])).rejects.toThrow();
  });
  failing = false;
  expect((await files(lake)).there).toBe(before.there);
  expect([...table.inFlight, ...lane.raw.inFlight]).toEqual([]);
});
