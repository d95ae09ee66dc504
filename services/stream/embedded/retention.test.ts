import { describe, expect, test } from "vitest";
import { eventSlices, eventsOf } from "../../../test/support/event-slices.js";
import { SimulatedFiles } from "../../../test/support/simulated-files.js";
import type { StreamFollower } from "../change-stream.js";
import { EmbeddedLogReader } from "./reader.js";
import { EmbeddedLogWriter } from "./writer.js";

const FOLDER = "/simulated/stream";
const event = (text: string, partition = 0) =>
  eventSlices([{ partition, bytes: Buffer.from(text) }], undefined, 2);

async function setUp(files = new SimulatedFiles()) {
  const writer = await EmbeddedLogWriter.open({ folder: FOLDER, partitions: 2, segmentBytes: 300, files });
  const reader = await EmbeddedLogReader.open({ folder: FOLDER, files });
  const segments = async () =>
    (await files.list(`${FOLDER}/log`)).map(({ name }) => Number.parseInt(name, 10)).sort((a, b) => a - b);
  /** One segment each. */
  const fill = async (from: number, count: number) => {
    for (let i = from; i < from + count; i++) await writer.append(event(`${i}`.padEnd(250), i % 2));
  };
  const close = async () => {
    await reader.close();
    await writer.close();
  };
  return { files, writer, reader, segments, fill, close };
}

async function take(consumer: StreamFollower, count: number) {
  const last = new Map<string, string>();
  const texts: string[] = [];
  while (texts.length < count) {
    const batch = await consumer.read({ maxEvents: count - texts.length, maxBytes: 1e6, waitMs: 0 });
    if (batch === undefined) throw new Error(`only ${texts.length} of ${count} events came`);
    for (const { partition, position, text } of eventsOf(batch)) {
      last.set(String(partition), position);
      texts.push(text.trim());
    }
  }
  return { last, texts };
}

