import { setImmediate as turn } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import {
  expectedThings,
  Lake,
  Random,
  randomEvents,
  seeds,
  type TestEvent,
  TestStream,
} from "../../test/support/lake.js";
import { literal, rowsOf } from "../base/duckdb.js";
import { compactAppended, compactUpserted } from "./compact.js";
import { planCompaction } from "./compaction-plan.js";
import type { DeltaTable } from "./delta-table.js";
import { withFiles } from "./scan.js";

const slices = (events: readonly TestEvent[], size: number): TestEvent[][] =>
  Array.from({ length: Math.ceil(events.length / size) }, (_, i) => events.slice(i * size, (i + 1) * size));

/** Merges all live or all tombstone files. */
async function compactAll(lake: Lake, tombstones: boolean): Promise<string | undefined> {
  const { table, writer } = await lake.target();
  const files = table.snapshot.files.filter((file) => file.tombstones === tombstones);
  if (files.length === 0) return undefined;
  return lake.context.duck.with(
    async (connection) => (await compactUpserted(writer, connection, files)).kind,
  );
}

async function dataFiles({ store, root }: DeltaTable): Promise<string[]> {
  const keys: string[] = [];
  for await (const { key } of store.list(`${root}/`)) {
    if (key.endsWith(".parquet") && !key.includes("_delta_log")) keys.push(key);
  }
  return keys;
}

describe("compaction beside upserts", () => {
  for (const index of ["kept", "forgotten", "absent"] as const) {
    test(`loses nothing and brings nothing back, the index being ${index}`, async () => {
      for (const seed of seeds(1)) {
        const random = new Random(seed);
        const events = random.shuffle(randomEvents(random, 160));
        const lake = await Lake.create({ keyIndexBytes: index === "absent" ? 0 : 1 << 26 });
        try {
          const lane = await lake.lane();
          const { writer, table } = await lake.target();
          const stream = new TestStream();
          let compacting: Promise<unknown> = Promise.resolve();
          for (const [i, events10] of slices(events, 10).entries()) {
            if (i % 4 === 3) {
              await compacting;
              if (index === "forgotten") writer.locator.forget();
              compacting = compactAll(lake, i % 8 === 3);
              for (let wait = random.below(20); wait > 0; wait--) await turn();
            }
            await lane.land(stream.batch(events10));
          }
          await compacting;
          for (const tombstones of [false, true]) {
            const ofKind = () => table.snapshot.files.filter((file) => file.tombstones === tombstones);
            // Nobody else commits now, so nothing overtakes it.
            const kind = ofKind().length === 0 ? undefined : "compacted";
            expect(await compactAll(lake, tombstones), `seed ${seed}`).toBe(kind);
            expect(ofKind().length, `seed ${seed}`).toBe(kind === undefined ? 0 : 1);
          }
          expect(await lake.rows(), `seed ${seed}`).toEqual(expectedThings(events));
          // The index knows the new places: upserts of every entity mask the right rows.
          const again = events.map((event) => ({ ...event, version: (1n << 63n) - 1n }));
          await lane.land(stream.batch(again));
          const after = expectedThings([...events, ...again]);
          expect(await lake.rows(), `seed ${seed}, after`).toEqual(after);
          await lake.reopen();
          expect(await lake.rows(), `seed ${seed}, reopened`).toEqual(after);
        } finally {
          await lake.close();
        }
      }
    });
  }

  test("an index loaded while the new file is written is not left behind", async () => {
    const lake = await Lake.create();
    try {
      const lane = await lake.lane();
      const { writer, table } = await lake.target();
      const stream = new TestStream();
      const event = (id: string, version: bigint): TestEvent => ({
        tenant: "acme",
        id,
        operation: 2,
        version,
        thing: { name: `${id} ${version}` },
      });
      const events = [event("a", 1n), event("b", 1n), event("c", 1n)];
      for (const one of events) await lane.land(stream.batch([one]));
      writer.locator.forget();
      const files = table.snapshot.files.filter(({ tombstones }) => !tombstones);
      const compacting = lake.context.duck.with((connection) => compactUpserted(writer, connection, files));
      while (writer.locator.indexedKeys === undefined) {
        events.push(event("d", BigInt(events.length)));
        await lane.land(stream.batch(events.slice(-1)));
      }
      expect((await compacting).kind).toBe("compacted");
      const more = ["a", "b", "c"].map((id) => event(id, 2n));
      await lane.land(stream.batch(more));
      expect(await lake.rows()).toEqual(expectedThings([...events, ...more]));
    } finally {
      await lake.close();
    }
  });

  test("of tombstones keeps the greatest of each entity, so that deleted stays deleted", async () => {
    const lake = await Lake.create({ keyIndexBytes: 0 });
    try {
      const lane = await lake.lane();
      const stream = new TestStream();
      const deleted = (version: bigint): TestEvent => ({
        tenant: "t",
        id: "x",
        operation: 3,
        version,
        thing: {},
      });
      const live = (version: bigint): TestEvent => ({
        tenant: "t",
        id: "x",
        operation: 1,
        version,
        thing: { name: `v${version}` },
      });
      for (const event of [deleted(1n), deleted(5n), deleted(9n), deleted(7n)])
        await lane.land(stream.batch([event]));
      expect(await compactAll(lake, true)).toBe("compacted");
      const { table } = await lake.target();
      const [file, ...others] = table.snapshot.files;
      expect(others).toEqual([]);
      expect([file!.tombstones, file!.rows, file!.maskedRows]).toEqual([true, 1, 1]);
      const sql = (path: string) =>
        `SELECT _tributary_version FROM read_parquet(${literal(path)}, hive_partitioning=false)`;
      const stored = await withFiles(table, [file!], ([path]) =>
        lake.context.duck.with((c) => rowsOf(c, sql(path!))),
      );
      expect(stored).toEqual([[9n]]);
      await lane.land(stream.batch([live(8n), live(9n)]));
      expect(await lake.rows()).toEqual([]);
      await lane.land(stream.batch([live(10n)]));
      expect(await lake.rows()).toHaveLength(1);
    } finally {
      await lake.close();
    }
  });

  test("is overtaken when a source is gone, and leaves no file behind", async () => {
    const lake = await Lake.create();
    try {
      const lane = await lake.lane();
      const stream = new TestStream();
      const random = new Random(3);
      for (let i = 0; i < 4; i++) await lane.land(stream.batch(randomEvents(random, 10)));
      const { writer, table } = await lake.target();
      const files = table.snapshot.files.filter(({ tombstones }) => !tombstones);
      const before = await dataFiles(table);
      const run = () => lake.context.duck.with((connection) => compactUpserted(writer, connection, files));
      expect((await Promise.all([run(), run()])).map(({ kind }) => kind).sort()).toEqual([
        "compacted",
        "overtaken",
      ]);
      expect(await dataFiles(table), "the winner's file and no other").toHaveLength(before.length + 1);
      expect(await lake.rows()).toEqual(expectedThings(stream.events));
    } finally {
      await lake.close();
    }
  });
});

