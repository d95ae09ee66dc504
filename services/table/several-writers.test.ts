import { afterEach, expect, test, vi } from "vitest";
import { overriding } from "../../test/support/faulty-store.js";
import { seeds } from "../../test/support/lake.js";
import { claimOf, expectedRows, SPEC, TableWriter, type Write } from "../../test/support/table-writers.js";
import { NEVER, openWorkbench } from "../../test/support/tables.js";
import { writersRound } from "../../test/support/writers-round.js";
import { TributaryError } from "../base/errors.js";
import type { ObjectStore } from "../storage/object-store.js";
import { removeOf } from "./actions.js";
import { compactUpserted } from "./compact.js";
import { KeyIndex } from "./key-index.js";
import { replaceTable } from "./replace.js";
import { verifyTable } from "./verify.js";

const { store, duck, freshRoot } = await openWorkbench();

const writers: TableWriter[] = [];
afterEach(async () => {
  for (const writer of writers.splice(0)) await writer.close();
});

async function open(root: string, options: { store?: ObjectStore; indexBytes?: number } = {}) {
  const { indexBytes } = options;
  const more = indexBytes === undefined ? {} : { indexBytes };
  // A store object of its own: what a process remembers of a table hangs on it.
  const own = overriding(options.store ?? store, {});
  const writer = await TableWriter.open(own, duck, root, { ...NEVER, ...more });
  writers.push(writer);
  return writer;
}

const write = (id: string, version: number, more: Partial<Write> = {}): Write => ({
  tenant: "acme",
  id,
  version,
  operation: 2,
  content: 1n,
  ...more,
});

/** A store that lets the first commit of its writer wait until another writer has been here. */
function interrupted(meanwhile: () => Promise<unknown>, commits = 1): ObjectStore {
  let left = commits;
  return overriding(store, {
    putIfAbsent: async (key, bytes) => {
      if (left > 0 && key.endsWith(".json") && !key.endsWith("00000.json")) {
        left--;
        await meanwhile();
      }
      return store.putIfAbsent(key, bytes);
    },
  });
}

async function expectSound(
  all: readonly TableWriter[],
  writes: readonly Write[],
  indexed = true,
): Promise<void> {
  for (const writer of all) {
    expect(await writer.rows()).toEqual(expectedRows(writes));
    if (indexed) expect(await writer.checkIndex()).toEqual([]);
  }
  expect((await verifyTable(all[0]!.table)).problems).toEqual([]);
}

/** Of one entity: what comes first, and what the overtaken writer has. */
const PAIRS: readonly [string, Partial<Write>, Partial<Write>][] = [
  ["two first writes", { version: 1 }, { version: 2 }],
  ["a first write and a delete", { version: 1 }, { version: 2, operation: 3 }],
  ["a first write and a filtered one", { version: 1 }, { version: 2, content: 5n }],
  ["writes of one version", { content: 1n }, { content: 2n }],
  ["a delete and a write of one version", { content: 7n }, { operation: 3 }],
  ["the same write", {}, {}],
  ["the same delete", { operation: 3 }, { operation: 3 }],
];
const BEFORE: readonly [string, Partial<Write> | undefined][] = [
  ["nothing", undefined],
  ["a row", { content: 9n }],
  ["a delete", { operation: 3 }],
];

test.each([1 << 26, 0])(
  "of two writes of one entity never both stay, whoever comes first (index of %i bytes)",
  async (indexBytes) => {
    const before: Write[] = [];
    const early: Write[] = [];
    const late: Write[] = [];
    for (const [name, ...pair] of PAIRS) {
      for (const [then, standing] of BEFORE) {
        for (const [first, second] of [pair, [pair[1], pair[0]]] as const) {
          const id = `${name}, ${before.length} ${early.length}, after ${then}`;
          if (standing !== undefined) before.push(write(id, 0, standing));
          early.push(write(id, 1, first));
          late.push(write(id, 1, second));
        }
      }
    }
    const root = freshRoot();
    const other = await open(root, { indexBytes });
    await other.upsert([...before, write("other", 1)]);
    const mine = await open(root, {
      indexBytes,
      store: interrupted(() => other.upsert([...early, write("y", 1)])),
    });
    const result = await mine.upsert([...late, write("z", 1)]);
    expect(result).toMatchObject({ kind: "committed", overtaken: 1 });
    const all = [...before, ...early, ...late, ...["other", "y", "z"].map((id) => write(id, 1))];
    await expectSound([mine, other], all, indexBytes > 0);
    // And each knows what stands now.
    for (const [version, writer] of [mine, other].entries()) {
      const next = late.map(({ id }) => write(id, version + 3));
      all.push(...next);
      await writer.table.refresh();
      expect(await writer.upsert(next)).toMatchObject({ live: next.length, overtaken: 0 });
      await expectSound([mine, other], all, indexBytes > 0);
    }
  },
);