describe("retention", () => {
  test("with no consumer nothing is forgotten", async () => {
    const { writer, segments, fill, close } = await setUp();
    await fill(1, 5);
    expect(await writer.trim()).toBe(0);
    expect(await segments()).toEqual([1, 2, 3, 4, 5]);
    await close();
  });

  test("a follower holds nothing back, and is told when what it still had to read is gone", async () => {
    const { writer, reader, segments, fill, close } = await setUp();
    const consumer = await reader.consume("ingest");
    await fill(1, 6);
    const early = await reader.follow("oldest");
    const { last } = await take(early, 2);
    await consumer.commit((await take(consumer, 6)).last);
    expect(await writer.trim()).toBe(5);
    expect(await segments()).toEqual([6]);
    const forgotten = { code: "TRB-STREAM-FORGOTTEN" };
    const reading = async () => {
      // What it has in memory or open it may still deliver; what is missing, never without a word.
      for (;;) await take(early, 1);
    };
    await expect(reading()).rejects.toMatchObject(forgotten);
    await expect(reader.follow(last)).rejects.toMatchObject(forgotten);
    await expect(reader.follow(new Map([["0", "0000000000000002"]]))).rejects.toMatchObject(forgotten);
    const oldest = await reader.follow("oldest");
    expect((await take(oldest, 1)).texts).toEqual(["6"]);
    await close();
  });

  test("a consumer that was replaced does not set its successor back behind what is forgotten", async () => {
    const { files, writer, reader, segments, fill, close } = await setUp();
    const replaced = await reader.consume("ingest");
    await fill(1, 6);
    const [old, rest] = [await take(replaced, 2), await take(replaced, 4)];
    const successor = await reader.consume("ingest");
    await successor.commit((await take(successor, 5)).last);
    expect(await writer.trim()).toBe(5);
    await replaced.commit(old.last);
    await successor.close();
    const third = await EmbeddedLogReader.open({ folder: FOLDER, files });
    expect((await take(await third.consume("ingest"), 1)).texts).toEqual(["6"]);
    // What the one that was replaced has done beyond it counts.
    await replaced.commit(rest.last);
    expect(await third.lowWater("ingest")).toEqual(await third.head());
    expect(await segments()).toEqual([6]);
    await third.close();
    await close();
  });

  test("a segment goes when the slowest consumer is done with all of it; the active one stays", async () => {
    const { writer, reader, segments, fill, close } = await setUp();
    const fast = await reader.consume("fast");
    const slow = await reader.consume("slow");
    await fill(1, 6);
    await fast.commit((await take(fast, 6)).last);
    expect(await writer.trim()).toBe(0);
    await slow.commit((await take(slow, 3)).last);
    expect(await writer.trim()).toBe(3);
    expect(await segments()).toEqual([4, 5, 6]);
    await slow.commit((await take(slow, 3)).last);
    expect(await writer.trim()).toBe(2);
    expect(await segments()).toEqual([6]);
    expect(writer.backlogBytes()).toBe(0);
    await close();
  });

  test("segments go oldest first, each durably before the next", async () => {
    const { files, writer, reader, fill, close } = await setUp();
    const consumer = await reader.consume("c");
    await fill(1, 3);
    await consumer.commit((await take(consumer, 3)).last);
    const before = files.operations.length;
    await writer.trim();
    const log = files.operations.slice(before).filter((step) => /unlink|syncFolder .*log$/.test(step));
    expect(log.map((step) => step.replace(`${FOLDER}/log`, "LOG"))).toEqual([
      "unlink LOG/000000000001.seg",
      "syncFolder LOG",
      "unlink LOG/000000000002.seg",
      "syncFolder LOG",
    ]);
    await close();
  });

  test("a partition that lags holds its segments", async () => {
    const { writer, reader, segments, fill, close } = await setUp();
    const consumer = await reader.consume("c");
    await fill(1, 6);
    const { last } = await take(consumer, 6);
    await consumer.commit(new Map([["1", last.get("1")!]])); // 1, 3, 5; nothing of partition 0
    expect(await writer.trim()).toBe(1);
    expect(await segments()).toEqual([2, 3, 4, 5, 6]);
    await close();
  });

  test("a consumer reads on while what it has done is deleted under it", async () => {
    const { writer, reader, fill, close } = await setUp();
    const consumer = await reader.consume("c");
    let next = 1;
    for (let round = 0; round < 10; round++) {
      await fill(next, 4);
      const { last, texts } = await take(consumer, 4);
      expect(texts).toEqual([0, 1, 2, 3].map((i) => String(next + i)));
      await consumer.commit(last);
      await writer.trim();
      next += 4;
    }
    await close();
  });

  test("the head is told though what lay between two looks was deleted", async () => {
    const { writer, reader, fill, close } = await setUp();
    const consumer = await reader.consume("c");
    await fill(1, 2);
    await reader.head();
    await fill(3, 4);
    const { last } = await take(consumer, 6);
    await consumer.commit(last);
    expect(await writer.trim()).toBe(5);
    expect(new Map(await reader.head())).toEqual(last);
    await fill(7, 1);
    expect((await reader.head()).get("1")).toBe((await take(consumer, 1)).last.get("1"));
    await close();
  });

  test("a consumer resumes after its own segment was deleted, also across restarts of the writer", async () => {
    const one = await setUp();
    const consumer = await one.reader.consume("c");
    await one.fill(1, 4);
    await consumer.commit((await take(consumer, 4)).last);
    await one.close();
    await (await setUp(one.files)).close();
    const two = await setUp(one.files);
    await two.writer.trim();
    expect(await two.segments()).toEqual([6]);
    const resumed = await two.reader.consume("c");
    await two.fill(5, 2);
    expect((await take(resumed, 2)).texts).toEqual(["5", "6"]);
    await two.close();
  });

  test("a reader follows a writer that restarts, over segments that stayed empty and were deleted", async () => {
    const one = await setUp();
    const consumer = await one.reader.consume("c");
    await one.fill(1, 2);
    await take(consumer, 2);
    await one.writer.close();
    for (let restart = 0; restart < 3; restart++) {
      const writer = await EmbeddedLogWriter.open({
        folder: FOLDER,
        partitions: 2,
        segmentBytes: 300,
        files: one.files,
      });
      await writer.trim();
      await writer.close();
    }
    const two = await setUp(one.files);
    await two.fill(3, 2);
    expect((await take(consumer, 2)).texts).toEqual(["3", "4"]);
    await two.close();
    await one.reader.close();
  });

  test("a consumer that comes late starts with what is left", async () => {
    const { writer, reader, fill, close } = await setUp();
    const early = await reader.consume("early");
    await fill(1, 5);
    await early.commit((await take(early, 5)).last);
    await writer.trim();
    const late = await reader.consume("late");
    expect((await take(late, 1)).texts).toEqual(["5"]);
    await fill(6, 1);
    await early.commit((await take(early, 1)).last);
    expect(await writer.trim()).toBe(0); // "late" is not done with 5
    await close();
  });

  test("a segment is deleted only when the records that allow it are durable", async () => {
    const { files, writer, reader, fill } = await setUp();
    const consumer = await reader.consume("c");
    await fill(1, 4);
    await consumer.commit((await take(consumer, 1)).last);
    files.onOperation = (operation, path) => {
      if (operation === "syncFolder" && path.endsWith("consumers"))
        throw Object.assign(new Error(), { code: "EIO" });
    };
    await expect(consumer.commit((await take(consumer, 3)).last)).rejects.toMatchObject({
      code: "TRB-BUS-STREAM-DOWN",
    });
    await writer.trim().catch(() => undefined);
    files.onOperation = undefined;
    await writer.trim();
    files.crashAt = 0;
    const after = await setUp(files.afterPowerLoss(() => 0.99));
    const resumed = await after.reader.consume("c");
    await after.fill(5, 1);
    const texts: string[] = [];
    for (let batch = await resumed.read({ maxEvents: 9, maxBytes: 1e6, waitMs: 0 }); batch !== undefined; ) {
      texts.push(...eventsOf(batch).map(({ text }) => text.trim()));
      batch = await resumed.read({ maxEvents: 9, maxBytes: 1e6, waitMs: 0 });
    }
    expect(texts.at(-1)).toBe("5");
    await after.close();
    await reader.close();
    await writer.close();
  });
});
