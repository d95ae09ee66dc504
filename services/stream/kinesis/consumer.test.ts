import {
  DescribeStreamSummaryCommand,
  GetRecordsCommand,
  GetShardIteratorCommand,
} from "@aws-sdk/client-kinesis";
import { pino } from "pino";
import { Registry } from "prom-client";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { readEvents } from "../../../test/contract/change-stream.js";
import { eventSlices, eventsOf, type ReadEvent } from "../../../test/support/event-slices.js";
import { FakeKinesis, throttled } from "../../../test/support/fake-kinesis.js";
import { MemoryLeases } from "../../../test/support/memory-leases.js";
import type { StreamConsumer } from "../change-stream.js";
import { KinesisMetrics } from "./metrics.js";
import { KinesisReader } from "./reader.js";
import { KinesisWriter } from "./writer.js";

const DAY = 24 * 3_600_000;
const LIMIT = { maxEvents: 1_000, maxBytes: 1e7, waitMs: 5_000 };

let kinesis: FakeKinesis;
let leases: MemoryLeases;
let writer: KinesisWriter;
const open: { close(): Promise<void> }[] = [];

async function begin(shards: number, retentionMs = DAY): Promise<void> {
  kinesis = new FakeKinesis(shards);
  kinesis.retentionHours = retentionMs / 3_600_000;
  leases = new MemoryLeases();
  writer = await KinesisWriter.open(options());
  open.push(writer);
}
const options = () => ({
  client: kinesis.client(),
  stream: "fake",
  leases: async () => leases,
  log: pino({ level: "silent" }),
});
async function openReader(more: { leaseMs?: number; metrics?: KinesisMetrics } = {}): Promise<KinesisReader> {
  const reader = await KinesisReader.open({ ...options(), ...more });
  open.push(reader);
  return reader;
}
beforeEach(() => begin(1));
afterEach(async () => {
  vi.restoreAllMocks();
  for (const one of open.splice(0).reverse()) await one.close();
});

const append = (from: number, count: number, quarter = (i: number) => i % 4) =>
  writer.append(
    eventSlices(
      Array.from({ length: count }, (_, i) => ({
        partition: quarter(i),
        bytes: Buffer.from(`event-${from + i}`),
      })),
    ),
  );
const texts = (events: readonly ReadEvent[]) => events.map(({ text }) => text);
const numbered = (from: number, count: number) =>
  Array.from({ length: count }, (_, i) => `event-${from + i}`);
const ends = (events: readonly ReadEvent[]) =>
  new Map(events.map(({ partition, position }) => [partition, position]));
const later = (ms: number) => {
  const now = Date.now();
  vi.spyOn(Date, "now").mockImplementation(() => now + ms);
};

test("a consumer goes on inside an aggregated record", async () => {
  await append(0, 100);
  expect(kinesis.shards[0]!.records).toHaveLength(1);
  const reader = await openReader();
  let consumer = await reader.consume("c");
  const events = await readEvents(consumer, 100);
  await consumer.commit(ends(events.slice(0, 37)));
  await consumer.close();
  consumer = await reader.consume("c");
  expect(texts(await readEvents(consumer, 63))).toEqual(numbered(37, 63));
});

test("an iterator that has expired, and reads that are refused, cost nothing but time", async () => {
  const consumer = await (await openReader()).consume("c");
  let refuse = 0;
  kinesis.before = (command) => {
    if (command instanceof GetRecordsCommand && refuse-- > 0) throw throttled();
  };
  const seen: string[] = [];
  for (let round = 0; round < 4; round++) {
    await append(round * 30, 30);
    if (round % 2 === 0) kinesis.expireIterators();
    else refuse = 2;
    seen.push(...texts(await readEvents(consumer, 30)));
  }
  expect(seen).toEqual(numbered(0, 120));
});

