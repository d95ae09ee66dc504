import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, expect, test } from "vitest";
import { enqueue, jobOf, landerOf, openQueue } from "../../../test/support/imports.js";
import {
  encodeTestEvent,
  expectedThings,
  Lake,
  NOTE,
  Random,
  randomEvents,
  TestStream,
  THING,
} from "../../../test/support/lake.js";
import { MemoryReader } from "../../../test/support/memory-reader.js";
import { encodeEvent } from "../../contracts/encode-event.js";
import { EventBatch } from "../../ingest/event-batch.js";
import { startIngest } from "../../ingest/ingest.js";
import { IMPORTS } from "./import-queue.js";

const closers: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const close of closers.splice(0).reverse()) await close();
});

/** Ingest with one stream of live events. */
async function running(lake: Lake) {
  const ingest = startIngest(lake.context);
  closers.push(async () => {
    ingest.stop();
    await ingest.done;
  });
  const live = new MemoryReader("live");
  await ingest.land({ reader: live, name: "t", carries: (type) => type === THING });
  return { ingest, live };
}

test("what is queued lands as live events do, and is queued no more", async () => {
  const lake = await Lake.create();
  const { ingest, live } = await running(lake);
  const events = randomEvents(new Random(1), 90);
  const stream = new TestStream("bootstrap-x");
  const queue = await openQueue(lake);
  for (let at = 0; at < 60; at += 20)
    expect(await enqueue(lake, queue, stream.batch(events.slice(at, at + 20)))).toMatchObject({
      kind: "committed",
    });
  const lander = landerOf(lake, ingest);
  closers.push(() => lander.close());
  lander.start();
  for (const event of events.slice(60)) live.append(0, encodeTestEvent(event));
  await expect.poll(async () => (await queue.look()).length, { timeout: 20_000 }).toBe(0);
  await expect.poll(() => live.caughtUp, { timeout: 20_000 }).toBe(true);
  const places = (await lake.rawPositions()).filter((one) => one.startsWith("bootstrap-x"));
  expect(places).toEqual([...stream.positions].sort());
  for (const close of closers.splice(0).reverse()) await close();
  await lake.reopen();
  expect(await lake.rows()).toEqual(expectedThings(events));
  await lake.close();
});

/** Lands nothing, and tells what it was given: "stream position", of the first event. */
function recorder() {
  const given: string[] = [];
  const landBeside = async (events: EventBatch) => {
    given.push(`${events.stream} ${Number(events.positions[0])}`);
    return "landed" as const;
  };
  return { given, ingest: { landBeside } };
}

test("by priority, then the older job's, then by position; what is paused waits, what is cancelled goes", async () => {
  const lake = await Lake.create();
  const queue = await openQueue(lake);
  const [event] = randomEvents(new Random(2), 1);
  const streams = ["late", "urgent", "early", "paused", "cancelled", "unheard-of"].map(
    (id) => new TestStream(`bootstrap-${id}`),
  );
  for (const stream of [...streams, ...streams]) await enqueue(lake, queue, stream.batch([event!]));
  const at = (minute: number) => `2020-01-01T00:0${minute}:00.000Z`;
  let paused = true;
  const jobs = () => [
    jobOf("late", { at: at(2) }),
    jobOf("urgent", { at: at(3), priority: 5 }),
    jobOf("early", { at: at(1) }),
    jobOf("paused", { at: at(0), priority: 9, wish: paused ? "pause" : "run" }),
    jobOf("cancelled", { at: at(0), priority: 9, wish: "cancel" }),
  ];
  const { given, ingest } = recorder();
  const lander = landerOf(lake, ingest, jobs);
  closers.push(() => lake.close());
  closers.push(() => lander.close());
  lander.start();
  const left = async () => new Set((await queue.look()).map(({ stream }) => stream));
  await expect.poll(left, { timeout: 20_000 }).toEqual(new Set(["bootstrap-paused"]));
  const order = ["urgent", "early", "late", "unheard-of"];
  expect(given).toEqual(order.flatMap((id) => [`bootstrap-${id} 1`, `bootstrap-${id} 2`]));
  expect(queue.streams).not.toContain("bootstrap-cancelled");
  paused = false;
  await expect.poll(left, { timeout: 20_000 }).toEqual(new Set());
  expect(given.slice(8)).toEqual(["bootstrap-paused 1", "bootstrap-paused 2"]);
});

