import { afterEach, expect, test, vi } from "vitest";
import { overriding } from "../../test/support/faulty-store.js";
import { expectedRows, TableWriter, type Write } from "../../test/support/table-writers.js";
import { NEVER, openWorkbench } from "../../test/support/tables.js";
import { TributaryError } from "../base/errors.js";
import type { ObjectStore } from "../storage/object-store.js";
import { append } from "./append.js";
import { compactUpserted } from "./compact.js";
import { writeParquet } from "./data-file.js";
import type { DeltaTable } from "./delta-table.js";
import { Sweep } from "./sweep.js";
import { verifyTable } from "./verify.js";

const HOUR_MS = 3600 * 1000;
const { store, duck, freshRoot } = await openWorkbench();

const writers: TableWriter[] = [];
afterEach(async () => {
  vi.useRealTimers();
  for (const writer of writers.splice(0)) await writer.close();
});

async function open(root: string, own: ObjectStore = store) {
  const writer = await TableWriter.open(overriding(own, {}), duck, root, NEVER);
  writers.push(writer);
  return writer;
}

const write = (id: string, version = 1): Write => ({
  tenant: "acme",
  id,
  version,
  operation: 2,
  content: 1n,
});

/** As if objects were as old as the clock says that passes only here. */
const aging = (inner: ObjectStore): ObjectStore => {
  const born = Date.now();
  return overriding(inner, {
    async *list(prefix, startAfter) {
      for await (const object of inner.list(prefix, startAfter)) yield { ...object, modifiedAt: born };
    },
  });
};

/** A store on which, before an operation happens, the process is suspended for some hours while others go on. */
function suspended(
  isWhen: (operation: "adopt" | "put" | "commit") => boolean,
  hours: number,
  others: () => Promise<unknown>,
): ObjectStore {
  let done = false;
  const pass = async (operation: "adopt" | "put" | "commit"): Promise<void> => {
    if (done || !isWhen(operation)) return;
    done = true;
    vi.setSystemTime(Date.now() + hours * HOUR_MS);
    await others();
  };
  return overriding(store, {
    adopt: async (files) => {
      await store.adopt(files);
      await pass("adopt");
    },
    put: async (key, bytes) => {
      await store.put(key, bytes);
      await pass("put");
    },
    putIfAbsent: async (key, bytes) => {
      if (!key.endsWith("00000.json")) await pass("commit");
      return store.putIfAbsent(key, bytes);
    },
  });
}

for (const when of ["adopt", "put", "commit"] as const) {
  test.each([
    [6, "committed"],
    [13, when === "commit" ? "committed" : "conflict"],
    [49, "conflict"],
  ] as const)(
    `a writer that is frozen for %i hours before its ${when} harms nothing beside sweeps`,
    async (hours, kind) => {
      vi.useFakeTimers({ toFake: ["Date"] });
      const root = freshRoot();
      const other = await open(root, aging(store));
      await other.upsert([write("a"), write("b")]);
      let swept = 0;
      const mine = await open(
        root,
        suspended(
          (operation) => operation === when,
          hours,
          async () => {
            swept += await new Sweep(other.table).run();
          },
        ),
      );
      const result = await mine.upsert([write("a", 2), write("c", 2)]);
      expect(result.kind).toBe(kind);
      if (kind === "conflict") {
        // Files are made anew.
        await mine.table.refresh();
        expect(await mine.upsert([write("a", 2), write("c", 2)])).toMatchObject({ kind: "committed" });
      }
      // Vectors are kept for as long as readers of older versions may need them; the data file goes up beside them, and
      // may be there by then.
      if (hours < 24 || when !== "put") expect(swept > 0).toBe(hours > 24);
      const fresh = await open(root);
      expect((await verifyTable(fresh.table)).problems).toEqual([]);
      expect(await fresh.rows()).toEqual(expectedRows([write("a", 2), write("b"), write("c", 2)]));
    },
  );
}

test("files that were staged for half as long as orphans live are not committed", async () => {
  vi.useFakeTimers({ toFake: ["Date"] });
  const root = freshRoot();
  const mine = await open(
    root,
    suspended(
      (operation) => operation === "adopt",
      13,
      async () => undefined,
    ),
  );
  expect(await mine.upsert([write("a")])).toEqual({ kind: "conflict", reason: "age" });
  const files: string[] = [];
  for await (const { key } of store.list(`${root}/`)) if (!key.includes("_delta_log")) files.push(key);
  expect(files).toEqual([]);
  expect(await mine.upsert([write("a")])).toMatchObject({ kind: "committed" });
});

