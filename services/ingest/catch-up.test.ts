import { gzipSync } from "node:zlib";
import { expect, test, vi } from "vitest";
import { FaultyStore, overriding } from "../../test/support/faulty-store.js";
import {
  CAST_SQL,
  expectedThings,
  Lake,
  Random,
  randomEvents,
  TestStream,
  THING,
  THINGS_SQL,
} from "../../test/support/lake.js";
import { TributaryError } from "../base/errors.js";
import { encodeEvent } from "../contracts/encode-event.js";
import { progressOf } from "../table/progress.js";
import { withScan } from "../table/scan.js";
import { EventBatch } from "./event-batch.js";
import { Target } from "./target.js";

const CHANGED = { things: `${THINGS_SQL} and true` };

async function withLake(options: Parameters<typeof Lake.create>[0], work: (lake: Lake) => Promise<void>) {
  const lake = await Lake.create(options);
  try {
    await work(lake);
  } finally {
    await lake.close();
  }
}

/** Folders of rebuilds below the table that still have a log. */
async function sidesOf({ context }: Lake): Promise<string[]> {
  const folders = new Set<string>();
  for await (const { key } of context.store.list("refined/t/things/")) {
    const [, folder] = /^refined\/t\/things\/(rebuilt-[^/]+)\/_delta_log\//.exec(key) ?? [];
    if (folder !== undefined) folders.add(folder);
  }
  return [...folders];
}

test("a changed model and a new one get all that raw has, though the stream has another name by now", () =>
  withLake({}, async (lake) => {
    const events = randomEvents(new Random(1), 80);
    const lane = await lake.lane();
    await lane.land(new TestStream("embedded-1").batch(events.slice(0, 50)));
    await lane.land(new TestStream("topic.v1.things").batch(events.slice(50)));
    await lake.reopen({ models: { ...CHANGED, more: THINGS_SQL } });
    expect(await lake.rows()).toEqual(expectedThings(events));
    expect(await lake.rows("t.more")).toEqual(expectedThings(events));
    const raw = progressOf((await lake.lane()).raw.snapshot);
    expect(raw.size).toBe(2);
    expect(new Map((await lake.target()).progress)).toEqual(raw);
  }));

test("a replay moves positions as it goes, and goes on there after a crash", async () => {
  let faulty: FaultyStore | undefined;
  const lake = await Lake.create({ rangeEvents: 10, checkpointEvery: 1000 });
  try {
    const events = randomEvents(new Random(2), 120);
    const stream = new TestStream("log");
    for (let at = 0; at < events.length; at += 40) {
      await (await lake.lane()).land(stream.batch(events.slice(at, at + 40)));
    }
    await lake.settled();
    await lake.reopen({
      models: CHANGED,
      store: (inner) => {
        faulty = new FaultyStore(inner);
        return faulty.store;
      },
    });
    faulty!.arm(60, "crash");
    void lake.settled();
    await faulty!.gone;
    const between = new Set<string>();
    await lake.abandon({
      store: (inner) =>
        overriding(inner, {
          putIfAbsent: (key, bytes) => {
            for (const [at] of bytes.toString().matchAll(/rebuilt-[0-9a-f]{12}-[0-9a-f]{8}/g))
              between.add(at);
            return inner.putIfAbsent(key, bytes);
          },
        }),
    });
    const [side, ...others] = await sidesOf(lake);
    expect(others).toEqual([]);
    expect(await lake.rows()).toEqual(expectedThings(events));
    // It took that table over, and no other was begun.
    expect([...between]).toEqual([side]);
    expect(await sidesOf(lake)).toEqual([]);
  } finally {
    await lake.close();
  }
});

