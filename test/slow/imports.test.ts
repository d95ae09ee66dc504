import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, expect, test } from "vitest";
import { literal } from "../../services/base/duckdb.js";
import { layout } from "../../services/base/paths.js";
import { ImportProducer } from "../../services/bulk/imports/import-producer.js";
import { IMPORTS } from "../../services/bulk/imports/import-queue.js";
import { runHere } from "../../services/bulk/job-here.js";
import type { Job } from "../../services/bulk/jobs/job.js";
import { JobStore } from "../../services/bulk/jobs/job-store.js";
import { JobTracks } from "../../services/bulk/jobs/job-tracks.js";
import { ALONE } from "../../services/ingest/crew.js";
import type { EventBatch } from "../../services/ingest/event-batch.js";
import { startIngest } from "../../services/ingest/ingest.js";
import { eachOperation, type Fault, FaultyStore } from "../support/faulty-store.js";
import { readForeign } from "../support/foreign.js";
import { enqueue, jobOf, landerOf, openQueue } from "../support/imports.js";
import {
  encodeTestEvent,
  expectedThings,
  Lake,
  Random,
  randomEvents,
  TestStream,
  THING,
  winnersOf,
} from "../support/lake.js";
import { MemoryReader } from "../support/memory-reader.js";
import { breakable } from "../support/pipeline-run.js";

const closers: (() => unknown)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/** Whoever takes over goes on behind what is queued or has landed; whatever fails is tried again. */
async function produce(lake: Lake, stream: string, batches: readonly EventBatch[], gone: Promise<void>) {
  const origin = { stream, partition: "0", entityType: THING };
  const all = async () => {
    for (;;) {
      try {
        const producer = await ImportProducer.open(lake.context, origin);
        const reached = (await producer.reached()) ?? "";
        for (const batch of batches) {
          const fresh = batch.after(new Map([["0", reached]]));
          if (fresh.count === 0) continue;
          // A chunk is made anew from where the last one ended: here these are the same.
          expect(fresh.count).toBe(batch.count);
          const result = await enqueue(lake, { table: producer.table }, fresh);
          if (result.kind !== "committed") throw new Error("another was here");
        }
        if ((await producer.landed(() => undefined, new AbortController().signal)) === true) return;
      } catch {
        // A fault of the test.
      }
    }
  };
  await Promise.race([all(), gone]);
}

test.each<Fault>(["fails", "happens-and-fails", "crash"])(
  "a store that %s at any operation loses nothing of what is queued and lands nothing twice",
  async (fault) => {
    const reached = await eachOperation(async (at) => {
      const random = new Random(at + 1);
      const events = randomEvents(random, 30);
      const stream = new TestStream("bootstrap-x");
      const batches = [0, 10, 20].map((from) => stream.batch(events.slice(from, from + 10)));
      let faulty: FaultyStore | undefined;
      const lake = await Lake.create({
        store: (inner) => {
          faulty = new FaultyStore(inner);
          return faulty.store;
        },
      });
      const round = async () => {
        const lander = landerOf(lake, {
          landBeside: async (batch) => {
            await lake.land(batch);
            return "landed" as const;
          },
        });
        lander.start();
        await produce(lake, "bootstrap-x", batches, faulty!.gone);
        return lander;
      };
      await lake.lane();
      faulty!.arm(at, fault);
      let lander = await round();
      const struck = faulty!.disarm();
      if (fault === "crash" && struck) {
        await lake.abandon({});
        lander = await round();
      }
      await lander.close();
      const places = await lake.rawPositions();
      expect(places, `${faulty!.victim} ${at}`).toEqual([...stream.positions].sort());
      expect(await (await openQueue(lake)).look()).toEqual([]);
      expect(await lake.rows(), `${faulty!.victim} ${at}`).toEqual(expectedThings(stream.events));
      await lake.close();
      return struck;
    });
    expect(reached).toBeGreaterThan(20);
  },
);

test("two workers that land one queue at once lose to each other, and nothing else", async () => {
  const one = await Lake.create();
  const two = await one.twin();
  closers.push(() => one.close());
  const events = randomEvents(new Random(5), 200);
  const stream = new TestStream("bootstrap-x");
  const queue = await openQueue(one);
  for (let at = 0; at < 200; at += 10) await enqueue(one, queue, stream.batch(events.slice(at, at + 10)));
  const landers = [one, two].map((lake) =>
    landerOf(lake, {
      landBeside: async (batch) => {
        await lake.land(batch);
        return "landed" as const;
      },
    }),
  );
  for (const lander of landers) lander.start();
  await expect.poll(async () => (await queue.look()).length, { timeout: 60_000 }).toBe(0);
  for (const lander of landers) await lander.close();
  expect(await one.rawPositions()).toEqual([...stream.positions].sort());
  await (await one.lane()).look();
  expect(await one.rows()).toEqual(expectedThings(stream.events));
});

