import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { Compression } from "../../services/stream/kafka/settings.js";
import type { KafkaWriter } from "../../services/stream/kafka/writer.js";
import { KafkaCluster, START_MS } from "../servers/kafka.js";
import { freePort } from "../servers/tool.js";
import { eventSlices, eventsOf } from "../support/event-slices.js";
import { FlakyProxy } from "../support/flaky-proxy.js";
import { openKafkaReader, openKafkaWriter } from "../support/kafka.js";

const open: { close(): Promise<unknown> }[] = [];
const opened = <T extends { close(): Promise<unknown> }>(it: T): T => {
  open.push(it);
  return it;
};
afterEach(async () => {
  for (const it of open.splice(0).reverse()) await it.close();
});
const topicName = () => `outage-${randomBytes(4).toString("hex")}`;

/** Several producers at once, each event once; remembers what was promised of each. */
class Producers {
  readonly kept = new Map<string, string>();
  readonly refused = new Set<string>();
  readonly doubted = new Set<string>();
  readonly sent = new Set<string>();
  /** Longest time that a call took, in ms. */
  longest = 0;
  private stopped = false;
  private readonly running: Promise<unknown>;

  constructor(writer: KafkaWriter, producers = 8, pauseMs = 5) {
    this.running = Promise.all(
      Array.from({ length: producers }, async (_, p) => {
        for (let n = 0; !this.stopped; n++) {
          await this.send(writer, `${p}-${n}`);
          await sleep(pauseMs);
        }
      }),
    );
  }

  private async send(writer: KafkaWriter, name: string): Promise<void> {
    const texts = Array.from({ length: 20 }, (_, i) => `${name}-${i}`);
    for (const text of texts) this.sent.add(text);
    const began = performance.now();
    try {
      const { names, partitions, positions } = await writer.append(
        eventSlices(texts.map((text, i) => ({ partition: i % 4, bytes: Buffer.from(text) }))),
      );
      positions.forEach((position, i) => {
        if (position === undefined) this.refused.add(texts[i]!);
        else this.kept.set(texts[i]!, `${names[partitions[i]!]} ${position}`);
      });
    } catch (error) {
      expect(error).toMatchObject({ code: "TRB-BUS-STREAM-DOWN" });
      for (const text of texts) this.doubted.add(text);
    }
    this.longest = Math.max(this.longest, performance.now() - began);
  }

  async stop(): Promise<void> {
    this.stopped = true;
    await this.running;
  }
}

/** Each event that was given a position stands there, and nowhere else; what was refused stands nowhere; nothing twice. */
async function check(
  producers: Producers,
  cluster: Pick<KafkaCluster, "brokers">,
  topic: string,
  few: boolean,
): Promise<void> {
  const reader = opened(await openKafkaReader(cluster, topic, { allowFewReplicas: few }));
  const stored = new Map<string, string[]>();
  for await (const batch of reader.waiting("nobody")) {
    for (const { text, partition, position } of eventsOf(batch)) {
      stored.set(text, [...(stored.get(text) ?? []), `${partition} ${position}`]);
    }
  }
  const wrong = [...producers.kept].filter(([text, place]) => stored.get(text)?.join() !== place);
  expect(wrong).toEqual([]);
  expect([...producers.refused].filter((text) => stored.has(text))).toEqual([]);
  expect([...stored].filter(([, places]) => places.length > 1)).toEqual([]);
  expect([...stored.keys()].filter((text) => !producers.sent.has(text))).toEqual([]);
}

