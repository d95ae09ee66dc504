import { parseArgs } from "node:util";
import { type CompressionAlgorithmValue, ProduceAcks, Producer } from "@platformatic/kafka";
import { loadConfig } from "../services/base/config.js";
import { frames } from "../services/contracts/envelope.js";
import { EventFactsReader } from "../services/contracts/event-facts.js";
import { ProtoRegistry } from "../services/contracts/registry.js";
import { TrackerWorkload } from "../services/main/workload/generator.js";
import { bytesOf, type OutgoingEvents } from "../services/stream/change-stream.js";
import { KafkaReader } from "../services/stream/kafka/reader.js";
import type { Compression, TopicSettings } from "../services/stream/kafka/settings.js";
import { KafkaWriter } from "../services/stream/kafka/writer.js";

/**
 * The writer and the reader of the stream port against the bare client's producer, on brokers that run already: bodies
 * of 100 events over some connections at once, as the bus appends them; the bare client sends the same groups, idempotent
 * and acknowledged by all. CPU is of this process alone. Topics are made and stay: use brokers for tests.
 */
const { values: options } = parseArgs({
  options: {
    brokers: { type: "string", default: "127.0.0.1:9092" },
    events: { type: "string", default: "300000" },
    "event-bytes": { type: "string", default: "700" },
    connections: { type: "string", default: "16" },
    compression: { type: "string", default: "none" },
    rounds: { type: "string", default: "2" },
  },
});
const connections = Number(options.connections);
const compression = options.compression as Compression;
const brokers = { brokers: options.brokers.split(","), clientId: "bench" };

const workload = new TrackerWorkload(ProtoRegistry.load(loadConfig().protoDirs), {
  seed: 7,
  tenants: 500,
  entities: 300_000,
  events: Number(options.events),
  eventBytes: Number(options["event-bytes"]),
  bodyEvents: 100,
});
const random = (i: number) => Math.imul(i + 1, 0x9e3779b1) >>> 0;
const appends: OutgoingEvents[] = [...workload.bodies()].map(({ bytes }, body) => {
  const found = frames(bytes)!;
  const { count, starts, ends } = found;
  return {
    bytes,
    count,
    starts: Uint32Array.from(starts),
    ends: Uint32Array.from(ends),
    slots: Uint32Array.from({ length: count }, (_, i) => random(body * 100 + i)),
  };
});
const events = appends.reduce((sum, { count }) => sum + count, 0);
const megabytes = appends.reduce((sum, append) => sum + bytesOf(append), 0) / 1e6;

const topicOf = (name: string): TopicSettings => ({
  topic: `bench-${name}-${Date.now()}`,
  partitions: 4,
  replicationFactor: 3,
  minInsyncReplicas: 2,
  retentionMs: 3_600_000,
  maxMessageBytes: 4 * 1024 * 1024,
  maxEventBytes: 2 * 1024 * 1024,
  allowFewReplicas: true,
});

/** Takes turns of up to `connections` at once. */
async function all<T>(items: readonly T[], work: (item: T) => Promise<unknown>): Promise<void> {
  let next = 0;
  const run = async () => {
    while (next < items.length) await work(items[next++]!);
  };
  await Promise.all(Array.from({ length: connections }, run));
}

async function measured(what: string, work: () => Promise<void>): Promise<number> {
  const cpu = process.cpuUsage();
  const began = performance.now();
  await work();
  const seconds = (performance.now() - began) / 1_000;
  const { user, system } = process.cpuUsage(cpu);
  const rate = events / seconds;
  process.stdout.write(
    `${what.padEnd(22)} ${Math.round(rate).toLocaleString("en").padStart(9)} events/s  ${(megabytes / seconds).toFixed(0).padStart(4)} MB/s  ${((user + system) / events).toFixed(2)} CPU us/event\n`,
  );
  return rate;
}

async function ofWriter(): Promise<number> {
  const topic = topicOf("writer");
  const facts = new EventFactsReader();
  const writer = await KafkaWriter.open({
    brokers,
    topic,
    compression,
    maxInFlightBytes: 64 * 1024 * 1024,
    describe: (bytes, start, end) => facts.read(bytes, start, end),
  });
  const rate = await measured("writer", () => all(appends, (append) => writer.append(append)));
  const reader = await KafkaReader.open({ brokers, topic });
  const consumer = await reader.consume("bench");
  await measured("consumer", async () => {
    for (let read = 0; read < events; ) {
      const batch = await consumer.read({ maxEvents: 50_000, maxBytes: 32 * 1024 * 1024, waitMs: 10_000 });
      if (batch === undefined) throw new Error(`${read} of ${events} events came`);
      read += batch.count;
    }
  });
  await reader.close();
  await writer.close();
  return rate;
}

/** What came while a group was on its way makes the next one; keys and values are cut beforehand. */
async function ofBareClient(): Promise<number> {
  const { topic } = topicOf("bare");
  // Made and led by somebody before the clock runs.
  const maker = await KafkaReader.open({ brokers, topic: { ...topicOf("bare"), topic } });
  await maker.close();
  const producer = new Producer<Buffer, Buffer, Buffer, Buffer>({
    clientId: "bench",
    bootstrapBrokers: brokers.brokers,
    idempotent: true,
    acks: ProduceAcks.ALL,
    compression: compression as CompressionAlgorithmValue,
  });
  const contentType = [Buffer.from("content-type"), Buffer.from("application/x-protobuf")] as const;
  const entityType = [Buffer.from("entity-type"), Buffer.from("tracker.v1.Issue")] as const;
  const key = Buffer.from("acme/tracker.v1.Issue/PAY-123456");
  let waiting: { readonly append: OutgoingEvents; readonly done: () => void }[] = [];
  let sending = false;
  const pump = async () => {
    if (sending) return;
    sending = true;
    while (waiting.length > 0) {
      const group = waiting;
      waiting = [];
      const messages = group.flatMap(({ append: { bytes, count, starts, ends, slots } }) =>
        Array.from({ length: count }, (_, i) => ({
          topic,
          partition: Math.floor((slots[i]! * 4) / 2 ** 32),
          key,
          value: bytes.subarray(starts[i], ends[i]),
          headers: new Map([contentType, entityType]),
        })),
      );
      await producer.send({ messages });
      for (const { done } of group) done();
      await new Promise(setImmediate);
    }
    sending = false;
  };
  const rate = await measured("bare client", () =>
    all(
      appends,
      (append) =>
        new Promise<void>((done) => {
          waiting.push({ append, done });
          void pump();
        }),
    ),
  );
  await producer.close();
  return rate;
}

const ratios: number[] = [];
for (let round = 0; round < Number(options.rounds); round++) {
  const bare = await ofBareClient();
  ratios.push((await ofWriter()) / bare);
}
process.stdout.write(`writer / bare client: ${ratios.map((ratio) => ratio.toFixed(2)).join(", ")}\n`);