test("a batch all of which has lost meanwhile moves positions and leaves no file", async () => {
  const root = freshRoot();
  const other = await open(root);
  await other.upsert([write("a", 1)]);
  const files = other.table.snapshot.files.length;
  const mine = await open(root, {
    store: interrupted(() => other.upsert([write("x", 5), write("y", 5, { operation: 3 })])),
  });
  const to = new Map([["s.0", "1"]]);
  const result = await mine.upsert([write("x", 1), write("y", 1, { operation: 3 })], { to });
  expect(result).toMatchObject({ kind: "committed", live: 0, tombstones: 0, lost: 2 });
  expect(mine.table.snapshot.files).toHaveLength(files + 2);
  const keys: string[] = [];
  for await (const { key } of store.list(`${root}/`)) if (key.endsWith(".parquet")) keys.push(key);
  expect(keys).toHaveLength(files + 2);
  await expectSound([mine, other], [write("a", 1), write("x", 5), write("y", 5, { operation: 3 })]);
});

test("commits about other slots are stepped over, and nothing of them is read", async () => {
  const root = freshRoot();
  const other = await open(root);
  const [low, high] = [claimOf(0, 2), claimOf(1, 2)];
  const ids = Array.from({ length: 40 }, (_, i) => `e${i}`);
  const isLow = (id: string) => other.slotOf(write(id, 1)) < low[0]!.end;
  const lows = ids.filter(isLow).map((id) => write(id, 1));
  const highs = ids.filter((id) => !isLow(id)).map((id) => write(id, 1));
  const mine = await open(root, {
    store: interrupted(() => other.upsert(highs, { slots: high })),
  });
  expect(await mine.upsert(lows, { slots: low })).toMatchObject({ kind: "committed", overtaken: 0 });
  expect(await mine.checkIndex(low)).toEqual([]);
  expect(mine.writer.locator.indexedKeys).toBe(lows.length);
  expect(await mine.rows()).toEqual(expectedRows([...lows, ...highs]));
  // Claims change hands: what is lacking is read, what was lost is dropped in the end.
  const next = ids.map((id) => write(id, 2));
  await mine.upsert(next, { slots: high });
  expect(mine.writer.locator.indexedKeys).toBe(ids.length);
  for (let batch = 0; batch < 16; batch++) await mine.upsert([next[0]!], { slots: high });
  expect(mine.writer.locator.indexedKeys).toBe(highs.length);
  expect(mine.writer.locator.loads).toBe(1);
  expect(await mine.rows()).toEqual(expectedRows(next));
  expect(await mine.checkIndex(high)).toEqual([]);
  expect((await verifyTable(mine.table)).problems).toEqual([]);
});

test("six writers with alternating rows never read the index anew, whatever the others do", async () => {
  const root = freshRoot();
  const all: TableWriter[] = [];
  for (let i = 0; i < 6; i++) all.push(await open(root));
  const done: Write[] = [];
  for (let round = 0; round < 6; round++) {
    for (const [i, writer] of all.entries()) {
      const some = [write("shared", round * 6 + i), write(`own-${i}`, round)];
      if (i % 3 === 2) some.push(write(`gone-${round}`, 1, { operation: 3 }));
      done.push(...some);
      // Of a change of metadata a writer learns by a conflict.
      if (round === 4) await writer.table.refresh();
      expect(await writer.upsert(some)).toMatchObject({ kind: "committed" });
    }
    const writer = all[round]!;
    await writer.table.refresh();
    for (const tombstones of [false, true]) {
      const files = writer.table.snapshot.files.filter((file) => file.tombstones === tombstones);
      if (round % 3 === 2 && files.length > 1) {
        const { kind } = await compactUpserted(writer.writer, writer.connection, files);
        expect(kind).toBe("compacted");
      }
    }
    if (round === 3) await redefine(all[0]!);
  }
  await expectSound(all, done);
  expect(all.map(({ writer }) => writer.locator.loads)).toEqual([1, 1, 1, 1, 1, 1]);
});

