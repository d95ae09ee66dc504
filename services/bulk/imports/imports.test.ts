import { afterEach, expect, test } from "vitest";
import { enqueue, landerOf, openQueue } from "../../../test/support/imports.js";
import {
  encodeTestEvent,
  expectedThings,
  Lake,
  Random,
  randomEvents,
  TestStream,
  THING,
} from "../../../test/support/lake.js";
import { MemoryReader } from "../../../test/support/memory-reader.js";
import { startIngest } from "../../ingest/ingest.js";

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