test("a log's final state as queued rows and the log itself, in any order and overlap, are the log alone", async () => {
  await fc.assert(
    fc.asyncProperty(fc.integer({ min: 0, max: 2 ** 31 - 1 }), async (seed) => {
      const random = new Random(seed);
      const events = randomEvents(random, 60);
      const exported = winnersOf(events.slice(0, 45)).filter(({ operation }) => operation !== 3);
      const lake = await Lake.create();
      try {
        const queue = await openQueue(lake);
        const live = new TestStream();
        // The same rows by two jobs, in other orders and portions; one of them begins before there is a log.
        const jobs = ["bootstrap-a", "bootstrap-b"].map((name) => ({
          stream: new TestStream(name),
          left: random.shuffle(exported),
        }));
        const late = random.shuffle(events);
        while (
          late.length > 0 ||
          jobs.some(({ left }) => left.length > 0) ||
          (await queue.look()).length > 0
        ) {
          const turn = random.below(4);
          const waiting = await queue.look();
          if (turn === 0) await lake.land(live.batch(late.splice(0, 1 + random.below(20))));
          else if (turn < 3) {
            const { stream, left } = jobs[turn - 1]!;
            const some = left.splice(0, 1 + random.below(9));
            if (some.length > 0) await enqueue(lake, queue, stream.batch(some));
          } else if (waiting.length > 0) {
            // The first of one of the jobs; and now and then whoever landed it was killed before it could say so.
            const { stream } = random.pick(waiting);
            const head = waiting.find((one) => one.stream === stream)!;
            await lake.land(await queue.read(head));
            if (random.chance(0.7)) await queue.landed(head);
          }
        }
        const streams = [live, ...jobs.map(({ stream }) => stream)];
        const all = streams.flatMap(({ positions }) => positions);
        expect(await lake.rawPositions()).toEqual([...all].sort());
        expect(await lake.rows()).toEqual(expectedThings(events));
      } finally {
        await lake.close();
      }
    }),
    { numRuns: 12 },
  );
});

test("a reader that is not ours sees what waits, and no more of it once it has landed", async () => {
  const lake = await Lake.create({ checkpointEvery: 3 });
  closers.push(() => lake.close());
  const queue = await openQueue(lake);
  const events = randomEvents(new Random(6), 30);
  const stream = new TestStream("bootstrap-x");
  for (let at = 0; at < 30; at += 5) await enqueue(lake, queue, stream.batch(events.slice(at, at + 5)));
  const folder = join(layout(lake.folder).lake, IMPORTS);
  const sql =
    "SELECT stream || '/' || partition || '/' || position AS place, entity_type FROM t ORDER BY place";
  const seen = async () =>
    (await readForeign(folder, sql)).map(({ place, entity_type }) => {
      expect(entity_type).toBe(THING);
      return place;
    });
  expect(await seen()).toEqual(stream.positions);
  const [first] = await queue.look();
  await lake.land(await queue.read(first!));
  await queue.landed(first!);
  expect(await seen()).toEqual(stream.positions.slice(5));
});

test("a raw table that does not land keeps what is queued where it is, and parks what is live; then both land", async () => {
  const state = { down: false };
  const lake = await Lake.create({
    store: breakable(state),
    ingest: { lingerMs: 1, commitsPerSecond: 1000 },
  });
  const ingest = startIngest(lake.context);
  const live = new MemoryReader("live");
  await ingest.land({ reader: live, name: "t", carries: (type) => type === THING });
  const queue = await openQueue(lake);
  const stream = new TestStream("bootstrap-x");
  const events = randomEvents(new Random(8), 40);
  const lander = landerOf(lake, ingest);
  lander.start();
  await enqueue(lake, queue, stream.batch(events.slice(0, 5)));
  await expect.poll(async () => (await queue.look()).length, { timeout: 20_000 }).toBe(0);
  state.down = true;
  for (let at = 5; at < 20; at += 5) await enqueue(lake, queue, stream.batch(events.slice(at, at + 5)));
  const { health } = lake.context;
  await expect.poll(() => health.get("raw", THING)?.state, { timeout: 20_000 }).toBe("quarantined");
  for (const event of events.slice(20)) live.append(0, encodeTestEvent(event));
  // Parked: its stream is free of it.
  await expect.poll(() => live.caughtUp, { timeout: 20_000 }).toBe(true);
  expect(await queue.look()).toHaveLength(3);
  state.down = false;
  await expect.poll(async () => (await queue.look()).length, { timeout: 60_000 }).toBe(0);
  await expect.poll(() => health.get("raw", THING), { timeout: 60_000 }).toBe(undefined);
  await lander.close();
  ingest.stop();
  await ingest.done;
  await lake.reopen();
  expect((await lake.rawPositions()).filter((place) => place.startsWith("bootstrap-"))).toEqual(
    stream.positions,
  );
  expect(await lake.rows()).toEqual(expectedThings(events));
  await lake.close();
});