test("an index that has no room for what its writer claims by now keeps what it has, and the rest is looked up", async () => {
  const root = freshRoot();
  const other = await open(root);
  const writes = Array.from({ length: 1200 }, (_, i) => write(`k${i}`, 1));
  await other.upsert(writes);
  // Half of the entities take so much, all of them do not.
  const mine = await open(root, { indexBytes: 80 * 1024 });
  const next = (at: number) => writes.slice(at, at + 1).map(({ id }) => write(id, 2));
  await mine.upsert(next(0), { slots: claimOf(0, 2) });
  const held = mine.writer.locator.indexedKeys;
  expect(held).toBeGreaterThan(400);
  const put = vi.spyOn(KeyIndex.prototype, "put");
  await mine.upsert(next(1));
  expect(put.mock.calls.length).toBeLessThan(50);
  put.mockRestore();
  expect(mine.writer.locator.indexedKeys).toBeGreaterThanOrEqual(held!);
  const all = [...writes, ...next(0), ...next(1)];
  await other.upsert([write("k2", 2)]);
  await mine.upsert([write("k3", 2), write("k2", 1)], { slots: claimOf(1, 2) });
  await expectSound([mine, other], [...all, write("k2", 2), write("k3", 2)], false);
});

test("a compaction of what others have put in meanwhile leaves the index right", async () => {
  const root = freshRoot();
  const [mine, other] = [await open(root), await open(root)];
  const writes = [write("x", 1), write("y", 1)];
  await mine.upsert(writes);
  await other.table.refresh();
  const more = [write("x", 2), write("z", 2)];
  await other.upsert(more);
  // Its index has not seen the other's file, which the new one takes in.
  const { files } = await mine.table.refresh();
  const newest = files.find(({ maskedRows }) => maskedRows === 0);
  expect((await compactUpserted(mine.writer, mine.connection, [newest!])).kind).toBe("compacted");
  await expectSound([mine, other], [...writes, ...more]);
  const next = ["x", "y", "z"].map((id) => write(id, 3));
  expect(await mine.upsert(next)).toMatchObject({ kind: "committed", live: 3 });
  await expectSound([mine, other], next);
  expect([mine, other].map(({ writer }) => writer.locator.loads)).toEqual([1, 1]);
});

test("masks of a commit whose answer was lost are not taken for those of the writer that came after it", async () => {
  const root = freshRoot();
  const other = await open(root);
  const writes = [write("a", 1), write("b", 1), write("c", 1)];
  await other.upsert(writes);
  let lost = false;
  const mine = await open(root, {
    store: overriding(store, {
      putIfAbsent: async (key, bytes) => {
        const outcome = await store.putIfAbsent(key, bytes);
        if (lost || !key.endsWith("00002.json")) return outcome;
        lost = true;
        // Both mask the same file.
        await other.table.refresh();
        await other.upsert([write("b", 2)]);
        throw new TributaryError("TRB-STORE-FAILED");
      },
    }),
  });
  expect(await mine.upsert([write("a", 2)])).toMatchObject({ kind: "committed", version: 2 });
  expect(lost).toBe(true);
  expect(await mine.upsert([write("c", 2)])).toMatchObject({ kind: "committed", version: 4 });
  await other.table.refresh();
  await expectSound([mine, other], [...writes, ...["a", "b", "c"].map((id) => write(id, 2))]);
});

test("a compaction that others overtake again and again keeps upserts of its own process waiting for one try", async () => {
  const root = freshRoot();
  const other = await open(root);
  const writes = Array.from({ length: 12 }, (_, i) => write(`e${i}`, 1));
  await other.upsert(writes.slice(0, 6));
  await other.upsert(writes.slice(6));
  let tries = 0;
  let own: Promise<number> | undefined;
  const overtaken = overriding(store, {
    putIfAbsent: async (key, bytes) => {
      if (key.endsWith(".json") && Buffer.from(bytes).includes("OPTIMIZE") && ++tries <= 5) {
        // Of both sources a row is masked.
        writes.push(write(`e${tries}`, 2), write(`e${tries + 6}`, 2));
        await other.upsert(writes.slice(-2));
        own ??= mine.upsert([write("d", 1)]).then(() => tries);
      }
      return store.putIfAbsent(key, bytes);
    },
  });
  const mine = await open(root, { store: overtaken });
  const sources = mine.table.snapshot.files;
  // Upserts have a connection of their own: rows that are still being fetched would be lost by a statement in between.
  const { kind } = await duck.with((connection) => compactUpserted(mine.writer, connection, sources));
  expect(kind).toBe("compacted");
  expect(tries).toBe(6);
  expect(await own).toBe(1);
  await other.table.refresh();
  await expectSound([mine], [...writes, write("d", 1)]);
});

