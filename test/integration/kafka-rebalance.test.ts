import { type ChildProcess, fork } from "node:child_process";
import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { ChangeStreamReader, StreamBatch, StreamConsumer } from "../../services/stream/change-stream.js";
import type { KafkaWriter } from "../../services/stream/kafka/writer.js";
import { KafkaCluster, START_MS } from "../servers/kafka.js";
import { eventSlices, placesOf } from "../support/event-slices.js";
import { brokerSettings, openKafkaReader, openKafkaWriter, topicSettings } from "../support/kafka.js";

const PARTITIONS = 8;
const SETTINGS = { allowFewReplicas: true, partitions: PARTITIONS };
const TIMES = { sessionMs: 6_000, heartbeatMs: 200 };
const LIMIT = { maxEvents: 200, maxBytes: 1024 * 1024, waitMs: 200 };

let cluster: KafkaCluster;
beforeAll(async () => {
  cluster = await KafkaCluster.start();
}, START_MS);
afterAll(() => cluster?.stop());

interface Delivery {
  readonly partition: string;
  readonly position: string;
  readonly by: string;
}

/** A worker as ingest is one: reads, lands a while later, commits; drains what is taken from it. */
class Worker {
  readonly held = new Set<string>();
  /** Partitions it had to let go of, each time with what it had then. */
  readonly drains: string[][] = [];
  private readonly pending: { batch: StreamBatch; due: number }[] = [];
  private reader!: ChangeStreamReader;
  private consumer!: StreamConsumer;
  private stopped = false;
  private running!: Promise<void>;
  private landing: Promise<void> = Promise.resolve();
  failure: unknown;
  /** While set, nothing is read or landed. */
  paused = false;

  constructor(
    readonly name: string,
    private readonly deliveries: Delivery[],
    private readonly landMs: number,
  ) {}

  async start(topic: string): Promise<this> {
    this.reader = await openKafkaReader(cluster, topic, SETTINGS, { times: TIMES });
    this.consumer = await this.reader.consume("ingest", {
      assigned: (partitions) => {
        for (const { name } of partitions) this.held.add(name);
      },
      revoked: async (names) => {
        this.drains.push([...names]);
        for (const name of names) this.held.delete(name);
        await this.landed();
      },
    });
    this.running = this.run().catch((error: unknown) => {
      this.failure = error;
    });
    return this;
  }

  private async run(): Promise<void> {
    while (!this.stopped) {
      if (this.paused) {
        await sleep(50);
        continue;
      }
      const batch = await this.consumer.read(LIMIT);
      if (batch !== undefined) {
        for (let i = 0; i < batch.count; i++) {
          const partition = batch.names[batch.partitions[i]!]!;
          this.deliveries.push({ partition, position: batch.positions[i]!, by: this.name });
        }
        this.pending.push({ batch, due: Date.now() + this.landMs });
      }
      while (this.pending.length > 0 && this.pending[0]!.due < Date.now()) await this.land();
    }
  }

  /** One at a time: who waits for all to have landed waits for the one under way, too. */
  private land(): Promise<void> {
    this.landing = this.landing.then(() => this.landNext());
    return this.landing;
  }

  private async landNext(): Promise<void> {
    const batch = this.pending.shift()?.batch;
    if (batch === undefined) return;
    const checkpoint = new Map<string, string>();
    for (let i = 0; i < batch.count; i++)
      checkpoint.set(batch.names[batch.partitions[i]!]!, batch.positions[i]!);
    await this.consumer.commit(checkpoint);
  }

  private async landed(): Promise<void> {
    while (this.pending.length > 0) await this.land();
    await this.landing;
  }

  /** As a graceful end: lands what it has read. */
  async stop(): Promise<void> {
    this.stopped = true;
    await this.running;
    await this.landed();
    await this.reader.close();
  }
}

class Load {
  readonly sent = new Set<string>();
  private stopped = false;
  private running: Promise<void>;
  constructor(writer: KafkaWriter) {
    this.running = (async () => {
      for (let n = 0; !this.stopped; n++) {
        const events = Array.from({ length: 40 }, (_, i) => ({
          partition: i % PARTITIONS,
          bytes: Buffer.from(`${n}-${i}`),
        }));
        for (const { partition, position } of placesOf(
          await writer.append(eventSlices(events, () => 3, PARTITIONS)),
        )) {
          this.sent.add(`${partition} ${position}`);
        }
        await sleep(10);
      }
    })();
  }
  async stop(): Promise<void> {
    this.stopped = true;
    await this.running;
  }
}

