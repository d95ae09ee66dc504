import { copyFileSync, readFileSync, writeFileSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, test, vi } from "vitest";
import { overriding } from "../../test/support/faulty-store.js";
import { commit, NEVER, openWorkbench } from "../../test/support/tables.js";
import { literal, rowsOf } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import type { ObjectStore } from "../storage/object-store.js";
import { type Action, type AddAction, checkpointKey, commitKey, encodeCommit, removeOf } from "./actions.js";
import type { TableSpec } from "./definition.js";
import { listLog, readCommit } from "./delta-log.js";
import { DeltaTable } from "./delta-table.js";
import { hintKey } from "./log-checkpoint.js";
import { COMMIT_TIMES, TableState } from "./state.js";

const { folder, store, duck, freshRoot } = await openWorkbench();

const SPEC: TableSpec = {
  columns: [{ name: "id", type: "string", nullable: true }],
  partitionColumns: [],
  properties: { [COMMIT_TIMES]: "true", "delta.enableDeletionVectors": "true" },
  protocol: {
    minReaderVersion: 3,
    minWriterVersion: 7,
    readerFeatures: ["deletionVectors"],
    writerFeatures: ["deletionVectors", "domainMetadata", "inCommitTimestamp"],
  },
};
let names = 0;
const create = (root: string, spec = SPEC) => DeltaTable.openOrCreate(store, root, duck, NEVER, spec);
const open = (root: string) => DeltaTable.open(store, root, duck, NEVER);
const addOf = (stats: string | undefined = '{"numRecords":3}'): AddAction => ({
  path: `part-${++names}.parquet`,
  partitionValues: {},
  size: 10,
  modificationTime: 1,
  dataChange: true,
  ...(stats === "" ? {} : { stats }),
});
const pathOf = (key: string) => join(folder, "lake", key);
const paths = (table: DeltaTable | undefined) => table!.snapshot.files.map(({ path }) => path).sort();

/** Versions 0–6, log checkpoints at 2 and 4. */
async function sixCommits(): Promise<{ root: string; expected: string[] }> {
  const root = freshRoot();
  const table = await create(root);
  for (let version = 1; version <= 6; version++) {
    await commit(table, [{ add: addOf() }]);
    if (version === 2 || version === 4) await table.checkpoint();
  }
  return { root, expected: paths(table) };
}

describe("a table opens", () => {
  const damages: Record<string, (root: string) => unknown> = {
    "with a torn hint": (root) => writeFileSync(pathOf(hintKey(root)), '{"version":'),
    "with a hint that makes no sense": (root) => writeFileSync(pathOf(hintKey(root)), '{"version":"x"}'),
    "with a hint to a checkpoint that never was": (root) =>
      writeFileSync(pathOf(hintKey(root)), '{"version":99}'),
    "without a hint": (root) => rm(pathOf(hintKey(root))),
    "with its newest log checkpoint lost": (root) => rm(pathOf(checkpointKey(root, 4))),
    "with its newest log checkpoint damaged": async (root) => {
      await rm(pathOf(checkpointKey(root, 4)));
      writeFileSync(pathOf(checkpointKey(root, 4)), "PAR1 no");
    },
    "with all log checkpoints lost, from its commits": async (root) => {
      await rm(pathOf(checkpointKey(root, 4)));
      await rm(pathOf(checkpointKey(root, 2)));
    },
    "with its newest log checkpoint lost and early commits cleaned up": async (root) => {
      await rm(pathOf(checkpointKey(root, 4)));
      await rm(pathOf(commitKey(root, 0)));
      await rm(pathOf(commitKey(root, 1)));
    },
    "without a hint and with early commits cleaned up": async (root) => {
      await rm(pathOf(hintKey(root)));
      await rm(pathOf(commitKey(root, 0)));
    },
    "with a newer log checkpoint of which a part is missing": async (root) => {
      const part = "00000000000000000005.checkpoint.0000000001.0000000002.parquet";
      copyFileSync(pathOf(checkpointKey(root, 2)), pathOf(`${root}/_delta_log/${part}`));
      await rm(pathOf(hintKey(root)));
      await rm(pathOf(commitKey(root, 0)));
    },
    "with a torn commit that a log checkpoint covers, whatever the hint says": async (root) => {
      await rm(pathOf(commitKey(root, 3)));
      writeFileSync(pathOf(commitKey(root, 3)), "{not");
      writeFileSync(pathOf(hintKey(root)), '{"version":2}');
    },
  };
  test.each(Object.keys(damages))("%s", async (name) => {
    const { root, expected } = await sixCommits();
    await damages[name]!(root);
    expect(paths(await open(root))).toEqual(expected);
    const writer = await create(root);
    await commit(writer, [{ add: addOf() }]);
    expect(paths(await open(root))).toHaveLength(7);
  });
});

