import { afterEach, expect, test } from "vitest";
import { claimOf, expectedRows, TableWriter, type Write } from "../../test/support/table-writers.js";
import { NEVER, openWorkbench } from "../../test/support/tables.js";
import type { AddAction } from "./actions.js";
import { type Change, changeOf } from "./changes.js";
import { compactUpserted } from "./compact.js";
import { planCompaction } from "./compaction-plan.js";
import { stageFile } from "./data-file.js";
import { layoutFor, layoutOf, piecesOf } from "./layout.js";
import { EVERY_SLOT, holds, isWithin, type Slots, union } from "./slot-ranges.js";
import { Staging } from "./staging.js";
import type { TableFile } from "./types.js";
import { SHARED_PARTITION } from "./upsert.js";
import { verifyTable } from "./verify.js";

const MiB = 1024 * 1024;
const { store, duck, freshRoot } = await openWorkbench();

const writers: TableWriter[] = [];
afterEach(async () => {
  for (const writer of writers.splice(0)) await writer.close();
});

async function open(root: string): Promise<TableWriter> {
  const writer = await TableWriter.open(store, duck, root, NEVER);
  writers.push(writer);
  return writer;
}

let names = 0;
function file(slots: Slots, more: Partial<TableFile> = {}): TableFile {
  const path = `f${++names}`;
  return {
    path,
    partition: SHARED_PARTITION,
    bytes: MiB / 2,
    rows: 1000,
    maskedRows: 0,
    tombstones: false,
    slots,
    min: {},
    max: {},
    add: { path, partitionValues: {}, size: 0, modificationTime: 0, dataChange: true } as AddAction,
    ...more,
  };
}

const committed = (slots: Slots, version: number): Change =>
  changeOf({ version, operation: "MERGE", redefined: false, adds: [file(slots)], removes: [] });
/** The newest last, as commits are. */
const layout = (...claims: Slots[]): readonly Slots[] => {
  const changes = claims.map(committed).reverse();
  return layoutOf({ newestChanges: () => changes });
};

test("the layout is what present writers claim, and what nobody does", () => {
  const [a, b] = [claimOf(0, 2), claimOf(1, 2)];
  expect(layout()).toEqual([EVERY_SLOT]);
  expect(layout(EVERY_SLOT, EVERY_SLOT)).toEqual([EVERY_SLOT]);
  expect(layout(a, b, EVERY_SLOT, a)).toEqual([a, b]);
  // Who came since counts.
  const quarters = [0, 1, 2, 3].map((i) => claimOf(i, 4));
  expect(layout(a, b, ...quarters)).toEqual([...quarters].reverse());
  expect(layout(...quarters, a, b)).toEqual([b, a]);
  expect(layout(quarters[1]!)).toEqual([
    quarters[1],
    [
      { start: 0, end: 2 ** 30 },
      { start: 2 ** 31, end: 2 ** 32 },
    ],
  ]);
  // A key that has come to another writer than its own is no claim.
  expect(layout(a, union(b, [{ start: 5, end: 6 }]))).toEqual([b, a]);
});

test("small partitions of tenants, and those of one tenant, are kept together", () => {
  const halves = [claimOf(0, 2), claimOf(1, 2)];
  const large = [file(EVERY_SLOT), file(EVERY_SLOT), file(EVERY_SLOT)];
  expect(layoutFor(halves, SHARED_PARTITION, large)).toBe(halves);
  expect(layoutFor(halves, SHARED_PARTITION, large.slice(0, 1))).toEqual([EVERY_SLOT]);
  const own = large.map((one) => ({ ...one, partition: "t=acme" }));
  expect(layoutFor(halves, "t=acme", own)).toEqual([EVERY_SLOT]);
  expect(layoutFor(halves, SHARED_PARTITION, [...own, large[0]!])).toEqual([EVERY_SLOT]);
});

test("files of different writers are not merged; one that several mask is divided", () => {
  const halves = [claimOf(0, 2), claimOf(1, 2)] as const;
  const files = halves.flatMap((half) => [file(half), file(half), file(half)]);
  const plan = (more: TableFile[], after = 3) =>
    planCompaction({ files: [...files, ...more] }, after, undefined, halves);
  expect(plan([])).toEqual(files.slice(0, 3));
  expect(plan([], 4)).toBeUndefined();
  expect(planCompaction({ files }, 4)).toEqual(files);
  const wide = file(EVERY_SLOT, { bytes: 20 * MiB });
  expect(plan([wide], 4)).toBeUndefined();
  const masked = { ...wide, maskedRows: 150 };
  expect(plan([masked], 4)).toEqual([masked]);
  expect(planCompaction({ files: [...files, masked] }, 10)).toBeUndefined();
  expect(piecesOf(halves, [masked])).toEqual(halves);
  expect(piecesOf(halves, files.slice(0, 2))).toEqual([halves[0]]);
});