test("a lane that closes gives up a rebuild after the slice that runs; the next one goes on there", () =>
  withLake({ rangeEvents: 10, checkpointEvery: 1000 }, async (lake) => {
    const events = randomEvents(new Random(4), 120);
    await (await lake.lane()).land(new TestStream("log").batch(events));
    await lake.settled();
    let commits = 0;
    let begun: () => void = () => undefined;
    const third = new Promise<void>((resolve) => {
      begun = resolve;
    });
    await lake.reopen({
      models: CHANGED,
      store: (inner) =>
        overriding(inner, {
          putIfAbsent: (key, bytes) => {
            if (key.includes("/rebuilt-") && ++commits === 3) begun();
            return inner.putIfAbsent(key, bytes);
          },
        }),
    });
    const lane = await lake.lane();
    await third;
    await lane.close();
    lake.forget();
    // Of one that makes the table, and two for each of twelve ranges.
    expect(commits).toBeLessThan(8);
    const [side] = await sidesOf(lake);
    expect(await lake.rows()).toEqual(expectedThings(events));
    const folders = (await lake.target()).table.snapshot.files.map(({ path }) => path.split("/")[0]);
    expect(new Set(folders)).toEqual(new Set([side]));
  }));

test("what a rebuild could not remove is in no later one's way, and goes later", async () => {
  let failing = true;
  await withLake(
    {
      store: (inner) =>
        overriding(inner, {
          delete: (keys) =>
            failing && keys[0]?.includes("rebuilt-")
              ? Promise.reject(new TributaryError("TRB-STORE-FAILED", "a fault of the test"))
              : inner.delete(keys),
        }),
    },
    async (lake) => {
      const stream = new TestStream();
      const events = randomEvents(new Random(3), 60);
      await (await lake.lane()).land(stream.batch(events.slice(0, 30)));
      await lake.reopen({ models: CHANGED });
      expect(await lake.rows()).toEqual(expectedThings(events.slice(0, 30)));
      const [left] = await sidesOf(lake);
      expect(left).toBeDefined();
      await lake.reopen({ models: { things: THINGS_SQL } });
      await (await lake.lane()).land(stream.batch(events.slice(30)));
      expect(await lake.rows()).toEqual(expectedThings(events));
      // As a vacuum would: what the table does not name goes, the leftover log stays.
      const { table } = await lake.target();
      const live = new Set(table.snapshot.files.map(({ path }) => `refined/t/things/${path}`));
      const inner: string[] = [];
      for await (const { key } of lake.context.store.list(`refined/t/things/${left}/`)) inner.push(key);
      failing = false;
      await lake.context.store.delete(inner.filter((key) => !live.has(key) && !key.includes("_delta_log")));
      failing = true;
      await lake.reopen({ models: CHANGED });
      expect(await lake.rows()).toEqual(expectedThings(events));
      failing = false;
      await lake.reopen();
      expect(await lake.rows()).toEqual(expectedThings(events));
      expect(await sidesOf(lake)).toEqual([]);
    },
  );
});

test("dead letters of a replay hold the events as they were published", () =>
  withLake({ models: { plain: THINGS_SQL } }, async (lake) => {
    const batch = new EventBatch(THING, "log");
    const event = encodeEvent({
      tenantId: "acme",
      entityType: THING,
      entityId: "bad",
      operation: 1,
      version: 7,
      payload: { value: Buffer.from([0x22, 1, 0x78]) },
      attributes: { traceparent: "00-1", producer: "shop" },
      eventId: "e-1",
    });
    batch.add(event, 0, event.length, "3", "000000000001", 1_700_000_000_000);
    await (await lake.lane()).land(batch);
    await lake.reopen({ models: { plain: THINGS_SQL, casts: CAST_SQL } });
    expect(await lake.rows("t.casts")).toEqual([]);
    const { table } = lake.context.deadLetters;
    const columns = ["stream", "event"];
    const [[stream, bytes]] = (await withScan(table, await table.refresh(), { columns }, (sql) =>
      lake.query(sql),
    )) as [[string, { bytes: Uint8Array }]];
    expect(stream).toBe("log");
    expect(Buffer.from(bytes.bytes)).toEqual(event);
  }));