test("a store that fails does not take the time of the newest commit away from a log checkpoint", async () => {
  const root = freshRoot();
  const table = await create(root);
  const ahead = vi.spyOn(Date, "now").mockReturnValue(4_000_000_000_000);
  await commit(table, [{ add: addOf() }]);
  ahead.mockRestore();
  await table.checkpoint();
  let failures = 1;
  const flaky = overriding(store, {
    get: (key) =>
      key === commitKey(root, 1) && failures-- > 0
        ? Promise.reject(new TributaryError("TRB-STORE-FAILED"))
        : store.get(key),
  });
  const opening = DeltaTable.openOrCreate(flaky, root, duck, NEVER, SPEC);
  await expect(opening).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
  await commit(await DeltaTable.openOrCreate(flaky, root, duck, NEVER, SPEC), [{ add: addOf() }]);
  const times = await Promise.all(
    [1, 2].map(
      async (version) => (await readCommit(store, root, version))![0]!.commitInfo!.inCommitTimestamp!,
    ),
  );
  expect(times[1]).toBeGreaterThan(times[0]!);
});

test.each([
  ["", undefined],
  [" while it looks for another way", '{"version":99}'],
])("a store that fails is no damage to step over%s", async (_, hint) => {
  const { root, expected } = await sixCommits();
  if (hint !== undefined) writeFileSync(pathOf(hintKey(root)), hint);
  let failures = 1;
  const flaky = overriding(store, {
    get: (key) =>
      key === commitKey(root, 5) && failures-- > 0
        ? Promise.reject(new TributaryError("TRB-STORE-FAILED", "down"))
        : store.get(key),
  });
  await expect(DeltaTable.open(flaky, root, duck, NEVER)).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
  expect(paths(await DeltaTable.open(flaky, root, duck, NEVER))).toEqual(expected);
});

describe("a table that cannot be opened says what is amiss", () => {
  const torn = async (root: string, text: string) => {
    await rm(pathOf(commitKey(root, 6)));
    writeFileSync(pathOf(commitKey(root, 6)), text);
  };
  const refusals: Record<string, { damage(root: string): unknown; details?: object; says: RegExp }> = {
    "a torn commit": {
      damage: (root) => torn(root, '{"add":{"path":"x'),
      details: { commit: 6 },
      says: /commit 6: it is not readable/,
    },
    "an empty commit": {
      damage: (root) => torn(root, ""),
      details: { commit: 6 },
      says: /commit 6: its commitInfo is missing; it is torn/,
    },
    "a commit torn between two actions": {
      damage: (root) => {
        const lines = readFileSync(pathOf(commitKey(root, 6)), "utf8")
          .trimEnd()
          .split("\n");
        return torn(root, `${lines.slice(0, -1).join("\n")}\n`);
      },
      details: { commit: 6 },
      says: /commit 6: it has \d+ of \d+ actions; it is torn/,
    },
    "a commit of something else": {
      damage: (root) => torn(root, "42\n"),
      details: { commit: 6 },
      says: /commit 6/,
    },
    "no log checkpoint and no early commits": {
      damage: async (root) => {
        for (const version of [2, 4]) await rm(pathOf(checkpointKey(root, version)));
        await rm(pathOf(commitKey(root, 0)));
      },
      says: /no log checkpoint is readable, and the commits do not reach back to the first/,
    },
  };
  test.each(Object.keys(refusals))("%s", async (name) => {
    const { root } = await sixCommits();
    const { damage, details, says } = refusals[name]!;
    await damage(root);
    const error = await open(root).then(undefined, (error: unknown) => error);
    expect(error).toMatchObject({ code: "TRB-TABLE-CORRUPT", ...(details === undefined ? {} : { details }) });
    expect((error as Error).message).toMatch(says);
  });

  test("a lost commit, to a writer, who would else make it anew below the later ones", async () => {
    const { root } = await sixCommits();
    await rm(pathOf(commitKey(root, 5)));
    await expect(create(root)).rejects.toMatchObject({ code: "TRB-TABLE-CORRUPT", details: { commit: 5 } });
    const { commits, checkpoints } = await listLog({ store, root, duck });
    expect(commits).toEqual([0, 1, 2, 3, 4, 6]);
    expect(checkpoints.map(({ version }) => version)).toEqual([4, 2]);
  });
});

