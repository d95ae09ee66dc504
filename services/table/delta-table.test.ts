import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { type Fault, FaultyStore, overriding } from "../../test/support/faulty-store.js";
import { Random, seeds } from "../../test/support/lake.js";
import { commit, NEVER, openWorkbench } from "../../test/support/tables.js";
import type { ObjectStore } from "../storage/object-store.js";
import { type Action, type AddAction, removeOf } from "./actions.js";
import { definition, type TableSpec } from "./definition.js";
import { encodeVector, encodeVectorFile, vectorFileName } from "./deletion-vector.js";
import { listLog } from "./delta-log.js";
import { DeltaTable } from "./delta-table.js";
import { advancePositions, positionsOf } from "./progress.js";
import { setLogAside } from "./repair.js";
import type { TableSnapshot } from "./types.js";
import { encodeZ85 } from "./z85.js";

const { store, duck, freshRoot } = await openWorkbench();

const SPEC: TableSpec = {
  columns: [
    { name: "id", type: "string", nullable: false, description: 'it\'s "quoted"' },
    { name: "tags", type: { type: "array", elementType: "string", containsNull: true }, nullable: true },
  ],
  partitionColumns: [],
  properties: { "delta.enableDeletionVectors": "true" },
  protocol: {
    minReaderVersion: 3,
    minWriterVersion: 7,
    readerFeatures: ["deletionVectors"],
    writerFeatures: ["deletionVectors", "domainMetadata"],
  },
  description: "A table.",
};
const open = (root: string, options = NEVER, from = store) =>
  DeltaTable.openOrCreate(from, root, duck, options, SPEC);

let names = 0;
const addOf = (rows = 10, dataChange = true): AddAction => ({
  path: `a%20b/part-${++names}.parquet`,
  partitionValues: { tenant_partition: names % 5 === 0 ? null : "~shared" },
  size: 1000 + names,
  modificationTime: 1_700_000_000_000 + names,
  dataChange,
  stats: JSON.stringify({ numRecords: rows, tightBounds: true, minValues: { id: 'a"\\\n' }, maxValues: {} }),
  ...(names % 3 === 0 ? { tags: { "tributary.kind": "tombstones" } } : {}),
});

/** Everything a snapshot says, in one form. */
const told = (snapshot: TableSnapshot) => ({
  ...snapshot,
  files: [...snapshot.files]
    .sort((a, b) => (a.path < b.path ? -1 : 1))
    .map(({ add, ...file }) => ({
      ...file,
      add: { ...add, dataChange: undefined, partitionValues: undefined },
    })),
  domains: [...snapshot.domains].sort(),
  properties: [...snapshot.properties].sort(),
  // What an object of the table has seen, and not what stands in its log.
  replacedAt: undefined,
});

async function randomCommit(table: DeltaTable, random: Random): Promise<void> {
  const { files, version } = table.snapshot;
  const actions: Action[] = [];
  for (let i = random.below(4); i > 0; i--) actions.push({ add: addOf(1 + random.below(100)) });
  const touched = random.shuffle(files).slice(0, random.below(3));
  for (const { add } of touched) {
    actions.push({ remove: removeOf(add, Date.now(), true) });
    if (random.chance(0.6)) {
      const vector = {
        storageType: "u",
        pathOrInlineDv: "^-aqEH.-t@S}K{vb[*k^",
        offset: 1 + version * 100 + actions.length,
        sizeInBytes: 40,
        cardinality: 1,
      } as const;
      actions.push({ add: { ...add, deletionVector: vector } });
    }
  }
  const domain = `tributary.pos.s.${random.below(4)}`;
  if (random.chance(0.7)) {
    const removed = random.chance(0.2);
    const configuration = JSON.stringify({ position: "9".repeat(56), say: `'"\\${version}` });
    actions.push({ domainMetadata: { domain, configuration: removed ? "" : configuration, removed } });
  }
  if (random.chance(0.1)) {
    actions.push(
      ...definition({ ...SPEC, properties: { x: String(version) }, description: "New." }, table.id),
    );
  }
  const result = await commit(table, random.shuffle(actions));
  expect(result.kind).toBe("committed");
}