describe("connections that break", () => {
  let cluster: KafkaCluster;
  let proxy: FlakyProxy;
  /** Straight to the broker, for looking. */
  let direct: Pick<KafkaCluster, "brokers">;

  const seed = Date.now() % 2 ** 31;
  beforeAll(async () => {
    const [port, through] = [await freePort(), await freePort()];
    cluster = await KafkaCluster.start({ ports: [port], advertised: [through] });
    proxy = await FlakyProxy.open(port, seed, through);
    direct = cluster;
  }, START_MS);
  afterAll(async () => {
    await proxy?.close();
    await cluster?.stop();
  });

  test.each<Compression>(["none", "gzip"])(
    `answers are lost at random: what was promised is there once, where it was said to be (${seed}, %s)`,
    async (compression) => {
      const topic = topicName();
      const writer = opened(
        await openKafkaWriter(cluster, topic, { allowFewReplicas: true }, { compression }),
      );
      const before = proxy.resets;
      proxy.resetShare = 0.15;
      const producers = new Producers(writer);
      await sleep(12_000);
      proxy.resetShare = 0;
      await producers.stop();
      expect(proxy.resets - before).toBeGreaterThan(20);
      expect(producers.kept.size).toBeGreaterThan(500);
      await check(producers, direct, topic, true);
    },
  );

  test("a reader goes on over lost connections, without a gap and without an event twice", async () => {
    const topic = topicName();
    const writer = opened(await openKafkaWriter(cluster, topic, { allowFewReplicas: true }));
    const reader = opened(await openKafkaReader(cluster, topic, { allowFewReplicas: true }));
    const consumer = await reader.consume("c");
    const producers = new Producers(writer, 2);
    const seen: string[] = [];
    const until = Date.now() + 10_000;
    while (Date.now() < until) {
      proxy.resetShare = 0.1;
      const batch = await consumer.read({ maxEvents: 500, maxBytes: 1024 * 1024, waitMs: 500 });
      if (batch === undefined) continue;
      for (const { partition, position } of eventsOf(batch)) seen.push(`${partition} ${position}`);
      const end = new Map(eventsOf(batch).map(({ partition, position }) => [partition, position]));
      await consumer.commit(end);
    }
    proxy.resetShare = 0;
    await producers.stop();
    const left = new Set(producers.kept.values());
    for (const place of seen) left.delete(place);
    const limit = Date.now() + 60_000;
    while (left.size > 0 && Date.now() < limit) {
      const batch = await consumer.read({ maxEvents: 500, maxBytes: 1024 * 1024, waitMs: 500 });
      for (const { partition, position } of batch === undefined ? [] : eventsOf(batch)) {
        seen.push(`${partition} ${position}`);
        left.delete(`${partition} ${position}`);
      }
    }
    expect(left.size).toBe(0);
    // One member that stays: nobody else had the partitions meanwhile, so nothing comes twice.
    expect(new Set(seen).size).toBe(seen.length);
  });

  test("who reads slowly is not fed: little comes over the wire until it is read", async () => {
    const topic = topicName();
    const writer = opened(await openKafkaWriter(cluster, topic, { allowFewReplicas: true }));
    const MiB = 1024 * 1024;
    for (let i = 0; i < 8; i++) {
      const events = Array.from({ length: 64 }, (_, p) => ({
        partition: p % 4,
        bytes: Buffer.alloc(100_000, i),
      }));
      await writer.append(eventSlices(events));
    }
    const fetch = { bytes: 2 * MiB, waitMs: 500 };
    const reader = opened(await openKafkaReader(cluster, topic, { allowFewReplicas: true }, { fetch }));
    const before = proxy.answered;
    const consumer = await reader.consume("c");
    await sleep(3_000);
    expect(proxy.answered - before).toBeLessThan(5 * MiB);
    let read = 0;
    while (read < 512) {
      const batch = await consumer.read({ maxEvents: 1_000, maxBytes: 10 * MiB, waitMs: 10_000 });
      expect(batch!.bytes.length).toBeLessThan(3 * MiB);
      read += batch!.count;
    }
    expect(proxy.answered - before).toBeGreaterThan(50_000_000);
  });

  test("a broker that cannot be reached is told within seconds, memory stays bounded, and it heals by itself", async () => {
    const topic = topicName();
    const writer = opened(
      await openKafkaWriter(cluster, topic, { allowFewReplicas: true }, { maxInFlightBytes: 200_000 }),
    );
    proxy.refuses = true;
    proxy.resetAll();
    const began = Date.now();
    const body = () => eventSlices([{ partition: 1, bytes: Buffer.alloc(90_000, 1) }]);
    const first = await Promise.allSettled([
      writer.append(body()),
      writer.append(body()),
      writer.append(body()),
    ]);
    expect(Date.now() - began).toBeLessThan(10_000);
    for (const outcome of first.slice(0, 2)) {
      expect(outcome).toMatchObject({ status: "rejected", reason: { code: "TRB-BUS-STREAM-DOWN" } });
    }
    expect(first[2]).toMatchObject({ status: "fulfilled", value: { positions: [undefined] } });
    proxy.refuses = false;
    await expect
      .poll(
        () =>
          writer.append(body()).then(
            ({ positions }) => positions.length,
            () => 0,
          ),
        { timeout: 20_000 },
      )
      .toBe(1);
  });
});

describe("three brokers", () => {
  let cluster: KafkaCluster;
  beforeAll(async () => {
    cluster = await KafkaCluster.start({ nodes: 3 });
  }, START_MS);
  afterAll(() => cluster?.stop());

  test("one is killed and started again in mid-publish, then another: nothing that was acknowledged is lost, nothing is stuck", async () => {
    const topic = topicName();
    const writer = opened(await openKafkaWriter(cluster, topic));
    const reader = opened(await openKafkaReader(cluster, topic));
    const consumer = await reader.consume("c");
    const seen = new Set<string>();
    let reading = true;
    const reads = (async () => {
      while (reading) {
        const batch = await consumer.read({ maxEvents: 1_000, maxBytes: 1024 * 1024, waitMs: 500 });
        if (batch === undefined) continue;
        const end = new Map<string, string>();
        for (const { partition, position } of eventsOf(batch)) {
          seen.add(`${partition} ${position}`);
          end.set(partition, position);
        }
        await consumer.commit(end);
      }
    })();
    // Waited for below, unless something else has failed by then: that is what is to be told.
    reads.catch(() => undefined);
    const producers = new Producers(writer);
    for (const node of [0, 1]) {
      await sleep(2_000);
      await cluster.signal(node, "SIGKILL");
      await sleep(12_000);
      await cluster.startNode(node);
      const kept = producers.kept.size;
      await expect.poll(() => producers.kept.size, { timeout: 60_000 }).toBeGreaterThan(kept + 200);
    }
    await producers.stop();
    await check(producers, cluster, topic, false);
    const places = [...producers.kept.values()];
    const unseen = () => places.filter((place) => !seen.has(place)).length;
    await Promise.race([reads, expect.poll(unseen, { timeout: 60_000 }).toBe(0)]);
    reading = false;
    await reads;
  });

  test("a leader that is frozen holds up its own partitions alone, and is replaced", async () => {
    const topic = topicName();
    const writer = opened(await openKafkaWriter(cluster, topic));
    const producers = new Producers(writer);
    await sleep(1_000);
    await cluster.signal(2, "SIGSTOP");
    await sleep(25_000);
    const kept = producers.kept.size;
    await expect.poll(() => producers.kept.size, { timeout: 30_000 }).toBeGreaterThan(kept + 100);
    await cluster.signal(2, "SIGCONT");
    await sleep(3_000);
    await producers.stop();
    await check(producers, cluster, topic, false);
  });
});