test("a commit is taken in as a whole or not at all", () => {
  const state = new TableState();
  const metaData = {
    id: "x",
    format: { provider: "parquet", options: {} },
    schemaString: '{"type":"struct","fields":[]}',
    partitionColumns: [],
    configuration: {},
  };
  const protocol = { minReaderVersion: 1, minWriterVersion: 2 };
  const add = addOf();
  expect(() => state.apply(0, [{ add }])).toThrow(/no protocol or metaData/);
  state.apply(0, [{ protocol }, { metaData }, { add }]);
  const before = state.snapshot();
  const wrong: Action[][] = [
    [{ remove: removeOf(add, 0, true) }, { add: addOf("{not json") }],
    [{ remove: removeOf(add, 0, true) }, { add: { ...addOf(), path: "%" } }],
    [{ remove: removeOf(add, 0, true) }, { protocol: { ...protocol, readerFeatures: ["unheardOf"] } }],
    [{ remove: removeOf(add, 0, true) }, { metaData: { ...metaData, schemaString: "{" } }],
  ];
  for (const actions of wrong) {
    expect(() => state.apply(1, actions)).toThrow();
    expect(state.snapshot()).toBe(before);
    expect([state.version, state.files.size, state.removed.size, state.protocol]).toEqual([
      0,
      1,
      0,
      protocol,
    ]);
  }
});

test("an add without a row count, as other writers may leave it, is counted from its file", async () => {
  const root = freshRoot();
  const table = await create(root);
  const add = addOf("");
  await duck.with((c) =>
    c.run(
      `COPY (SELECT 'a' AS id FROM range(5)) TO ${literal(join(folder, "five.parquet"))} (FORMAT parquet)`,
    ),
  );
  await store.put(
    `${root}/${add.path}`,
    await (await import("node:fs/promises")).readFile(join(folder, "five.parquet")),
  );
  // By another's hand.
  const info = { commitInfo: { timestamp: 1, inCommitTimestamp: Date.now() + 5000 } } as unknown as Action;
  await store.putIfAbsent(commitKey(root, 1), encodeCommit([info, { add }]));
  const gone = addOf("");
  await store.putIfAbsent(commitKey(root, 2), encodeCommit([info, { add: gone }]));
  await expect(open(root)).rejects.toThrow(/rows the log does not count is missing/);
  await store.putIfAbsent(commitKey(root, 3), encodeCommit([info, { remove: removeOf(gone, 1, true) }]));
  await table.refresh();
  for (const read of [table, (await open(root))!]) {
    expect(read.snapshot.files.map(({ rows }) => rows)).toEqual([5]);
  }
  await table.checkpoint();
  expect((await open(root))!.snapshot.files[0]!.rows).toBe(5);
});

test("a log checkpoint keeps transactions, and of removed files those that readers may need", async () => {
  const root = freshRoot();
  const table = await create(root);
  const [live, gone] = [addOf(), addOf()];
  await commit(table, [{ txn: { appId: "app1", version: 7 } }, { add: live }, { add: gone }]);
  await commit(table, [{ txn: { appId: "app1", version: 8, lastUpdated: 5 } }]);
  const vector = {
    storageType: "u",
    pathOrInlineDv: "^-aqEH.-t@S}K{vb[*k^",
    sizeInBytes: 1,
    cardinality: 1,
  } as const;
  let now = live;
  for (let offset = 1; offset <= 50; offset++) {
    const next = { ...live, deletionVector: { ...vector, offset } };
    await commit(table, [{ remove: removeOf(now, Date.now(), true) }, { add: next }]);
    now = next;
  }
  await commit(table, [{ remove: removeOf(gone, Date.now(), true) }]);
  await table.checkpoint();
  await commit(table, []);
  const reopened = (await open(root))!;
  await reopened.checkpoint();
  for (const version of [table.snapshot.version - 1, table.snapshot.version]) {
    const path = literal(pathOf(checkpointKey(root, version)));
    const rows = await duck.with((c) =>
      rowsOf(
        c,
        `SELECT list(txn.appId || ' ' || txn.version) FILTER (WHERE txn IS NOT NULL), list(remove.path) FILTER (WHERE remove IS NOT NULL) FROM ${path}`,
      ),
    );
    expect(JSON.stringify(rows)).toBe(JSON.stringify([[{ items: ["app1 8"] }, { items: [gone.path] }]]));
  }
});