/** A job of a folder of one file, run in this process beside an ingest that lands the queue. */
async function setUp(rows: number) {
  const folder = mkdtempSync(join(tmpdir(), "tributary-export-"));
  closers.push(() => rmSync(folder, { recursive: true, force: true }));
  const lake = await Lake.create({ sources: { exports: folder } });
  mkdirSync(join(folder, "things"));
  const file = literal(join(folder, "things", "a.parquet"));
  await lake.query(
    `COPY (SELECT 'acme' AS tenant, 'e' || i AS id, 0 AS version, 'n' || i AS name FROM range(${rows}) t(i)) TO ${file} (FORMAT parquet)`,
  );
  const jobs = new JobStore(lake.context.store);
  const tracks = new JobTracks();
  const words = { source: "exports/things", through: "queue" as const };
  const mapping = { tenant: "tenant", entityId: "id", version: "version" };
  const { order } = jobOf("small", { ...words, mapping });
  await jobs.order(order);
  await tracks.look(() => jobs.list());
  const ingest = startIngest({ ...lake.context, crew: tracks.sparedBy(ALONE) });
  const live = new MemoryReader("live");
  await ingest.land({ reader: live, name: "t", carries: (type) => type === THING });
  const lander = landerOf(lake, ingest, () => [], { jobs });
  closers.push(() => lake.close());
  closers.push(async () => {
    await lander.close();
    ingest.stop();
    await ingest.done;
  });
  const told: Partial<Job["state"]>[] = [];
  const run = (signal = new AbortController().signal) =>
    lake.twin().then(async (twin) => {
      const outcome = await runHere(twin.context, await jobs.get("small"), {
        signal,
        pace: { after: async () => undefined, calm: async () => undefined, yieldedMs: 0 },
        tell: (state) => told.push(state),
        log: (error) => expect(error).toBeUndefined(),
      });
      return outcome;
    });
  return { lake, jobs, live, lander, told, run, order };
}

const wish = (what: "run" | "pause" | "cancel") => ({ wish: what, by: "ops", at: new Date().toISOString() });

test("a job goes through the queue: it is done when its rows have landed, beside live ones that win", async () => {
  const { lake, live, lander, told, run } = await setUp(5_000);
  const running = run();
  await expect.poll(() => told.at(-1)?.rowsWaiting ?? 0, { timeout: 60_000 }).toBe(5_000);
  expect(told.at(-1)).toMatchObject({ rowsLanded: 0, waitingSince: expect.any(String) });
  for (let i = 0; i < 10; i++)
    live.append(
      0,
      encodeTestEvent({ tenant: "acme", id: `e${i}`, operation: 2, version: 1n, thing: { name: "live" } }),
    );
  lander.start();
  expect(await running).toEqual({ kind: "done" });
  const states = told.map(({ phase }) => phase).filter((phase) => phase !== undefined);
  expect(states).toEqual(["checking", "landing", "refining", "verifying"]);
  expect(told.filter(({ rowsWaiting }) => rowsWaiting !== undefined).at(-1)).toMatchObject({
    rowsWaiting: 0,
    rowsLanded: 5_000,
  });
  await expect.poll(() => live.caughtUp, { timeout: 20_000 }).toBe(true);
  const before = await lake.rawPositions();
  expect(before.filter((place) => place.startsWith("bootstrap-small/"))).toHaveLength(5_000);
  // Once more, it changes nothing.
  expect(await run()).toEqual({ kind: "done" });
  expect(await lake.rawPositions()).toEqual(before);
});

test("what a job has queued lands neither while it is paused, nor once it is cancelled", async () => {
  const { lake, jobs, lander, told, run } = await setUp(3_000);
  await jobs.wish("small", wish("pause"));
  const stop = new AbortController();
  const running = run(stop.signal);
  await expect.poll(() => told.at(-1)?.rowsWaiting ?? 0, { timeout: 60_000 }).toBe(3_000);
  lander.start();
  stop.abort();
  expect(await running).toEqual({ kind: "stopped" });
  const queue = await openQueue(lake);
  expect((await queue.look()).reduce((sum, { rows }) => sum + rows, 0)).toBe(3_000);
  expect(await lake.rawPositions()).toEqual([]);
  await jobs.wish("small", wish("cancel"));
  await expect.poll(async () => (await queue.look()).length, { timeout: 20_000 }).toBe(0);
  expect(await lake.rawPositions()).toEqual([]);
  // Called back in time, it queues all of it anew.
  await jobs.wish("small", wish("run"));
  expect(await run()).toEqual({ kind: "done" });
  expect(await lake.rawPositions()).toHaveLength(3_000);
});
