import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { expectedThings, Lake, type TestEvent, TestStream } from "../../test/support/lake.js";
import { compactAppended, compactUpserted } from "./compact.js";
import { CompactionPlanner } from "./compaction-plan.js";
import { decodedBytes } from "./decoded-size.js";
import type { TableFile } from "./types.js";

const KiB = 1024;
const NAME_BYTES = 100 * KiB;
const FILES = 24;
const BUDGET = 1024 * KiB;

/** An event whose row takes a hundred kilobytes, and next to nothing in a file. */
const large = (i: number): TestEvent => ({
  tenant: "acme",
  id: `k${i}`,
  operation: 1,
  version: 1n,
  thing: { name: "deep/folder/".repeat(NAME_BYTES / 12) },
});

let lake: Lake;
const stream = new TestStream();
beforeAll(async () => {
  lake = await Lake.create();
  const lane = await lake.lane();
  await lake.settled();
  for (let i = 0; i < FILES; i++) await lane.land(stream.batch([large(2 * i), large(2 * i + 1)]));
  await lake.settled();
});
afterAll(() => lake.close());

const outOfMemory = () =>
  new Error('{"exception_type":"Out of Memory","exception_message":"could not allocate"}');

describe("what a compaction takes in", () => {
  test("is known by what rows take once they are read, not by what a file takes", async () => {
    const { table } = await lake.target();
    const { files } = table.snapshot;
    const sizes = await lake.context.duck.with((connection) => decodedBytes(table, connection, files));
    for (const [i, bytes] of sizes.entries()) {
      expect(files[i]!.bytes).toBeLessThan(10 * KiB);
      expect(bytes / (2 * NAME_BYTES)).toBeGreaterThan(0.9);
      expect(bytes / (2 * NAME_BYTES)).toBeLessThan(1.1);
    }
  });

  test("becomes less where the engine has no memory, until files are left alone", async () => {
    const { table } = await lake.target();
    const planner = new CompactionPlanner(Number.MAX_SAFE_INTEGER, 6);
    const tries: number[] = [];
    await lake.context.duck.with(async (connection) => {
      while (planner.wants(table)) {
        const merge = (files: readonly TableFile[]) => {
          tries.push(files.length);
          return Promise.reject(outOfMemory());
        };
        await planner.compact(table, connection, merge).catch(() => undefined);
        expect(tries.length).toBeLessThan(200);
      }
    });
    expect(tries[0]).toBe(FILES);
    expect(tries.length).toBeLessThan(30);
    // Other failures say nothing of sizes.
    const other = new CompactionPlanner(BUDGET, 6);
    await lake.context.duck.with(async (connection) => {
      for (let i = 0; i < 3; i++) {
        const merge = (files: readonly TableFile[]) => Promise.reject(new Error(`IO Error ${files.length}`));
        await expect(other.compact(table, connection, merge)).rejects.toThrow("IO Error 5");
      }
    });
  });

  test("is cut by that, and a file too large for another beside it is not tried again", async () => {
    const { table, writer } = await lake.target();
    const planner = new CompactionPlanner(BUDGET, 6);
    const merged: number[] = [];
    await lake.context.duck.with(async (connection) => {
      while (planner.wants(table)) {
        const done = await planner.compact(table, connection, (files) => {
          merged.push(files.length);
          return compactUpserted(writer, connection, files);
        });
        if (done === undefined) break;
      }
      expect(await planner.plan(table, connection)).toBeUndefined();
      expect(planner.wants(table)).toBe(false);
      for (const bytes of await decodedBytes(table, connection, table.snapshot.files)) {
        expect(bytes).toBeLessThanOrEqual(BUDGET);
      }
    });
    expect(Math.max(...merged)).toBe(5);
    expect(table.snapshot.files.length).toBeLessThan(FILES / 2);
    expect(await lake.rows()).toEqual(expectedThings(stream.events));
  });

  test("is cut in append-only tables alike", async () => {
    const { raw } = await lake.lane();
    const planner = new CompactionPlanner(BUDGET, 6);
    await lake.context.duck.with(async (connection) => {
      const done = await planner.compact(raw, connection, (files) =>
        compactAppended(raw, connection, files, ["tenant_id", "position"]),
      );
      expect(done).toMatchObject({ kind: "compacted", files: 5 });
    });
    expect(await lake.rawPositions()).toEqual([...stream.positions].sort());
  });
});
