import { readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { expectedRows, TableWriter, type Write } from "../../test/support/table-writers.js";
import { NEVER, openWorkbench } from "../../test/support/tables.js";
import { layout } from "../base/paths.js";
import { compactUpserted } from "./compact.js";
import { EntityKeys } from "./entity-keys.js";
import { type FileRun, MadeRuns } from "./made-runs.js";
import { verifyTable } from "./verify.js";

const { folder, store, duck, freshRoot } = await openWorkbench();

const ROWS = 300;
const MANY = 100;
const AMPLE = 1 << 26;

const writers: TableWriter[] = [];
let madeRuns: MadeRuns;
beforeEach(() => {
  madeRuns = new MadeRuns();
});
afterEach(async () => {
  vi.restoreAllMocks();
  for (const writer of writers.splice(0)) await writer.close();
  madeRuns.clear();
  expect(readdirSync(store.staging)).toEqual([]);
});

const write = (i: number, version: number, operation = 2): Write => ({
  tenant: i % 3 === 0 ? "acme" : "globex",
  id: `e${String(i).padStart(4, "0")}`,
  version,
  operation,
  content: operation === 3 ? 0n : 1n,
});
const all = (version: number): Write[] => Array.from({ length: ROWS }, (_, i) => write(i, version));
const moves = (from: number) => ({
  from: from === 0 ? new Map<string, string>() : new Map([["job.0", String(from)]]),
  to: new Map([["job.0", String(from + 1)]]),
});

/** A writer of batches, and a job whose runs are offered as `offerRun` has it. */
async function both(offerRun: (run: FileRun) => Promise<void>, indexBytes = AMPLE) {
  const root = freshRoot();
  const live = await TableWriter.open(store, duck, root, { ...NEVER, indexBytes, manyRows: MANY, madeRuns });
  writers.push(live);
  const job = await TableWriter.open(store, duck, root, { ...NEVER, manyRows: MANY, offerRun });
  writers.push(job);
  // Numbers of its tenants are others than those of the job's process.
  const standing = [write(1, 1), write(0, 9), write(2, 9, 3)];
  await live.upsert(standing);
  return { root, live, job, standing };
}

const offered = (run: FileRun) => Promise.resolve(madeRuns.offer(run));

/** Of files that nobody is to read any more. */
function lose(root: string, { table }: TableWriter): void {
  for (const { path, rows } of table.snapshot.files)
    if (rows >= MANY) rmSync(join(layout(folder).lake, root, path));
}

test.each([AMPLE, 0])(
  "the keys of a job's file are at hand from its commit on, and nothing of it is read (index of %i bytes)",
  async (indexBytes) => {
    const { root, live, job, standing } = await both(offered, indexBytes);
    expect(await job.bulk(all(5), moves(0))).toMatchObject({ kind: "committed", live: ROWS - 2, lost: 2 });
    const batch = [write(0, 8), write(1, 4), write(3, 6), write(4, 6, 3), write(ROWS, 1)];
    await live.table.refresh();
    lose(root, live);
    expect(await live.upsert(batch)).toMatchObject({ live: 2, tombstones: 1, lost: 2 });
    // Also by the index, where it has taken them over.
    await live.writer.locator.settled();
    const next = [write(2, 8), write(5, 4), write(6, 6), write(7, 6, 3), write(8, 5)];
    expect(await live.upsert(next)).toMatchObject({ live: 1, tombstones: 1, lost: 3 });
    if (indexBytes > 0) expect(live.writer.locator.indexedKeys).toBe(ROWS + 1);
    expect(standing).toHaveLength(3);
  },
);

test("what comes between an offer and its file's commit counts", async () => {
  const between = [write(3, 7), write(4, 7, 3), write(5, 5)];
  const { live, job, standing } = await both(async (run) => {
    madeRuns.offer(run);
    await live.upsert(between);
  });
  expect(await job.bulk(all(5), moves(0))).toMatchObject({ kind: "committed", lost: 5 });
  const batch = [write(3, 6), write(4, 6), write(5, 5), write(6, 6)];
  await live.table.refresh();
  expect(await live.upsert(batch)).toMatchObject({ live: 1, lost: 3 });
  expect(await live.checkIndex()).toEqual([]);
  expect(await live.rows()).toEqual(expectedRows([...standing, ...between, ...all(5), ...batch]));
  expect((await verifyTable(live.table)).problems).toEqual([]);
});

test("an offer says nothing of a file that is never committed", async () => {
  const { live, job, standing } = await both(offered);
  expect(await job.bulk(all(5), moves(3))).toEqual({ kind: "conflict", reason: "position" });
  expect(readdirSync(store.staging)).toHaveLength(1);
  const batch = all(3);
  expect(await live.upsert(batch)).toMatchObject({ live: ROWS - 2, lost: 2 });
  expect(await live.checkIndex()).toEqual([]);
  expect(await live.rows()).toEqual(expectedRows([...standing, ...batch]));
  // Another file of the same rows has another name.
  expect(await job.bulk(all(5), moves(0))).toMatchObject({ kind: "committed" });
  await live.table.refresh();
  expect(await live.upsert(all(4))).toMatchObject({ live: 0, lost: ROWS });
  expect(readdirSync(store.staging)).toHaveLength(1);
});

test("of offers that nobody asks for the last few are kept", async () => {
  const paths: string[] = [];
  const { live, job } = await both((run) => {
    paths.push(run.path);
    return offered(run);
  });
  for (let i = 0; i < 20; i++) await job.bulk(all(5), moves(7));
  expect(paths).toHaveLength(20);
  expect(readdirSync(store.staging).sort()).toEqual(
    paths
      .slice(-16)
      .map((path) => path.slice(store.staging.length + 1))
      .sort(),
  );
  expect(await live.upsert(all(4))).toMatchObject({ live: ROWS - 2 });
});

test("a file that is compacted away before a batch asked for it leaves its run behind", async () => {
  const { live, job, standing } = await both(offered);
  await job.bulk(all(5), moves(0));
  const { files } = await job.table.refresh();
  const rows = files.filter(({ tombstones }) => !tombstones);
  expect((await compactUpserted(job.writer, job.connection, rows)).kind).toBe("compacted");
  await live.table.refresh();
  const batch = [write(0, 8), write(1, 4), write(3, 6), write(4, 6, 3)];
  expect(await live.upsert(batch)).toMatchObject({ live: 1, tombstones: 1, lost: 2 });
  expect(await live.checkIndex()).toEqual([]);
  expect(await live.rows()).toEqual(expectedRows([...standing, ...all(5), ...batch]));
});

test("a file is read whose run is told of late, is gone, or is of a process that hashes otherwise", async () => {
  for (const spoil of ["late", "gone", "other seed"] as const) {
    let late: FileRun | undefined;
    const { live, job, standing } = await both((run) => {
      late = run;
      if (spoil === "gone") rmSync(run.path);
      if (spoil === "gone") madeRuns.offer(run);
      if (spoil === "other seed") madeRuns.offer({ ...run, proof: [1, 2] });
      return Promise.resolve();
    });
    await job.bulk(all(5), moves(0));
    await live.table.refresh();
    const batch = [write(0, 8), write(1, 4), write(3, 6), write(4, 6, 3)];
    expect(await live.upsert(batch), spoil).toMatchObject({ live: 1, tombstones: 1, lost: 2 });
    if (spoil === "late") madeRuns.offer(late!);
    const next = [write(5, 4), write(6, 6)];
    expect(await live.upsert(next), spoil).toMatchObject({ live: 1, lost: 1 });
    expect(await live.checkIndex(), spoil).toEqual([]);
    expect(await live.rows(), spoil).toEqual(expectedRows([...standing, ...all(5), ...batch, ...next]));
  }
});

test("nobody is told of keys while nobody else writes the table, nor of those of small files or of rows that have lost", async () => {
  const offers: FileRun[] = [];
  const { live, job } = await both((run) => {
    offers.push(run);
    return offered(run);
  });
  await job.bulk(all(5), moves(0));
  expect(offers.splice(0)).toHaveLength(1);
  await job.bulk(all(6), moves(1));
  expect(offers).toHaveLength(0);
  await live.table.refresh();
  await live.upsert([write(0, 1)], { to: new Map([["live.0", "1"]]) });
  await job.bulk(all(7).slice(0, MANY - 1), moves(2));
  expect(offers).toHaveLength(0);
  await live.table.refresh();
  await live.upsert([write(0, 1)], { from: new Map([["live.0", "1"]]), to: new Map([["live.0", "2"]]) });
  await job.bulk(all(8), moves(3));
  expect(offers.splice(0)).toHaveLength(1);
  // Nor of a file that does not come into the table, as all of its rows have lost.
  await live.table.refresh();
  await live.upsert(all(9));
  await job.bulk(all(8), moves(4));
  expect(offers).toHaveLength(0);
});

test("a process that was told the seed of another hashes as it does", async () => {
  const id = Buffer.from("PROJ-1");
  const keyBy = ({ entityHash }: typeof import("./entity-hash.js")) => {
    const words = new Uint32Array(12);
    entityHash(id, 0, id.length, words, 0);
    return words.join();
  };
  vi.resetModules();
  const one = await import("./entity-hash.js");
  vi.resetModules();
  const other = await import("./entity-hash.js");
  expect(keyBy(other)).not.toBe(keyBy(one));
  other.useHashSeed(one.hashSeed());
  expect(keyBy(other)).toBe(keyBy(one));
  expect(new other.TenantOrdinals().of(id, 0, id.length)).toBe(0);
  // Records of two seeds in one index would be doubles.
  expect(() => other.useHashSeed(one.hashSeed())).toThrow();
  expect(new EntityKeys("t").tenantOf(id)).toBe(0);
});