describe("compaction in the long run", () => {
  test("keeps file counts bounded over 150 small batches, and raw every event once", async () => {
    const lake = await Lake.create({ checkpointEvery: 50 });
    try {
      const lane = await lake.lane();
      const { writer, table } = await lake.target();
      const random = new Random(11);
      const stream = new TestStream();
      const events = randomEvents(random, 500);
      const afterFiles = 6;
      let most = 0;
      for (const [i, some] of slices(events, 2).slice(0, 150).entries()) {
        await lane.land(stream.batch(some, ({ id }) => String(id.length % 3)));
        for (;;) {
          const plan = planCompaction(table.snapshot, afterFiles);
          if (plan === undefined) break;
          const { kind } = await lake.context.duck.with((c) => compactUpserted(writer, c, plan));
          expect(kind).toBe("compacted");
        }
        const raw = planCompaction(lane.raw.snapshot, afterFiles);
        if (raw !== undefined) {
          await lake.context.duck.with((c) => compactAppended(lane.raw, c, raw, ["tenant_id", "position"]));
        }
        most = Math.max(most, table.snapshot.files.length, lane.raw.snapshot.files.length);
        if (i % 50 === 49) expect(await lake.rows()).toEqual(expectedThings(stream.events));
      }
      expect(most).toBeLessThan(2 * afterFiles + 2);
      expect(await lake.rawPositions()).toEqual([...stream.positions].sort());
      await lake.reopen();
      expect(await lake.rows()).toEqual(expectedThings(stream.events));
    } finally {
      await lake.close();
    }
  });
});