describe("a table's log", () => {
  test("replayed from a log checkpoint and what follows, says what it says from the start", async () => {
    for (const seed of seeds(4)) {
      const random = new Random(seed);
      const root = freshRoot();
      const every = 1 + random.below(4);
      const table = await open(root, { checkpointEvery: every });
      for (let i = 0; i < 8 + random.below(20); i++) await randomCommit(table, random);
      await table.settled();
      const blind: ObjectStore = overriding(store, {
        get: (key: string) =>
          key.endsWith("_last_checkpoint") ? Promise.resolve(undefined) : store.get(key),
      });
      const fromStart = (await DeltaTable.open(blind, root, duck, NEVER))!;
      const fromCheckpoint = (await DeltaTable.open(store, root, duck, NEVER))!;
      expect(await store.get(`${root}/_delta_log/_last_checkpoint`), `seed ${seed}`).toBeDefined();
      expect(told(fromCheckpoint.snapshot), `seed ${seed}`).toEqual(told(fromStart.snapshot));
      expect(told(table.snapshot), `seed ${seed}, the writer's own`).toEqual(told(fromStart.snapshot));
      expect(fromCheckpoint.id).toBe(table.id);
      await randomCommit(fromCheckpoint, random);
      await table.refresh();
      expect(told(table.snapshot), `seed ${seed}, one more`).toEqual(told(fromCheckpoint.snapshot));
    }
  });

  test("has one maker", async () => {
    const root = freshRoot();
    const made = await Promise.all(Array.from({ length: 8 }, () => open(root)));
    expect(new Set(made.map(({ id }) => id)).size).toBe(1);
    expect(made[0]!.snapshot.version).toBe(0);
    expect(await DeltaTable.open(store, freshRoot(), duck, NEVER)).toBeUndefined();
  });

  test("keeps removed files for as long as its readers may need them, and no longer", async () => {
    const root = freshRoot();
    const hour = { "delta.deletedFileRetentionDuration": "interval 1 hours" };
    const table = await DeltaTable.openOrCreate(store, root, duck, NEVER, { ...SPEC, properties: hour });
    const ago = (ms: number) => Date.now() - ms;
    for (let round = 0; round < 3; round++) {
      const adds = Array.from({ length: 800 }, () => addOf());
      await commit(
        table,
        adds.map((add) => ({ add })),
      );
      const removed = adds.map((add, i) => ({
        remove: removeOf(add, ago(i < 700 ? 7_200_000 : 60_000), true),
      }));
      await commit(table, removed);
    }
    await table.refresh();
    await table.checkpoint();
    const key = `${root}/_delta_log/${String(table.snapshot.version).padStart(20, "0")}.checkpoint.parquet`;
    const [[kept]] = (await store.withLocal([key], ([path]) =>
      duck.with(async (connection) =>
        (await connection.runAndReadAll(`SELECT count(remove.path) FROM read_parquet('${path}')`)).getRows(),
      ),
    )) as [[bigint]];
    expect(Number(kept)).toBeGreaterThanOrEqual(300);
    expect(Number(kept)).toBeLessThan(2400);
  });
});

