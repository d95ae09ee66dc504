import { utimesSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { overriding } from "../../test/support/faulty-store.js";
import { Lake, type TestEvent, TestStream } from "../../test/support/lake.js";
import { Sweeper } from "../ingest/sweeper.js";
import { TurnQueue } from "../ingest/turn-queue.js";
import { compactUpserted } from "./compact.js";
import type { DeltaTable } from "./delta-table.js";
import { Sweep } from "./sweep.js";

const HOUR_MS = 3600 * 1000;
const GRACE_MS = 24 * HOUR_MS;
const event = (id: number, version: bigint): TestEvent => ({
  tenant: "acme",
  id: `e${id}`,
  operation: 1,
  version,
  thing: { name: `n${version}` },
});

let lake: Lake;
beforeEach(async () => {
  lake = await Lake.create();
});
afterEach(() => lake.close());

async function keysBelow(prefix: string): Promise<string[]> {
  const keys: string[] = [];
  for await (const { key } of lake.context.store.list(prefix)) keys.push(key);
  return keys;
}

const filesOf = async ({ root }: DeltaTable) =>
  (await keysBelow(`${root}/`)).filter((key) => !key.includes("_delta_log/"));

/** As if everything had been written `ms` ago. */
async function age(prefix: string, ms: number): Promise<void> {
  const then = (Date.now() - ms) / 1000;
  for (const key of await keysBelow(prefix)) utimesSync(join(lake.folder, "lake", key), then, then);
}

/** A table with files in use, masked and replaced, and with orphans; resolves to the latter. */
async function untidy() {
  const stream = new TestStream();
  for (let i = 0; i < 4; i++) await lake.land(stream.batch([event(i, 1n), event(0, BigInt(i + 2))]));
  const { table, writer } = await lake.target();
  await lake.context.duck.with((connection) => compactUpserted(writer, connection, table.snapshot.files));
  // Two vectors of the compacted file, one after the other.
  for (const id of [0, 1]) await lake.land(stream.batch([event(id, 9n)]));
  await lake.settled();
  const before = await filesOf(table);
  const orphans = ["tenant_partition=~shared/part-x.parquet", "deletion_vector_x.bin"];
  for (const orphan of orphans) await lake.context.store.put(`${table.root}/${orphan}`, Buffer.from("x"));
  return { table, before, orphans: orphans.map((path) => `${table.root}/${path}`) };
}

test("removes what nothing names once it is old, and nothing else", async () => {
  const { table, before, orphans } = await untidy();
  const sweep = new Sweep(table);
  expect(await sweep.run(GRACE_MS)).toBe(0);
  await age("", 2 * GRACE_MS);
  expect(await sweep.run(GRACE_MS)).toBe(1);
  // Vectors that older versions name stay for the table's retention, and data files that they name.
  const now = Date.now();
  expect(await sweep.run(GRACE_MS, now + table.retentionMs - HOUR_MS / 2)).toBe(0);
  await sweep.run(GRACE_MS, now + table.retentionMs + 1);
  const live = await filesOf(table);
  expect(live.filter((key) => !key.endsWith(".bin"))).toEqual(before.filter((key) => !key.endsWith(".bin")));
  expect(live.length).toBeLessThan(before.length);
  expect(await lake.rows()).toHaveLength(4);
  expect(live).not.toContain(orphans[1]);
  // Nothing of it comes from memory.
  await lake.reopen();
  expect(await lake.rows()).toHaveLength(4);
});

test("leaves alone what a commit is being made of, and a table that grows inside this one", async () => {
  const { table, orphans } = await untidy();
  const side = `${table.root}/rebuilt-1`;
  for (const path of ["_delta_log/00000000000000000000.json", "part-y.parquet"])
    await lake.context.store.put(`${side}/${path}`, Buffer.from("x"));
  table.inFlight.add(orphans[0]!);
  await age("", 2 * GRACE_MS);
  expect(await new Sweep(table).run(GRACE_MS)).toBe(0);
  expect(await lake.context.store.get(orphans[0]!)).toBeDefined();
  expect(await keysBelow(`${side}/`)).toHaveLength(2);
});

test("counts anew for how long a vector is of no use once it was of use again", async () => {
  const { table, orphans } = await untidy();
  const vectors = orphans[1]!;
  await age("", 2 * GRACE_MS);
  const sweep = new Sweep(table);
  const there = async () => (await lake.context.store.get(vectors)) !== undefined;
  const now = Date.now();
  await sweep.run(GRACE_MS, now);
  table.inFlight.add(vectors);
  await sweep.run(GRACE_MS, now);
  table.inFlight.delete(vectors);
  await sweep.run(GRACE_MS, now + table.retentionMs);
  expect(await there()).toBe(true);
  await sweep.run(GRACE_MS, now + 2 * table.retentionMs);
  expect(await there()).toBe(false);
});

test("leaves alone what another process commits while it looks", async () => {
  let meanwhile: () => Promise<void> = async () => undefined;
  await lake.reopen({
    store: (inner) =>
      overriding(inner, {
        list: async function* (prefix, startAfter) {
          await meanwhile();
          yield* inner.list(prefix, startAfter);
        },
      }),
  });
  const stream = new TestStream();
  await lake.land(stream.batch([event(1, 1n)]));
  const { table } = await lake.target();
  const twin = await lake.twin();
  meanwhile = async () => {
    meanwhile = async () => undefined;
    await twin.land(stream.batch([event(2, 1n)]));
    await twin.settled();
  };
  expect(await new Sweep(table).run(-60_000)).toBe(0);
  expect(await twin.rows()).toHaveLength(2);
  await (await twin.lane()).close();
  twin.context.duck.close();
});

test("is due for every table of a lane at first, and then now and then", async () => {
  const { orphans } = await untidy();
  const lane = await lake.lane();
  const inRaw = `${lane.raw.root}/part-z.parquet`;
  writeFileSync(join(lake.folder, "lake", inRaw), "x");
  await age("", 2 * GRACE_MS);
  const queue = new TurnQueue();
  const sweeper = new Sweeper(lake.context, queue);
  const there = async () => (await keysBelow("")).filter((key) => [orphans[0], inRaw].includes(key));
  sweeper.consider(lane);
  await expect.poll(there).toEqual([]);
  await lake.context.store.put(inRaw, Buffer.from("x"));
  await age("", 2 * GRACE_MS);
  sweeper.consider(lane);
  await queue.close();
  expect(await there()).toEqual([inRaw]);
});

test("remembers from one time to the next since when a vector is of no use", async () => {
  const { table, orphans } = await untidy();
  await age("", 2 * GRACE_MS);
  const lane = await lake.lane();
  const queue = new TurnQueue();
  const sweeper = new Sweeper(lake.context, queue, 0);
  const sweep = async () => {
    sweeper.consider(lane);
    // Its turn comes after theirs.
    await queue.run(async () => undefined);
  };
  vi.useFakeTimers({ toFake: ["Date"] });
  try {
    await sweep();
    expect(await keysBelow(orphans[1]!)).toHaveLength(1);
    vi.setSystemTime(Date.now() + table.retentionMs + 1);
    await sweep();
    expect(await keysBelow(orphans[1]!)).toEqual([]);
  } finally {
    vi.useRealTimers();
    await queue.close();
  }
});

test("leaves what a repair has set aside", async () => {
  const { table } = await untidy();
  const kept = `${table.root}/_damaged/3-1.json`;
  await lake.context.store.put(kept, Buffer.from("x"));
  await age(`${table.root}/`, 30 * GRACE_MS);
  await new Sweep(table).run(GRACE_MS);
  expect(await keysBelow(`${table.root}/_damaged/`)).toEqual([kept]);
});