/** Of each worker, the partitions in order without gaps: it may begin anew where it was given them, never step over any. */
function checkOrder(deliveries: readonly Delivery[]): number {
  const last = new Map<string, number>();
  const seen = new Set<string>();
  let again = 0;
  for (const { partition, position, by } of deliveries) {
    const key = `${by} ${partition}`;
    const at = Number(position);
    const before = last.get(key);
    if (
      before !== undefined &&
      at !== before + 1 &&
      !seen.has(`${partition} ${String(at - 1).padStart(16, "0")}`)
    ) {
      throw new Error(`${by} stepped from ${before} to ${at} of partition ${partition}`);
    }
    last.set(key, at);
    if (seen.has(`${partition} ${position}`)) again++;
    seen.add(`${partition} ${position}`);
  }
  return again;
}

const missing = (load: Load, deliveries: readonly Delivery[]) => {
  const seen = new Set(deliveries.map(({ partition, position }) => `${partition} ${position}`));
  return [...load.sent].filter((sent) => !seen.has(sent));
};
const shares = (workers: readonly Worker[]) => workers.map(({ held }) => held.size).sort();
const topicName = () => `rebalance-${randomBytes(4).toString("hex")}`;

test("members come and go under load, 1 to 3 to 2: nothing is lost or delivered twice, each has neighbours, and who stays reads on", async () => {
  const topic = topicName();
  const writer = await openKafkaWriter(cluster, topic, SETTINGS);
  const deliveries: Delivery[] = [];
  const load = new Load(writer);
  const first = await new Worker("first", deliveries, 50).start(topic);
  await expect.poll(() => deliveries.length, { timeout: 20_000 }).toBeGreaterThan(1_000);
  expect(first.held.size).toBe(PARTITIONS);
  const second = await new Worker("second", deliveries, 50).start(topic);
  const third = await new Worker("third", deliveries, 50).start(topic);
  const all = [first, second, third];
  await expect.poll(() => shares(all), { timeout: 30_000 }).toEqual([2, 3, 3]);
  for (const { held } of all) {
    const mine = [...held].map(Number).sort((a, b) => a - b);
    expect(mine).toEqual(Array.from({ length: mine.length }, (_, i) => mine[0]! + i));
  }
  // What it kept was never taken from it.
  expect(first.drains.flat().some((name) => first.held.has(name))).toBe(false);
  await sleep(1_000);
  await first.stop();
  await expect.poll(() => shares([second, third]), { timeout: 30_000 }).toEqual([4, 4]);
  await load.stop();
  await expect.poll(() => missing(load, deliveries).length, { timeout: 30_000 }).toBe(0);
  for (const worker of all) expect(worker.failure).toBeUndefined();
  expect(checkOrder(deliveries)).toBe(0);
  await second.stop();
  await third.stop();
  const reader = await openKafkaReader(cluster, topic, SETTINGS);
  expect(new Map(await reader.lowWater("ingest"))).toEqual(new Map(await reader.head()));
  await reader.close();
  await writer.close();
});

/** A member in a process of its own. */
class Member {
  readonly held = new Set<string>();
  private readonly child: ChildProcess;

  constructor(
    readonly name: string,
    topic: string,
    deliveries: Delivery[],
  ) {
    const order = {
      brokers: brokerSettings(cluster),
      topic: topicSettings(topic, SETTINGS),
      times: TIMES,
      landMs: 300,
    };
    const script = fileURLToPath(new URL("../support/kafka-member.mjs", import.meta.url));
    this.child = fork(script, [JSON.stringify(order)]);
    this.child.on("message", (message: { assigned?: string[]; revoked?: string[]; read?: Delivery[] }) => {
      for (const partition of message.assigned ?? []) this.held.add(partition);
      for (const partition of message.revoked ?? []) this.held.delete(partition);
      for (const delivery of message.read ?? []) deliveries.push({ ...delivery, by: name });
    });
  }