test("commits carry times that grow, whatever the clock does, and survive a copy", async () => {
  const root = freshRoot();
  const { [COMMIT_TIMES]: _, ...properties } = SPEC.properties;
  const old = await create(root, { ...SPEC, properties });
  await commit(old, [{ add: addOf() }]);
  const table = await create(root);
  const since = (await readCommit(store, root, 2))!;
  const time = since[0]!.commitInfo!.inCommitTimestamp!;
  expect(since.find(({ metaData }) => metaData)!.metaData!.configuration).toMatchObject({
    "delta.inCommitTimestampEnablementVersion": "2",
    "delta.inCommitTimestampEnablementTimestamp": String(time),
  });
  // A clock that is far ahead of ours wrote the next one.
  const ahead = Date.now() + 3_600_000;
  const info = { commitInfo: { timestamp: ahead, inCommitTimestamp: ahead } } as unknown as Action;
  await store.putIfAbsent(commitKey(root, 3), encodeCommit([info]));
  const times: number[] = [];
  for (let version = 4; version <= 6; version++) {
    if (version === 5) await table.checkpoint();
    const writer = version === 4 ? table : (await open(root))!;
    await commit(writer, [{ add: addOf() }]);
    times.push((await readCommit(store, root, version))![0]!.commitInfo!.inCommitTimestamp!);
  }
  expect(times).toEqual([ahead + 1, ahead + 2, ahead + 3]);
  // Nothing is mended twice.
  expect((await create(root)).snapshot.version).toBe(6);
});

test("a commit tells what it did", async () => {
  const root = freshRoot();
  const table = await create(root);
  const [a, b] = [addOf(), addOf()];
  await commit(table, [{ add: a }, { add: b }]);
  const vector = {
    storageType: "u",
    pathOrInlineDv: "^-aqEH.-t@S}K{vb[*k^",
    sizeInBytes: 1,
    cardinality: 2,
  } as const;
  await table.commit({
    operation: "MERGE",
    actions: [
      { add: addOf() },
      { remove: removeOf(a, 1, true) },
      { add: { ...a, deletionVector: vector } },
      { remove: removeOf(b, 1, true) },
    ],
    expect: new Map(),
    basedOn: 1,
    serializable: true,
  });
  const told = async (version: number) => (await readCommit(store, root, version))![0]!.commitInfo!;
  expect(await told(1)).toMatchObject({
    operation: "WRITE",
    operationParameters: { mode: "Append" },
    operationMetrics: { numAddedFiles: "2", numOutputRows: "6", numRemovedFiles: "0" },
    isBlindAppend: true,
    readVersion: 0,
  });
  expect(await told(2)).toMatchObject({
    operation: "MERGE",
    operationMetrics: {
      numAddedFiles: "1",
      numOutputRows: "3",
      numDeletionVectorsUpdated: "1",
      numMaskedRows: "2",
      numRemovedFiles: "1",
    },
    isBlindAppend: false,
    isolationLevel: "Serializable",
  });
});

test("a log checkpoint is written beside commits: none waits for it", async () => {
  const root = freshRoot();
  let release = () => {};
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  const slow = new Proxy(store, {
    get: (target, name) => {
      if (name === "adopt")
        return (files: Parameters<ObjectStore["adopt"]>[0]) => held.then(() => store.adopt(files));
      const value = Reflect.get(target, name) as unknown;
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
  const table = await DeltaTable.openOrCreate(slow, root, duck, { checkpointEvery: 2 }, SPEC);
  for (let i = 0; i < 6; i++) await commit(table, [{ add: addOf() }]);
  expect(table.snapshot.version).toBe(6);
  expect(await store.get(hintKey(root))).toBeUndefined();
  release();
  await table.settled();
  expect(JSON.parse((await store.get(hintKey(root)))!.toString())).toMatchObject({
    version: 2,
    numOfAddFiles: 2,
  });
  await commit(table, []);
  await table.settled();
  expect(JSON.parse((await store.get(hintKey(root)))!.toString())).toMatchObject({
    version: 7,
    numOfAddFiles: 6,
  });
});