test("children are read after their parent is done, not before; the leases of shards long gone go", async () => {
  const reader = await openReader({ leaseMs: 1_000 });
  const consumer = await reader.consume("c");
  await append(0, 40);
  kinesis.split(0);
  for (let i = 0; i < 20; i++) await append(40 + i * 4, 4);
  const parent = kinesis.shards[0]!.id;
  const first: ReadEvent[] = [];
  while (first.length < 40) first.push(...(await readEvents(consumer, 1)));
  expect(new Set(first.map(({ partition }) => partition))).toContain(parent);
  const ofParent = kinesis.shards[0]!.records.length;
  expect(ofParent).toBeGreaterThan(0);
  // Not committed: no child yet.
  const early = await consumer.read({ ...LIMIT, waitMs: 1_500 });
  expect(early).toBeUndefined();
  await consumer.commit(ends(first));
  const rest = await readEvents(consumer, 120 - first.length);
  expect(new Set(rest.map(({ partition }) => partition))).toEqual(
    new Set([kinesis.shards[1]!.id, kinesis.shards[2]!.id]),
  );
  expect(new Set(texts([...first, ...rest]))).toEqual(new Set(numbered(0, 120)));
  await consumer.commit(ends(rest));
  expect(leases.leases.get(`c/${parent}`)).toMatchObject({ finished: true });
  expect(new Map(await reader.lowWater("c"))).toEqual(ends([...first, ...rest]));
  // Kinesis lists a closed shard until its records are trimmed.
  kinesis.shards.shift();
  await consumer.close();
  const next = await reader.consume("c");
  expect(leases.leases.has(`c/${parent}`)).toBe(false);
  expect(await next.read({ ...LIMIT, waitMs: 600 })).toBeUndefined();
});

test("a follower reads parents before children", async () => {
  await append(0, 40);
  kinesis.split(0);
  await append(40, 40);
  const follower = await (await openReader()).follow("oldest");
  const events = await readEvents(follower, 80);
  const ofParent = events.findLastIndex(({ partition }) => partition === kinesis.shards[0]!.id);
  expect(events.slice(0, ofParent + 1).every(({ partition }) => partition === kinesis.shards[0]!.id)).toBe(
    true,
  );
  expect(new Set(texts(events))).toEqual(new Set(numbered(0, 80)));
});

test("a follower of what comes next misses nothing, also when its place expires before it has read anything", async () => {
  let away = true;
  kinesis.before = (command) => {
    if (away && command instanceof GetRecordsCommand) throw throttled();
  };
  const follower = await (await openReader()).follow("next");
  await append(0, 40);
  kinesis.expireIterators();
  away = false;
  expect(new Set(texts(await readEvents(follower, 40)))).toEqual(new Set(numbered(0, 40)));
});

test("children that are not listed yet when their parent has been read are waited for, by consumers and followers", async () => {
  await append(0, 4);
  kinesis.split(0);
  await append(4, 4);
  const [low, high] = kinesis.shards.splice(1);
  const reader = await openReader({ leaseMs: 1_000 });
  const follower = await reader.follow("oldest");
  const consumer = await reader.consume("c");
  expect(texts(await readEvents(follower, 4))).toEqual(numbered(0, 4));
  await consumer.commit(ends(await readEvents(consumer, 4)));
  const nothing = { ...LIMIT, waitMs: 1_300 };
  expect(await Promise.all([follower.read(nothing), consumer.read(nothing)])).toEqual([undefined, undefined]);
  kinesis.shards.push(low!);
  expect(await Promise.all([follower.read(nothing), consumer.read(nothing)])).toEqual([undefined, undefined]);
  kinesis.shards.push(high!);
  const rest = new Set(numbered(4, 4));
  expect(new Set(texts(await readEvents(follower, 4)))).toEqual(rest);
  expect(new Set(texts(await readEvents(consumer, 4)))).toEqual(rest);
});

test("several consumers share the shards, hand over what they have read and committed, and miss nothing", async () => {
  await begin(4);
  const held = new Map<string, Set<string>>();
  const seen = new Map<string, string[]>();
  const stop = new AbortController();
  const run = async (name: string): Promise<void> => {
    const mine = new Set<string>();
    held.set(name, mine);
    const done = new Map<string, string>();
    const consumer: StreamConsumer = await (await openReader({ leaseMs: 1_000 })).consume("c", {
      assigned: (partitions) => {
        for (const partition of partitions) mine.add(partition.name);
      },
      revoked: async (names) => {
        await consumer.commit(done);
        for (const partition of names) mine.delete(partition);
      },
    });
    while (!stop.signal.aborted) {
      const batch = await consumer.read({ ...LIMIT, waitMs: 100, signal: stop.signal });
      for (const event of batch === undefined ? [] : eventsOf(batch)) {
        done.set(event.partition, event.position);
        seen.set(event.text, [...(seen.get(event.text) ?? []), name]);
      }
      await consumer.commit(done);
    }
    await consumer.close();
  };
  const workers = [run("a")];
  const sizes = () => [...held.values()].map(({ size }) => size).sort();
  const publish = async (from: number) => {
    for (let i = 0; i < 25; i++) await append(from + i * 4, 4);
  };
  await publish(0);
  await expect.poll(sizes).toEqual([4]);
  workers.push(run("b"));
  await publish(100);
  await expect.poll(sizes, { timeout: 10_000 }).toEqual([2, 2]);
  workers.push(run("c"), run("d"));
  await publish(200);
  await expect.poll(sizes, { timeout: 10_000 }).toEqual([1, 1, 1, 1]);
  await publish(300);
  await expect.poll(() => seen.size, { timeout: 10_000 }).toBe(400);
  // Graceful: what was committed on the way out is not read again.
  expect([...seen.values()].filter((readers) => readers.length > 1)).toEqual([]);
  stop.abort();
  await Promise.all(workers);
});