  signal(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }
}

test("a member that is killed is replaced after its session; what it had not landed is delivered again", async () => {
  const topic = topicName();
  const writer = await openKafkaWriter(cluster, topic, SETTINGS);
  const deliveries: Delivery[] = [];
  const load = new Load(writer);
  const first = new Member("first", topic, deliveries);
  await expect.poll(() => first.held.size, { timeout: 30_000 }).toBe(PARTITIONS);
  const second = await new Worker("second", deliveries, 300).start(topic);
  await expect.poll(() => second.held.size, { timeout: 30_000 }).toBe(PARTITIONS / 2);
  await sleep(1_000);
  first.signal("SIGKILL");
  await expect.poll(() => second.held.size, { timeout: 30_000 }).toBe(PARTITIONS);
  await sleep(500);
  await load.stop();
  await expect.poll(() => missing(load, deliveries).length, { timeout: 30_000 }).toBe(0);
  checkOrder(deliveries);
  await second.stop();
  await writer.close();
});

test("a member that was frozen for longer than its session finds itself out, moves no record back, and joins again", async () => {
  const topic = topicName();
  const writer = await openKafkaWriter(cluster, topic, SETTINGS);
  const deliveries: Delivery[] = [];
  const load = new Load(writer);
  const frozen = new Member("frozen", topic, deliveries);
  await expect.poll(() => frozen.held.size, { timeout: 30_000 }).toBe(PARTITIONS);
  const other = await new Worker("other", deliveries, 0).start(topic);
  await expect.poll(() => other.held.size, { timeout: 30_000 }).toBe(PARTITIONS / 2);
  await sleep(500);
  frozen.signal("SIGSTOP");
  await expect.poll(() => other.held.size, { timeout: 30_000 }).toBe(PARTITIONS);
  await sleep(1_000);
  const reader = await openKafkaReader(cluster, topic, SETTINGS);
  const before = await reader.lowWater("ingest");
  frozen.signal("SIGCONT");
  await expect.poll(() => [frozen.held.size, other.held.size], { timeout: 30_000 }).toEqual([4, 4]);
  const after = await reader.lowWater("ingest");
  for (const [partition, position] of before) expect(after.get(partition)! >= position).toBe(true);
  await load.stop();
  await expect.poll(() => missing(load, deliveries).length, { timeout: 30_000 }).toBe(0);
  checkOrder(deliveries);
  frozen.signal("SIGKILL");
  await other.stop();
  await reader.close();
  await writer.close();
});

test("a reader that stands still for longer than its session stays a member, and goes on where it was", async () => {
  const topic = topicName();
  const writer = await openKafkaWriter(cluster, topic, SETTINGS);
  const deliveries: Delivery[] = [];
  const worker = await new Worker("only", deliveries, 0).start(topic);
  const load = new Load(writer);
  await expect.poll(() => deliveries.length, { timeout: 20_000 }).toBeGreaterThan(200);
  worker.paused = true;
  await sleep(TIMES.sessionMs + 2_000);
  worker.paused = false;
  await load.stop();
  await expect.poll(() => missing(load, deliveries).length, { timeout: 30_000 }).toBe(0);
  expect(worker.drains).toEqual([]);
  expect(checkOrder(deliveries)).toBe(0);
  await worker.stop();
  await writer.close();
});

test("who never finishes handing over is not waited for beyond the session's time", async () => {
  const topic = topicName();
  const writer = await openKafkaWriter(cluster, topic, SETTINGS);
  const reader = await openKafkaReader(cluster, topic, SETTINGS, { times: TIMES });
  const consumer = await reader.consume("ingest", {
    assigned: () => undefined,
    revoked: () => new Promise(() => undefined),
  });
  const deliveries: Delivery[] = [];
  const began = Date.now();
  const second = await new Worker("second", deliveries, 0).start(topic);
  await expect.poll(() => second.held.size, { timeout: 30_000 }).toBe(PARTITIONS / 2);
  expect(Date.now() - began).toBeGreaterThan(TIMES.sessionMs - 1_000);
  await consumer.close();
  await expect.poll(() => second.held.size, { timeout: 30_000 }).toBe(PARTITIONS);
  await second.stop();
  await reader.close();
  await writer.close();
});
