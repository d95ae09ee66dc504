import { join } from "node:path";
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
import { KafkaCluster } from "../test/servers/kafka.js";
import { tokenFor } from "./end-to-end.js";
import { BenchServer, benchFolder, Load } from "./processes.js";

/**
 * The stream port's writer and reader, and the whole bus over HTTP, against the bare client's producer: bodies of 100
 * events over some connections at once; the bare client sends the same groups, idempotent and acknowledged by all. They
 * take turns, on a Kafka of this command's own unless `--brokers` names one (topics are made there, and stay). CPU is
 * that of the process that produces or consumes.
 */
const { values: options } = parseArgs({
  options: {
    brokers: { type: "string" },
    nodes: { type: "string", default: "1" },
    events: { type: "string", default: "200000" },
    "event-bytes": { type: "string", default: "700" },
    connections: { type: "string", default: "16" },
    compression: { type: "string", default: "none" },
    rounds: { type: "string", default: "3" },
  },
});
const connections = Number(options.connections);
const compression = options.compression as Compression;
const cluster =
  options.brokers === undefined
    ? await KafkaCluster.start({ nodes: options.nodes === "3" ? 3 : 1 })
    : undefined;
const brokers = { brokers: options.brokers?.split(",") ?? cluster!.brokers, clientId: "bench" };

const { protoDirs } = loadConfig();
const wanted = {
  seed: 7,
  tenants: 500,
  entities: 300_000,
  events: Number(options.events),
  eventBytes: Number(options["event-bytes"]),
  bodyEvents: 100,
};
const workload = new TrackerWorkload(ProtoRegistry.load(protoDirs), wanted);
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

interface Measured {
  readonly eventsPerSecond: number;
  readonly cpuMicros: number;
}

function told(what: string, seconds: number, cpuMicros: number): Measured {
  const eventsPerSecond = events / seconds;
  process.stdout.write(
    `${what.padEnd(22)} ${Math.round(eventsPerSecond).toLocaleString("en").padStart(9)} events/s  ${(megabytes / seconds).toFixed(0).padStart(4)} MB/s  ${cpuMicros.toFixed(2)} CPU us/event\n`,
  );
  return { eventsPerSecond, cpuMicros };
}

async function measured(what: string, work: () => Promise<void>): Promise<Measured> {
  const cpu = process.cpuUsage();
  const began = performance.now();
  await work();
  const seconds = (performance.now() - began) / 1_000;
  const { user, system } = process.cpuUsage(cpu);
  return told(what, seconds, (user + system) / events);
}

async function ofWriter(): Promise<Measured> {
  const topic = topicOf("writer");
  const facts = new EventFactsReader();
  const writer = await KafkaWriter.open({
    brokers,
    topic,
    compression,
    maxInFlightBytes: 64 * 1024 * 1024,
    describe: (bytes, start, end) => facts.facts(bytes, start, end),
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
async function ofBareClient(): Promise<Measured> {
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

/** The whole of it: HTTP, envelopes, tokens, checks, then the same writer. */
async function ofBus(round: number): Promise<Measured> {
  const data = join(folder, `bus-${round}`);
  const bus = await BenchServer.start("bus", data, {
    TRIBUTARY_STREAM__KIND: "kafka",
    TRIBUTARY_STREAM__KAFKA__BROKERS: brokers.brokers.join(","),
    TRIBUTARY_STREAM__KAFKA__TOPIC: topicOf("bus").topic,
    TRIBUTARY_STREAM__KAFKA__COMPRESSION: compression,
    TRIBUTARY_STREAM__KAFKA__ALLOW_FEW_REPLICAS: "true",
    TRIBUTARY_BUS__MAX_LAG_BYTES: String(64 * 1024 ** 3),
  });
  const token = await tokenFor(data, "producer");
  const load = await Load.prepare({ ...wanted, url: bus.url, token, protoDirs, connections });
  const before = bus.cpu().own;
  const report = await load.run();
  const cpu = ((bus.cpu().own - before) * 1e6) / report.events;
  await bus.stop();
  return told("bus over HTTP", report.seconds, cpu);
}

const folder = benchFolder("kafka");
const rounds: { readonly bare: Measured; readonly writer: Measured; readonly bus: Measured }[] = [];
try {
  for (let round = 0; round < Number(options.rounds); round++) {
    rounds.push({ bare: await ofBareClient(), writer: await ofWriter(), bus: await ofBus(round) });
  }
} finally {
  await cluster?.stop();
}

/** The middle one of some ratios, and all of them. */
function verdict(what: string, goal: string, ratios: readonly number[]): void {
  const middle = ratios.toSorted((a, b) => a - b)[ratios.length >> 1]!;
  const all = ratios.map((ratio) => ratio.toFixed(2)).join(", ");
  process.stdout.write(`ratio of ${what}: ${middle.toFixed(2)} ${goal}; rounds ${all}\n`);
}

const GOAL = "(goal ≥ 0.8)";
verdict(
  "events/s, bus → Kafka (writer) / bare client",
  GOAL,
  rounds.map(({ bare, writer }) => writer.eventsPerSecond / bare.eventsPerSecond),
);
verdict(
  "events per CPU second, writer / bare client",
  GOAL,
  rounds.map(({ bare, writer }) => bare.cpuMicros / writer.cpuMicros),
);
verdict(
  "events/s, bus over HTTP / bare client",
  GOAL,
  rounds.map(({ bare, bus }) => bus.eventsPerSecond / bare.eventsPerSecond),
);
verdict(
  "events per CPU second, bus over HTTP / bare client",
  "(HTTP and checks included)",
  rounds.map(({ bare, bus }) => bare.cpuMicros / bus.cpuMicros),
);