test("a table that takes nothing, and a file that is gone, hold up nobody else", async () => {
  const lake = await Lake.create();
  closers.push(() => lake.close());
  const queue = await openQueue(lake);
  const [event] = randomEvents(new Random(3), 1);
  const note = new EventBatch(NOTE, "bootstrap-notes");
  const bytes = encodeEvent({
    tenantId: "acme",
    entityType: NOTE,
    entityId: "1",
    operation: 3,
    version: 1n,
  });
  note.add(bytes, 0, bytes.length, "0", "1", 1_700_000_000_000);
  await enqueue(lake, queue, note);
  await enqueue(lake, queue, new TestStream("bootstrap-gone").batch([event!]));
  const gone = (await queue.look()).find(({ stream }) => stream === "bootstrap-gone")!;
  await lake.context.store.delete([`${IMPORTS}/${gone.file.path}`]);
  const well = new TestStream("bootstrap-well");
  for (let i = 0; i < 3; i++) await enqueue(lake, queue, well.batch([event!]));
  const { given, ingest } = recorder();
  const lander = landerOf(lake, {
    landBeside: async (events) => (events.entityType === NOTE ? "away" : ingest.landBeside(events)),
  });
  closers.push(() => lander.close());
  lander.start();
  const left = async () => (await queue.look()).map(({ stream }) => stream).sort();
  await expect.poll(left, { timeout: 20_000 }).toEqual(["bootstrap-gone", "bootstrap-notes"]);
  expect(given).toEqual([1, 2, 3].map((position) => `bootstrap-well ${position}`));
});

test("live events that wait land before anything that is queued, however much that is", async () => {
  // What comes waits for more of its kind: long enough that it is asked for a turn meanwhile.
  const lake = await Lake.create({ ingest: { lingerMs: 200, commitsPerSecond: 1000 } });
  const { ingest, live } = await running(lake);
  const queue = await openQueue(lake);
  const stream = new TestStream("bootstrap-x");
  const events = randomEvents(new Random(4), 40);
  for (const event of events.slice(0, 12)) await enqueue(lake, queue, stream.batch([event]));
  let asked = 0;
  let refused = 0;
  const waiting: string[] = [];
  const lander = landerOf(lake, {
    landBeside: async (batch) => {
      // Every third turn something live comes first.
      if (asked++ % 3 === 1) {
        waiting.push(live.append(0, encodeTestEvent(events[12 + waiting.length]!)));
        await expect.poll(() => ingest.lagMs(), { timeout: 20_000 }).toBeGreaterThan(0);
      }
      for (;;) {
        // As if it had never waited for long.
        const outcome = await ingest.landBeside(batch, 0);
        if (outcome === "landed") expect(live.caughtUp || ingest.lagMs() === 0).toBe(true);
        if (outcome !== "busy") return outcome!;
        refused++;
        await sleep(5);
      }
    },
  });
  closers.push(() => lander.close());
  lander.start();
  await expect.poll(async () => (await queue.look()).length, { timeout: 60_000 }).toBe(0);
  // More, where the lane was not open yet when it was asked first.
  expect(waiting.length).toBeGreaterThanOrEqual(4);
  expect(refused).toBeGreaterThan(3);
  // But not for ever: what has waited for a second has its turn.
  live.append(0, encodeTestEvent(events[30]!));
  await expect.poll(() => ingest.lagMs(), { timeout: 20_000 }).toBeGreaterThan(0);
  expect(await ingest.landBeside(stream.batch([events[31]!]), 1_000)).toBe("landed");
  for (const close of closers.splice(0).reverse()) await close();
  await lake.close();
});

