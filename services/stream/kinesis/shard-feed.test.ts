import { setImmediate } from "node:timers/promises";
import { expect, test } from "vitest";
import { FeedSet } from "./feed-set.js";
import { ShardFeed } from "./shard-feed.js";
import type { Fetched } from "./shard-source.js";

test("records without a byte are not read ahead without end, and all come when they are wanted", async () => {
  const LAST = 200;
  const EACH = 1_000;
  let answers = 0;
  let sequence = 0;
  const next = async (): Promise<Fetched> => {
    await setImmediate();
    answers++;
    const records = Array.from({ length: EACH }, () => ({
      sequence: String(++sequence),
      data: new Uint8Array(0),
      arrivedAt: 0,
    }));
    return { records, behindMs: 0, ended: answers === LAST };
  };
  const feed = new ShardFeed("shard", undefined, {
    reserve: async () => () => undefined,
    wake: () => undefined,
  });
  feed.start({ next });
  for (let turn = 0; turn < 1_000; turn++) await setImmediate();
  expect(answers).toBeLessThan(20);
  let taken = 0;
  while (!feed.ended) {
    if (feed.records.length > 0) {
      feed.last = feed.records[0]!.record;
      feed.shift();
      taken++;
    } else await setImmediate();
  }
  expect(taken).toBe(LAST * EACH);
  expect(feed.bytes).toBe(0);
});

test("what was taken of one shard is delivered, also when another one has failed", async () => {
  const feeds = new FeedSet();
  const well = new ShardFeed("well", undefined, feeds);
  const failed = new ShardFeed("failed", undefined, feeds);
  feeds.add(well);
  feeds.add(failed);
  const records = [{ sequence: "1", data: Buffer.from("event"), arrivedAt: 0 }];
  well.start({ next: async () => ({ records, behindMs: 0, ended: true }) });
  failed.start({ next: () => Promise.reject(new Error("gone")) });
  while (well.records.length === 0 || failed.failure === undefined) await setImmediate();
  const limit = { maxEvents: 10, maxBytes: 1_000, waitMs: 0 };
  const batch = feeds.take(limit, () => true);
  expect(batch?.count).toBe(1);
  expect(() => feeds.take(limit, () => true)).toThrow("gone");
});