test("after one writer became four, compaction makes files disjoint that were one, rows and tombstones alike", async () => {
  const root = freshRoot();
  const writer = await open(root);
  const write = (id: string, version: number, more: Partial<Write> = {}): Write => ({
    tenant: "acme",
    id,
    version,
    operation: 2,
    content: 1n,
    ...more,
  });
  const ids = Array.from({ length: 400 }, (_, i) => `e${i}`);
  const first = ids.map((id) => write(id, 1));
  const deleted = Array.from({ length: 40 }, (_, i) => write(`gone${i}`, 1, { operation: 3 }));
  await writer.upsert([...first, ...deleted]);
  const claims = [0, 1, 2, 3].map((i) => claimOf(i, 4));
  const later: Write[] = [];
  for (const slots of claims) {
    const isOwn = (one: Write) => holds(slots, writer.slotOf(one));
    const some = ids
      .map((id) => write(id, 2))
      .filter(isOwn)
      .slice(0, 20);
    // So that the partition is not too small to be divided.
    const long = noise();
    some.push(ids.map((id) => write(long + id, 1)).find(isOwn)!);
    later.push(...some);
    await writer.upsert(some, { slots });
  }
  const { table } = writer;
  const crossing = () =>
    table.snapshot.files.filter(({ slots }) => !claims.some((claim) => isWithin(slots, claim)));
  expect(crossing().map(({ rows, tombstones }) => [rows, tombstones])).toEqual([
    [40, true],
    [400, false],
  ]);
  // Masked by all four of them; the tombstones are nobody's to mask.
  expect(planCompaction(table.snapshot, 16, undefined, layoutOf(table))).toEqual(crossing().slice(1));
  for (const source of crossing())
    expect((await compactUpserted(writer.writer, writer.connection, [source])).kind).toBe("compacted");
  expect(crossing()).toEqual([]);
  expect(table.snapshot.files.filter(({ tombstones }) => tombstones)).toHaveLength(4);
  expect(await writer.checkIndex()).toEqual([]);
  expect((await verifyTable(table)).problems).toEqual([]);
  const all = [...first, ...deleted, ...later];
  expect(await writer.rows()).toEqual(expectedRows(all));
  // Deleted stays deleted.
  await writer.upsert(deleted.map((one) => ({ ...one, operation: 2 })));
  expect(await writer.rows()).toEqual(expectedRows(all));
});

test("a file of hundreds of thousands of rows is divided without losing one", async () => {
  const root = freshRoot();
  // Without an index, which would take most of the time.
  const writer = await TableWriter.open(store, duck, root, { ...NEVER, indexBytes: 0 });
  writers.push(writer);
  const { table } = writer;
  // The engine takes in what is appended to it by 204,800 rows.
  const rows = 206_000;
  await Staging.run(table, async (staging) => {
    const sql = `SELECT 'acme' AS tenant_id, md5(i::VARCHAR) AS entity_id, 'v' AS value, 1::BIGINT AS _tributary_version,
        2::TINYINT AS _tributary_operation, i AS _tributary_hash, NULL::TIMESTAMPTZ AS _tributary_occurred_at
      FROM range(${rows}) r(i)`;
    const large = await stageFile(staging, writer.connection, sql, { partition: SHARED_PARTITION });
    await staging.publish([large]);
    const actions = [{ add: large.add }];
    const { version } = table.snapshot;
    const request = { operation: "MERGE", actions, expect: new Map(), basedOn: version } as const;
    await staging.commit({ ...request, serializable: false });
  });
  const [source] = table.snapshot.files;
  for (const half of [claimOf(0, 2), claimOf(1, 2)])
    await writer.upsert([{ tenant: "acme", id: "x", version: 1, operation: 2, content: 1n }], {
      slots: half,
    });
  const { kind } = await duck.with((connection) => compactUpserted(writer.writer, connection, [source!]));
  expect(kind).toBe("compacted");
  expect(table.snapshot.files.filter((one) => one.rows > 1000)).toHaveLength(2);
  const verified = await verifyTable(table);
  expect([verified.rows, verified.problems]).toEqual([rows + 1, []]);
});

/** An id of some 500 kB that does not compress to little. */
const noise = (): string =>
  Array.from({ length: 45_000 }, () => Math.random().toString(36).slice(2)).join("");