test("files of a commit that may still come about stay, though they are too old to be offered again", async () => {
  vi.useFakeTimers({ toFake: ["Date"] });
  const root = freshRoot();
  let late: (() => Promise<unknown>) | undefined;
  const mine = await open(
    root,
    overriding(store, {
      putIfAbsent: async (key, bytes) => {
        if (late !== undefined || !key.endsWith("00001.json")) return store.putIfAbsent(key, bytes);
        // The process wakes up in the midst of a request whose answer it does not get.
        late = () => store.putIfAbsent(key, bytes);
        vi.setSystemTime(Date.now() + 13 * HOUR_MS);
        throw new TributaryError("TRB-STORE-FAILED");
      },
    }),
  );
  await expect(mine.upsert([write("a")])).rejects.toThrow(TributaryError);
  await late!();
  const fresh = await open(root);
  expect((await verifyTable(fresh.table)).problems).toEqual([]);
  expect(await fresh.rows()).toEqual(expectedRows([write("a")]));
});

test("a compaction that was frozen is given up, and what it made is removed", async () => {
  vi.useFakeTimers({ toFake: ["Date"] });
  const root = freshRoot();
  const other = await open(root, aging(store));
  for (let i = 0; i < 3; i++) await other.upsert([write(`k${i}`)]);
  const frozen = suspended(
    (operation) => operation === "adopt",
    30,
    () => new Sweep(other.table).run(),
  );
  const mine = await open(root, frozen);
  const { files } = mine.table.snapshot;
  expect(await compactUpserted(mine.writer, mine.connection, files)).toEqual({ kind: "overtaken" });
  expect(await compactUpserted(other.writer, other.connection, files)).toMatchObject({ kind: "compacted" });
  expect((await verifyTable((await open(root)).table)).problems).toEqual([]);
});

test("what comes to be between a sweep's look and its commit is not removed", async () => {
  vi.useFakeTimers({ toFake: ["Date"] });
  const root = freshRoot();
  let isFencing: () => void = () => undefined;
  const fencing = new Promise<void>((resolve) => {
    isFencing = resolve;
  });
  let isIn: () => void = () => undefined;
  const stands = new Promise<void>((resolve) => {
    isIn = resolve;
  });
  let sweeps = false;
  const other = await open(
    root,
    overriding(aging(store), {
      putIfAbsent: async (key, bytes) => {
        if (sweeps) {
          isFencing();
          await stands;
        }
        return store.putIfAbsent(key, bytes);
      },
    }),
  );
  await other.upsert([write("a")]);
  let sweeping: Promise<number> | undefined;
  const mine = await open(
    root,
    suspended(
      (operation) => operation === "commit",
      49,
      async () => {
        sweeps = true;
        sweeping = new Sweep(other.table).run();
        await fencing;
      },
    ),
  );
  expect(await mine.upsert([write("a", 2)])).toMatchObject({ kind: "committed" });
  isIn();
  expect(await sweeping).toBe(0);
  const fresh = await open(root);
  expect((await verifyTable(fresh.table)).problems).toEqual([]);
  expect(await fresh.rows()).toEqual(expectedRows([write("a", 2)]));
});

test("several sweeps at once remove the same and no more", async () => {
  vi.useFakeTimers({ toFake: ["Date"] });
  const root = freshRoot();
  const all = [
    await open(root, aging(store)),
    await open(root, aging(store)),
    await open(root, aging(store)),
  ];
  await all[0]!.upsert([write("a"), write("b")]);
  for (let i = 0; i < 3; i++) await store.put(`${root}/part-${i}.parquet`, Buffer.from("x"));
  vi.setSystemTime(Date.now() + 25 * HOUR_MS);
  await Promise.all(all.map(({ table }) => new Sweep(table).run()));
  const left: string[] = [];
  for await (const { key } of store.list(`${root}/part-`)) left.push(key);
  expect(left).toEqual([]);
  expect(await all[2]!.rows()).toEqual(expectedRows([write("a"), write("b")]));
});

test("six writers append to one table beside each other: every row once, also where two hold one partition", async () => {
  const root = freshRoot();
  const tables: DeltaTable[] = [];
  for (let i = 0; i < 6; i++) tables.push((await open(root)).table);
  const batches = 5;
  // The last two hold the same partition.
  const land = async (table: DeltaTable, partition: string): Promise<void> => {
    const connection = await duck.connect();
    for (let at = 0; at < batches; ) {
      const to = new Map([[partition, String(at + 1)]]);
      const from = new Map(at === 0 ? [] : [[partition, String(at)]]);
      const rows = `SELECT 'acme' AS tenant_id, '${partition}-${at}' AS entity_id, 'v' AS value`;
      const result = await append(table, "s", from, async (path) => ({
        file: await writeParquet(connection, rows, path),
        to,
      }));
      if (result.kind === "conflict") {
        expect(result.reason).toBe("position");
        await table.refresh();
      }
      at = Number(
        (JSON.parse(table.snapshot.domains.get(`tributary.pos.s.${partition}`)!) as { position: string })
          .position,
      );
    }
    connection.closeSync();
  };
  await Promise.all(tables.map((table, i) => land(table, String(Math.min(i, 4)))));
  const rows = await (await open(root)).rows();
  const expected = Array.from({ length: 5 }, (_, p) =>
    Array.from({ length: batches }, (_, at) => `acme|${p}-${at}|v`),
  );
  expect(rows).toEqual(expected.flat().sort());
});