test("entities of files that somebody has deleted stand nowhere any more, without a look at the rest", async () => {
  const root = freshRoot();
  const [mine, other] = [await open(root), await open(root)];
  const deleted = [write("x", 5), write("y", 5)];
  await mine.upsert(deleted);
  await mine.upsert([write("z", 5)]);
  const { files, version } = await other.table.refresh();
  const remove = removeOf(files.find(({ rows }) => rows === 2)!.add, Date.now(), true);
  const request = {
    operation: "DELETE",
    actions: [{ remove }],
    expect: new Map(),
    basedOn: version,
  } as const;
  expect(await other.table.commit({ ...request, serializable: true })).toMatchObject({ kind: "committed" });
  expect(await mine.checkIndex()).toEqual([]);
  // What was greater is gone.
  expect(await mine.upsert([write("x", 1), write("z", 1)])).toMatchObject({ live: 1, lost: 1 });
  await expectSound([mine, other], [write("x", 1), write("z", 5)]);
  expect(mine.writer.locator.loads).toBe(1);
});

test("a table that another has taken the place of is read anew", async () => {
  const root = freshRoot();
  const [mine, other] = [await open(root), await open(root)];
  await mine.upsert([write("x", 5), write("y", 5)]);
  const side = await open(`${root}/side`);
  const built = [write("x", 3), write("z", 3, { operation: 3 })];
  await side.upsert(built);
  await other.table.refresh();
  const also = { actions: [], expect: new Map() };
  const replaced = await replaceTable(other.table, side.table, "side", SPEC, also);
  expect(replaced).toMatchObject({ kind: "committed" });
  // What it had prepared was for the old one.
  expect(await mine.upsert([write("y", 4)])).toEqual({ kind: "conflict", reason: "metadata" });
  await mine.table.refresh();
  expect(await mine.upsert([write("x", 4), write("z", 2)])).toMatchObject({ live: 1, lost: 1 });
  await expectSound([mine, other], [...built, write("x", 4)]);
  expect(mine.writer.locator.loads).toBe(2);
});

/** A commit that changes metadata alone. */
async function redefine({ table }: TableWriter): Promise<void> {
  const { version } = await table.refresh();
  const configuration = { ...table.metaData.configuration, "tributary.note": "x" };
  const actions = [{ metaData: { ...table.metaData, configuration } }];
  const request = { operation: "REPAIR", actions, expect: new Map(), basedOn: version } as const;
  expect(await table.commit({ ...request, serializable: false })).toMatchObject({ kind: "committed" });
}

test("in any interleaving the table is what the writes say, and every index what the table says", async () => {
  for (const seed of seeds(2)) {
    console.info(`several writers: TRIBUTARY_SEED=${seed}`);
    expect((await writersRound(seed, store, duck, freshRoot())).steps).toBeGreaterThan(50);
  }
}, 120_000);

test("a compaction of tombstones that others have put in meanwhile keeps what is deleted deleted", async () => {
  const root = freshRoot();
  const [mine, other] = [await open(root), await open(root)];
  const writes = [
    write("a", 5),
    write("b", 5),
    write("a", 9, { operation: 3 }),
    write("b", 9, { operation: 3 }),
  ];
  await mine.upsert(writes.slice(0, 2));
  await other.upsert(writes.slice(2, 3));
  await other.upsert(writes.slice(3));
  const { files } = await mine.table.refresh();
  const tombstones = files.filter((file) => file.tombstones);
  expect(tombstones).toHaveLength(2);
  expect((await compactUpserted(mine.writer, mine.connection, tombstones)).kind).toBe("compacted");
  const late = [write("a", 7), write("b", 7)];
  await mine.upsert(late);
  await expectSound([mine, other], [...writes, ...late]);
});