describe("a conflict is returned", () => {
  test("as position, when a position was moved by another", async () => {
    const root = freshRoot();
    const [a, b] = [await open(root), await open(root)];
    const move = (table: DeltaTable, from: string | undefined, to: string) => {
      const before = new Map(from === undefined ? [] : [["0", from]]);
      const { actions, expect: expected } = advancePositions("s", before, new Map([["0", to]]));
      const basedOn = table.snapshot.version;
      return table.commit({ operation: "WRITE", actions, expect: expected, basedOn, serializable: false });
    };
    expect(await move(a, undefined, "5")).toEqual({ kind: "committed", version: 1 });
    expect(await move(b, undefined, "7")).toEqual({ kind: "conflict", reason: "position" });
    expect(positionsOf(b.snapshot, "s")).toEqual(new Map([["0", "5"]]));
    expect(await move(b, "5", "7")).toEqual({ kind: "committed", version: 2 });
    expect(() => advancePositions("s", new Map([["0", "7"]]), new Map([["0", "7"]]))).toThrow(/grow/);
  });

  test("as file, when a file or its vector is not what it was", async () => {
    const root = freshRoot();
    const [a, b] = [await open(root), await open(root)];
    const add = addOf();
    await commit(a, [{ add }]);
    const vector = {
      storageType: "u",
      pathOrInlineDv: "^-aqEH.-t@S}K{vb[*k^",
      sizeInBytes: 1,
      cardinality: 1,
    } as const;
    await commit(a, [{ remove: removeOf(add, 0, true) }, { add: { ...add, deletionVector: vector } }]);
    const remove = { remove: removeOf(add, 0, false) };
    expect(await commit(b, [remove])).toEqual({ kind: "conflict", reason: "file" });
    await commit(a, [{ remove: removeOf({ ...add, deletionVector: vector }, 0, true) }]);
    expect(await commit(b, [remove])).toEqual({ kind: "conflict", reason: "file" });
  });

  test("as metadata, when the schema or a property has changed", async () => {
    const root = freshRoot();
    const [a, b] = [await open(root), await open(root)];
    await commit(a, definition({ ...SPEC, properties: { x: "1" } }, a.id));
    expect(await commit(b, [{ add: addOf() }])).toEqual({ kind: "conflict", reason: "metadata" });
  });

  test("as version, when a serializable commit comes after any other; an append steps over it", async () => {
    const root = freshRoot();
    const [a, b] = [await open(root), await open(root)];
    await commit(a, []);
    expect(await commit(b, [{ add: addOf() }], { serializable: true })).toEqual({
      kind: "conflict",
      reason: "version",
    });
    const c = await open(root);
    await commit(a, []);
    expect(await commit(c, [{ add: addOf() }])).toEqual({ kind: "committed", version: 3 });
  });

  test("to all but one of many that race for a position, many times over", async () => {
    const root = freshRoot();
    const tables = await Promise.all([1, 2, 3, 4].map(() => open(root)));
    for (let round = 1; round <= 40; round++) {
      const to = String(round).padStart(4, "0");
      const from = round === 1 ? undefined : String(round - 1).padStart(4, "0");
      const results = await Promise.all(
        tables.map((table) => {
          const before = new Map(from === undefined ? [] : [["0", from]]);
          const { actions, expect: expected } = advancePositions("s", before, new Map([["0", to]]));
          const all = [{ add: addOf() }, ...actions];
          const basedOn = table.snapshot.version;
          return table.commit({
            operation: "WRITE",
            actions: all,
            expect: expected,
            basedOn,
            serializable: round % 2 === 0,
          });
        }),
      );
      expect(
        results.filter(({ kind }) => kind === "committed"),
        `round ${round}`,
      ).toHaveLength(1);
    }
    const fresh = (await DeltaTable.open(store, root, duck, NEVER))!;
    expect(fresh.snapshot.files).toHaveLength(40);
    expect(fresh.snapshot.version).toBe(40);
  });
});

describe("an ambiguous commit", () => {
  for (const fault of ["fails", "happens-and-fails"] as const satisfies readonly Fault[]) {
    test(`that ${fault} is settled by reading back: it stands once`, async () => {
      for (let at = 0; at < 6; at++) {
        const root = freshRoot();
        await open(root);
        const faulty = new FaultyStore(store);
        const table = await open(root, NEVER, faulty.store);
        faulty.arm(at, fault);
        const add = addOf();
        const result = await commit(table, [{ add }]).catch(() => undefined);
        faulty.disarm();
        const fresh = (await DeltaTable.open(store, root, duck, NEVER))!;
        // A read that fails leaves nothing behind; a put that fails is tried again.
        const stands = fresh.snapshot.files.length;
        expect(stands, `operation ${at} (${faulty.victim})`).toBe(result === undefined ? 0 : 1);
        if (faulty.victim === "putIfAbsent") expect(stands).toBe(1);
        await commit(table, []);
        expect(told(await table.refresh()).files).toEqual(told(await fresh.refresh()).files);
      }
    });
  }

  test("whose put comes through late is known for its own", async () => {
    for (const others of [false, true]) {
      const root = freshRoot();
      const other = await open(root);
      let late: (() => Promise<unknown>) | undefined;
      const slow: ObjectStore = overriding(store, {
        get: async (key: string) => {
          const found = await store.get(key);
          // Right after the writer has looked in vain, the put arrives.
          if (found === undefined && late !== undefined) {
            const put = late;
            late = undefined;
            if (others) await commit(other, [{ add: addOf() }]);
            await put();
          }
          return found;
        },
        putIfAbsent: (key: string, bytes: Uint8Array) => {
          if (late === undefined && attempts++ === 0) {
            late = () => store.putIfAbsent(key, bytes);
            return Promise.reject(new Error("no answer"));
          }
          return store.putIfAbsent(key, bytes);
        },
      });
      let attempts = 0;
      const table = (await DeltaTable.open(slow, root, duck, NEVER))!;
      const result = await commit(table, [{ add: addOf() }], { serializable: !others });
      expect(result.kind).toBe("committed");
      const { files } = await other.refresh();
      expect(files).toHaveLength(others ? 2 : 1);
    }
  });

  test("that never gets an answer is told as TRB-STORE-FAILED's cause, and the table goes on", async () => {
    const root = freshRoot();
    let down = true;
    const flaky: ObjectStore = overriding(store, {
      putIfAbsent: (key: string, bytes: Uint8Array) =>
        down ? Promise.reject(new Error("down")) : store.putIfAbsent(key, bytes),
    });
    await open(root);
    const table = (await DeltaTable.open(flaky, root, duck, NEVER))!;
    await expect(commit(table, [])).rejects.toThrow("down");
    down = false;
    expect((await commit(table, [])).kind).toBe("committed");
  });
});