test("an append of whatever size lands some rows a turn, and goes on where it stopped", async () => {
  const lake = await Lake.create();
  closers.push(() => lake.close());
  const queue = await openQueue(lake);
  const [event] = randomEvents(new Random(7), 1);
  const stream = new TestStream("bootstrap-x");
  await enqueue(lake, queue, stream.batch(Array.from({ length: 4_500 }, () => event!)));
  const turns: number[] = [];
  let stops = 1;
  const lander = landerOf(lake, {
    landBeside: async (events) => {
      if (turns.length === 2 && stops-- > 0) return "away";
      turns.push(events.count);
      await lake.land(events);
      return "landed";
    },
  });
  closers.push(() => lander.close());
  lander.start();
  await expect.poll(async () => (await queue.look()).length, { timeout: 30_000 }).toBe(0);
  expect(turns).toEqual([2_000, 2_000, 2_000, 2_000, 500]);
  expect(await lake.rawPositions()).toEqual(stream.positions);
});

/** The same events at the same positions, made again later. */
function madeAgain(batch: EventBatch): EventBatch {
  const again = new EventBatch(batch.entityType, batch.stream);
  for (let i = 0; i < batch.count; i++) {
    const bytes = batch.event(i);
    const [partition, position, at] = [batch.partitions[i]!, batch.positions[i]!, batch.receivedAt[i]!];
    again.add(bytes, 0, bytes.length, partition, position, at + 60_000);
  }
  return again;
}

test("what was forgotten, queued again, and landed meanwhile by who had it in memory, is not stuck", async () => {
  const lake = await Lake.create();
  closers.push(() => lake.close());
  const { ingest, live } = await running(lake);
  const queue = await openQueue(lake);
  const stream = new TestStream("bootstrap-x");
  const [first, ...events] = randomEvents(new Random(8), 30);
  live.append(0, encodeTestEvent(first!));
  await expect.poll(() => live.caughtUp, { timeout: 20_000 }).toBe(true);
  const batch = stream.batch(events);
  await enqueue(lake, queue, batch);
  let go: () => void = () => undefined;
  const gate = new Promise<void>((resolve) => {
    go = resolve;
  });
  let held: () => void = () => undefined;
  const holds = new Promise<void>((resolve) => {
    held = resolve;
  });
  // It has read the file, and waits for its window.
  const pace = {
    after: () => {
      held();
      return gate;
    },
  };
  const lander = landerOf(lake, ingest, () => [], { pace });
  closers.push(() => lander.close());
  lander.start();
  await holds;
  // The job is cancelled, which another worker sees to, and resumed at once.
  await queue.forget("bootstrap-x");
  await queue.look();
  await enqueue(lake, queue, madeAgain(batch));
  go();
  await expect.poll(async () => (await queue.look()).length, { timeout: 20_000 }).toBe(0);
  const places = (await lake.rawPositions()).filter((one) => one.startsWith("bootstrap-x"));
  expect(places).toEqual(stream.positions);
});

test("a queued event in whose place raw has another one holds up its own file alone", async () => {
  const lake = await Lake.create();
  closers.push(() => lake.close());
  const { ingest, live } = await running(lake);
  const [one, other, third] = randomEvents(new Random(9), 3).map((event, i) => ({ ...event, id: `e${i}` }));
  const landed = async (batch: EventBatch) => {
    for (;;) {
      const outcome = await ingest.landBeside(batch, 1_000);
      if (outcome === "landed") return;
      await sleep(5);
    }
  };
  await landed(new TestStream("bootstrap-x").batch([one!]));
  const states: string[] = [];
  const { health } = lake.context;
  const set = health.set.bind(health);
  health.set = (status) => {
    states.push(`${status.kind} ${status.state}`);
    set(status);
  };
  for (let i = 0; i < 3; i++)
    await expect(
      ingest.landBeside(new TestStream("bootstrap-x").batch([other!]), 1_000),
    ).rejects.toMatchObject({ code: "TRB-STREAM-CORRUPT" });
  live.append(0, encodeTestEvent(third!));
  await expect.poll(() => live.caughtUp, { timeout: 20_000 }).toBe(true);
  expect(states.filter((one) => one.startsWith("raw"))).toEqual([]);
});