test(
  "payloads that unpack to far more than memory holds all come in, and hold up no other tenant's",
  () =>
    withLake({ ingest: { duckdbMemoryBytes: 64 << 20 } }, async (lake) => {
      const heavy = new EventBatch(THING, "log");
      const value = Buffer.concat([Buffer.from([0x0a, 0xc0, 0x84, 0x3d]), Buffer.alloc(1_000_000, 97)]);
      const packed = gzipSync(value);
      const add = (
        id: string,
        tenantId: string,
        compression: number,
        payload: Uint8Array,
        batch: EventBatch,
        at: number,
      ) => {
        const event = encodeEvent({
          tenantId,
          entityType: THING,
          entityId: id,
          operation: 1,
          version: 1,
          payload: { value: payload },
          compression,
        });
        batch.add(event, 0, event.length, "0", String(at).padStart(12, "0"), 0);
      };
      for (let i = 1; i <= 150; i++) add(`h${i}`, "acme", 1, packed, heavy, i);
      const light = new EventBatch(THING, "log");
      add("light", "other", 0, Buffer.from([0x0a, 1, 0x78]), light, 151);
      const lane = await lake.lane();
      await lake.settled();
      await lane.land(heavy);
      expect(lane.behind).toBe(true);
      await lane.land(light);
      const { table } = lane.targets[0]!;
      const rowsOfTenant = async (tenant: string): Promise<number> => {
        const options = { columns: ["entity_id"], where: `tenant_id = '${tenant}'` };
        return (await withScan(table, table.snapshot, options, (sql) => lake.query(sql))).length;
      };
      while ((await rowsOfTenant("other")) === 0) await new Promise((resolve) => setTimeout(resolve, 5));
      expect(await rowsOfTenant("acme")).toBeLessThan(150);
      await lake.settled();
      expect(await rowsOfTenant("acme")).toBe(150);
      expect(await lake.deadLetters()).toEqual([]);
    }),
  30_000,
);

test("a model does not go beyond raw's rows that could not be read to the end", () =>
  withLake({}, async (lake) => {
    const events = randomEvents(new Random(2), 80);
    const stream = new TestStream("log");
    for (const some of [events.slice(0, 40), events.slice(40)])
      await (await lake.lane()).land(stream.batch(some));
    await lake.settled();
    await lake.reopen({ models: CHANGED });
    const { duck } = lake.context;
    const connect = duck.with.bind(duck);
    let cut = 0;
    // As the engine is when it has no memory for large rows behind small ones: it just says that there are no more.
    vi.spyOn(duck, "with").mockImplementation((use) =>
      connect(async (connection) => {
        const begin = connection.stream.bind(connection);
        connection.stream = async (sql) => {
          const result = await begin(sql);
          if (cut === 2) return result;
          cut++;
          const next = result.fetchChunk.bind(result);
          let chunks = 0;
          result.fetchChunk = async () => {
            if (chunks++ === 0) return next();
            await connection.run("SELECT error(i::VARCHAR) FROM range(1) r(i)").catch(() => undefined);
            return null;
          };
          return result;
        };
        return use(connection);
      }),
    );
    await lake.settled();
    expect(await lake.rows()).toEqual(expectedThings(events));
    expect(cut).toBe(2);
  }));

test("a model takes no live batch while its catch-up still runs, though its table is in step by then", () =>
  withLake({}, async (lake) => {
    const events = randomEvents(new Random(3), 60);
    const stream = new TestStream("log");
    const lane = await lake.lane();
    await lake.settled();
    vi.spyOn(Target.prototype, "refine").mockRejectedValueOnce(new Error("once"));
    const catchUp = Target.prototype.catchUp;
    let calls = 0;
    let isThere = false;
    let release: () => void = () => undefined;
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    vi.spyOn(Target.prototype, "catchUp").mockImplementation(async function (this: Target, ...rest) {
      // The second is the last step, between batches: a slow store keeps it after its commit.
      if (++calls === 1) return;
      await catchUp.apply(this, rest);
      isThere = true;
      if (calls === 2) await released;
    });
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    try {
      await lane.land(stream.batch(events.slice(0, 30)));
      await expect.poll(() => isThere, { timeout: 15_000 }).toBe(true);
      vi.advanceTimersByTime(60_000);
      await lane.look();
      expect(lane.behind).toBe(true);
    } finally {
      vi.useRealTimers();
      release();
    }
    await lake.settled();
    vi.restoreAllMocks();
    await lane.land(stream.batch(events.slice(30)));
    expect(await lake.rows()).toEqual(expectedThings(events));
  }));