test("records that were trimmed before they were read are told of, never jumped over", async () => {
  await append(0, 10);
  const reader = await openReader();
  let consumer = await reader.consume("c");
  const events = await readEvents(consumer, 10);
  await consumer.commit(ends(events));
  await consumer.close();
  await append(10, 10);
  await append(20, 10);
  // Two days later, of a stream that keeps one.
  later(2 * DAY);
  kinesis.shards[0]!.records.splice(0, 2);
  consumer = await reader.consume("c");
  await expect(consumer.read(LIMIT)).rejects.toMatchObject({ code: "TRB-STREAM-FORGOTTEN" });
  await consumer.close();
  const follower = await reader.follow(ends(events));
  await expect(follower.read(LIMIT)).rejects.toMatchObject({ code: "TRB-STREAM-FORGOTTEN" });
  // An operator may say that what is gone is gone.
  const lease = [...leases.leases.values()][0]!;
  await leases.change([{ from: lease, to: { ...lease, checkpoint: "TRIM_HORIZON" } }]);
  consumer = await reader.consume("c");
  expect(texts(await readEvents(consumer, 10))).toEqual(numbered(20, 10));
});

test("what is trimmed because the retention was made shorter while we run is told of, by whoever reads", async () => {
  await begin(1, 7 * DAY);
  await append(0, 10);
  const reader = await openReader();
  const running = await reader.follow("oldest");
  const events = await readEvents(running, 10);
  const consumer = await reader.consume("c");
  await consumer.commit(ends(await readEvents(consumer, 10)));
  await consumer.close();
  // Nobody is answered for two days of seven; then the stream keeps one.
  let down = true;
  kinesis.before = (command) => {
    if (down && command instanceof GetRecordsCommand) throw throttled();
  };
  await append(10, 10);
  await append(20, 10);
  later(2 * DAY);
  kinesis.retentionHours = 24;
  kinesis.shards[0]!.records.splice(0, 2);
  down = false;
  await expect(running.read(LIMIT)).rejects.toMatchObject({ code: "TRB-STREAM-FORGOTTEN" });
  const next = await reader.consume("c");
  await expect(next.read(LIMIT)).rejects.toMatchObject({ code: "TRB-STREAM-FORGOTTEN" });
  // What was gone is so when the stream keeps more again, too.
  kinesis.retentionHours = 7 * 24;
  expect(await reader.retentionMs()).toBe(7 * DAY);
  const follower = await reader.follow(ends(events));
  await expect(follower.read(LIMIT)).rejects.toMatchObject({ code: "TRB-STREAM-FORGOTTEN" });
});

test("what a child has lost before it was begun is told of, when its parent was read long after the split", async () => {
  kinesis.retentionHours = 7 * 24;
  const consumer = await (await openReader()).consume("c");
  await append(0, 4);
  await readEvents(consumer, 4);
  await consumer.close();
  await append(4, 1);
  kinesis.split(0);
  await append(5, 2, (i) => 3 * i);
  later(3 * DAY);
  // It has got as far as the parent's end, and then is away again.
  const slow = await (await openReader()).consume("c");
  kinesis.before = (command) => {
    if (command instanceof GetRecordsCommand && !command.input.ShardIterator!.includes("-000000000000:")) {
      throw throttled();
    }
  };
  const events = await readEvents(slow, 5);
  await slow.commit(ends(events));
  const parent = `c/${kinesis.shards[0]!.id}`;
  await vi.waitFor(() => expect(leases.leases.get(parent)).toMatchObject({ finished: true }), 5_000);
  await slow.close();
  kinesis.before = () => undefined;
  vi.restoreAllMocks();
  later(8 * DAY);
  for (const { records } of kinesis.shards) records.splice(0);
  await expect((await (await openReader()).consume("c")).read(LIMIT)).rejects.toMatchObject({
    code: "TRB-STREAM-FORGOTTEN",
  });
});