describe("log checkpoints", () => {
  test("that cannot be written do not undo the commit, and are tried again", async () => {
    const root = freshRoot();
    let down = true;
    const flaky: ObjectStore = overriding(store, {
      adopt: (files: Parameters<ObjectStore["adopt"]>[0]) =>
        down ? Promise.reject(new Error("down")) : store.adopt(files),
    });
    const table = await open(root, { checkpointEvery: 2 }, flaky);
    for (let i = 0; i < 3; i++) {
      expect((await commit(table, [{ add: addOf() }])).kind).toBe("committed");
      await table.settled();
    }
    expect(await store.get(`${root}/_delta_log/_last_checkpoint`)).toBeUndefined();
    down = false;
    expect((await commit(table, [])).kind).toBe("committed");
    await table.settled();
    expect(await store.get(`${root}/_delta_log/_last_checkpoint`)).toBeDefined();
    expect((await DeltaTable.open(store, root, duck, NEVER))!.snapshot.files).toHaveLength(3);
  });

  test("come the less often the more they hold, so that a commit pays for no more than some records", async () => {
    const root = freshRoot();
    const table = await open(root, { checkpointEvery: 1 });
    const written: number[] = [];
    for (let version = 1; version <= 6; version++) {
      const adds = Array.from({ length: version === 1 ? 450 : 1 }, () => ({ add: addOf() }));
      await commit(table, adds);
      await table.settled();
      const { checkpoints } = await listLog({ store, root, duck });
      if (checkpoints[0]?.version === version) written.push(version);
    }
    expect(written).toEqual([3, 6]);
  });
});

test("a mask that could not be read is read again, not remembered", async () => {
  const root = freshRoot();
  let down = true;
  const flaky = overriding(store, {
    getRange: (key, start, end) =>
      down ? Promise.reject(new Error("down")) : store.getRange(key, start, end),
  });
  const uuid = randomUUID();
  const { bytes, descriptors } = encodeVectorFile(uuid, [Uint32Array.from([2, 5])]);
  await store.put(`${root}/${vectorFileName(uuid)}`, bytes);
  const table = await open(root, NEVER, flaky);
  await commit(table, [{ add: { ...addOf(), deletionVector: descriptors[0]! } }]);
  const [file] = table.snapshot.files;
  await expect(table.mask(file!)).rejects.toThrow("down");
  down = false;
  expect([...(await table.mask(file!))!.toRows()]).toEqual([2, 5]);
});

test("inline vectors of files alike in what is masked, and not in how many rows they have, are two masks", async () => {
  const table = await open(freshRoot());
  const payload = encodeVector(Uint32Array.of(0, 2));
  const padded = Buffer.concat([payload, Buffer.alloc((4 - (payload.length % 4)) % 4)]);
  const vector = {
    storageType: "i",
    pathOrInlineDv: encodeZ85(padded),
    sizeInBytes: payload.length,
    cardinality: 2,
  } as const;
  const actions = [3, 30].map((rows) => ({ add: { ...addOf(rows), deletionVector: vector } }));
  await commit(table, actions);
  const masks = await Promise.all(table.snapshot.files.map((file) => table.mask(file)));
  expect(masks.map((mask) => mask!.rows)).toEqual([3, 30]);
});

test("commits of who knows the table from before its log was set aside are not taken for its own, nor it theirs", async () => {
  const root = freshRoot();
  const add = async (table: DeltaTable) => commit(table, [{ add: addOf() }]);
  const before = await open(root);
  await add(before);
  await add(before);
  await setLogAside(store, root);
  const anew = await open(root);
  expect(await add(before)).toEqual({ kind: "committed", version: 3 });
  await add(anew);
  await add(anew);
  await expect(add(anew)).rejects.toMatchObject({ code: "TRB-TABLE-CORRUPT", details: { commit: 3 } });
  expect(anew.snapshot.files).toHaveLength(2);

  const other = freshRoot();
  const late = await open(other);
  await setLogAside(store, other);
  const next = await open(other);
  for (let i = 0; i < 2; i++) await add(next);
  await expect(late.refresh()).rejects.toMatchObject({ code: "TRB-TABLE-CORRUPT" });
  await expect(add(late)).rejects.toMatchObject({ code: "TRB-TABLE-CORRUPT" });
});