test("a retention that cannot be asked for is as it was", async () => {
  await append(0, 10);
  const reader = await openReader();
  let consumer = await reader.consume("c");
  await consumer.commit(ends(await readEvents(consumer, 10)));
  await consumer.close();
  later(2 * DAY);
  kinesis.shards[0]!.records.length = 0;
  await append(10, 10);
  const denied = Object.assign(new Error("no"), { name: "AccessDeniedException" });
  kinesis.before = (command) => {
    if (command instanceof DescribeStreamSummaryCommand) throw denied;
  };
  consumer = await reader.consume("c");
  await expect(consumer.read(LIMIT)).rejects.toMatchObject({ code: "TRB-STREAM-FORGOTTEN" });
});

test("a last record that is still there proves that nothing is missing, however old it is", async () => {
  await append(0, 10);
  const reader = await openReader();
  let consumer = await reader.consume("c");
  await consumer.commit(ends(await readEvents(consumer, 10)));
  await consumer.close();
  later(2 * DAY);
  await append(10, 10);
  consumer = await reader.consume("c");
  expect(texts(await readEvents(consumer, 10))).toEqual(numbered(10, 10));
});

test("a shard that was quiet for days is not taken for one that has lost something", async () => {
  await append(0, 10);
  const reader = await openReader();
  let consumer = await reader.consume("c");
  await consumer.commit(ends(await readEvents(consumer, 10)));
  // It is looked at for two days, and its lease says so.
  later(2 * DAY);
  const before = [...leases.leases.values()][0]!.checkpoint;
  await expect.poll(() => [...leases.leases.values()][0]!.checkpoint, { timeout: 10_000 }).not.toBe(before);
  await consumer.close();
  kinesis.shards[0]!.records.length = 0;
  await append(10, 10);
  consumer = await reader.consume("c");
  expect(texts(await readEvents(consumer, 10))).toEqual(numbered(10, 10));
});

test("a consumer that slept longer than its lease delivers nothing before it has renewed", async () => {
  const consumer = await (await openReader({ leaseMs: 2_000 })).consume("c");
  await append(0, 10);
  await new Promise((resolve) => setTimeout(resolve, 600));
  // Nobody answers it any more, and its time runs out.
  leases.down = true;
  await new Promise((resolve) => setTimeout(resolve, 2_100));
  expect(await consumer.read({ ...LIMIT, waitMs: 300 })).toBeUndefined();
  leases.down = false;
  expect(texts(await readEvents(consumer, 10))).toEqual(numbered(0, 10));
});

test("a shard's lag is a metric, and so are refused reads", async () => {
  const registry = new Registry();
  const metrics = KinesisMetrics.of(registry);
  let refuse = 1;
  kinesis.before = (command) => {
    if (command instanceof GetRecordsCommand && refuse-- > 0) throw throttled();
  };
  const consumer = await (await openReader({ metrics })).consume("c");
  await append(0, 10);
  await readEvents(consumer, 10);
  const text = await registry.metrics();
  expect(text).toContain('tributary_stream_behind_seconds{stream="fake",partition="shardId-000000000000"} 0');
  expect(text).toContain('tributary_stream_throttled_total{stream="fake",operation="read"} 1');
  await consumer.close();
  expect(await registry.metrics()).not.toContain("shardId");
});

test("reading keeps the pace that a shard allows", async () => {
  const consumer = await (await openReader()).consume("c");
  kinesis.requests.length = 0;
  await consumer.read({ ...LIMIT, waitMs: 1_000 });
  const reads = kinesis.requests.filter((command) => command instanceof GetRecordsCommand).length;
  expect(reads).toBeLessThanOrEqual(6);
  expect(
    kinesis.requests.filter((command) => command instanceof GetShardIteratorCommand).length,
  ).toBeLessThanOrEqual(1);
});
