import { randomBytes } from "node:crypto";
import { inspect } from "node:util";
import {
  Admin,
  type CompressionAlgorithmValue,
  ConfigResourceTypes,
  Connection,
  deleteRecordsV2,
  ProduceAcks,
  Producer,
} from "@platformatic/kafka";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { encodeEvent } from "../../services/contracts/encode-event.js";
import { EventFactsReader } from "../../services/contracts/event-facts.js";
import { KafkaReader } from "../../services/stream/kafka/reader.js";
import type { Compression } from "../../services/stream/kafka/settings.js";
import { KafkaWriter } from "../../services/stream/kafka/writer.js";
import { lastOf, readEvents, texts } from "../contract/change-stream.js";
import { KafkaCluster, SASL_USER, START_MS } from "../servers/kafka.js";
import { eventSlices, eventsOf, placesOf, positionsIn } from "../support/event-slices.js";
import { brokerSettings, openKafkaReader, openKafkaWriter, topicSettings } from "../support/kafka.js";

const FEW = { allowFewReplicas: true };
const PLENTY = { maxEvents: 10_000, maxBytes: 64 * 1024 * 1024, waitMs: 10_000 };

let cluster: KafkaCluster;
let admin: Admin;
const open: { close(): Promise<unknown> }[] = [];
const opened = <T extends { close(): Promise<unknown> }>(it: T): T => {
  open.push(it);
  return it;
};
/** Brokers are asked for new partitions every few seconds. */
const PATIENT = { ...PLENTY, waitMs: 20_000 };
const newTopic = () => `t-${randomBytes(4).toString("hex")}`;

beforeAll(async () => {
  cluster = await KafkaCluster.start({ secure: true });
  admin = new Admin({ clientId: "admin", bootstrapBrokers: cluster.brokers });
}, START_MS);
afterEach(async () => {
  for (const it of open.splice(0).reverse()) await it.close();
});
afterAll(async () => {
  await admin?.close();
  await cluster?.stop();
});

const made = (topic: string, configs: Record<string, string> = {}, partitions = 4) =>
  admin.createTopics({
    topics: [topic],
    partitions,
    replicas: 1,
    configs: Object.entries({ "max.message.bytes": "4194304", ...configs }).map(([name, value]) => ({
      name,
      value,
    })),
  });

test("max.message.bytes made smaller while the bus runs: what is too large now is refused alone, the rest passes", async () => {
  const topic = newTopic();
  const writer = opened(await openKafkaWriter(cluster, topic, FEW));
  const other = opened(await openKafkaWriter(cluster, topic, FEW));
  const batch = (bytes: number) =>
    eventSlices(
      Array.from({ length: 10 }, (_, i) => ({
        partition: 0,
        bytes: Buffer.alloc(i === 4 ? bytes : 50_000, i),
      })),
    );
  expect((await writer.append(batch(300_000))).positions).not.toContain(undefined);
  await cluster.tool(
    "kafka.admin.ConfigCommand",
    ...`--bootstrap-server ${cluster.brokers[0]} --topic ${topic} --alter --add-config max.message.bytes=200000`.split(
      " ",
    ),
  );
  // Nobody has told the writer: its batch comes back, and goes again in smaller ones.
  await expect
    .poll(async () => (await writer.append(batch(50_000))).positions.includes(undefined))
    .toBe(true);
  await expect
    .poll(async () => (await writer.append(batch(50_000))).positions.includes(undefined), { timeout: 10_000 })
    .toBe(false);
  const { positions, tooLarge } = await writer.append(batch(300_000));
  expect(tooLarge).toEqual(new Set([4]));
  expect(positions.flatMap((position, i) => (position === undefined ? [i] : []))).toEqual([4]);
  // By a writer that has not found out yet, with the one event that meets it.
  const alone = await other.append(eventSlices([{ partition: 0, bytes: Buffer.alloc(300_000) }]));
  expect([alone.positions, alone.tooLarge]).toEqual([[undefined], new Set([0])]);
});

test("a group that nobody can join, as its topic is gone, is a stream that is down: the reader goes on, and ends", async () => {
  const topic = newTopic();
  await opened(await openKafkaWriter(cluster, topic, FEW)).append(texts(0, 4));
  const reader = opened(await openKafkaReader(cluster, topic, FEW, { joinMs: 300 }));
  await admin.deleteTopics({ topics: [topic] });
  for (let i = 0; i < 2; i++) {
    await expect(reader.consume("c")).rejects.toMatchObject({ code: "TRB-BUS-STREAM-DOWN" });
  }
});

test("a topic that a lost disk takes along is refused, with what was found and what is expected", async () => {
  const topic = newTopic();
  await made(topic);
  for (const opening of [openKafkaWriter, openKafkaReader]) {
    await expect(opening(cluster, topic)).rejects.toMatchObject({
      code: "TRB-CONFIG",
      message: expect.stringMatching(
        new RegExp(
          `topic ${topic}: replication factor: expected at least 3, found 1; min.insync.replicas: expected at least 2, found 1`,
        ),
      ),
    });
  }
  await opened(await openKafkaWriter(cluster, topic, FEW)).append(texts(0, 4));
});

test("a topic that forgets events which nobody has landed, or is too narrow for an event, is refused for development too", async () => {
  const compacted = newTopic();
  await made(compacted, { "cleanup.policy": "compact" });
  await expect(openKafkaWriter(cluster, compacted, FEW)).rejects.toMatchObject({
    code: "TRB-CONFIG",
    message: expect.stringContaining("cleanup.policy: expected delete, found compact"),
  });
  const narrow = newTopic();
  await made(narrow, { "max.message.bytes": "1048588" });
  await expect(openKafkaWriter(cluster, narrow, FEW)).rejects.toMatchObject({
    code: "TRB-CONFIG",
    message: expect.stringContaining("max.message.bytes: expected at least 2097152"),
  });
});

test("a topic that cannot be made is told: three replicas on one broker", async () => {
  await expect(openKafkaWriter(cluster, newTopic())).rejects.toMatchObject({
    code: "TRB-CONFIG",
    message: expect.stringContaining("with 4 partitions and 3 replicas"),
  });
});

test("a topic is made as the configuration says", async () => {
  const topic = newTopic();
  opened(await openKafkaWriter(cluster, topic, { ...FEW, partitions: 6, retentionMs: 7_200_000 }));
  const [described] = await admin.describeConfigs({
    resources: [{ resourceType: ConfigResourceTypes.TOPIC, resourceName: topic }],
  });
  const configs = new Map(described!.configs.map(({ name, value }) => [name, value]));
  expect(configs.get("cleanup.policy")).toBe("delete");
  expect(configs.get("retention.ms")).toBe("7200000");
  expect(configs.get("max.message.bytes")).toBe("4194304");
  expect((await admin.metadata({ topics: [topic] })).topics.get(topic)!.partitionsCount).toBe(6);
});

test("a topic that is deleted and made anew is another stream, and reading does not go on in it", async () => {
  const topic = newTopic();
  const writer = opened(await openKafkaWriter(cluster, topic, FEW, { metadataMs: 200 }));
  const reader = opened(await openKafkaReader(cluster, topic, FEW));
  const consumer = await reader.consume("c");
  await writer.append(texts(0, 40));
  await consumer.commit(lastOf(await readEvents(consumer, 40)));
  const before = reader.name;
  await admin.deleteTopics({ topics: [topic] });
  await expect
    .poll(
      () =>
        made(topic).then(
          () => true,
          () => false,
        ),
      { timeout: 20_000 },
    )
    .toBe(true);
  const failure = await (async () => {
    for (;;) await consumer.read({ ...PLENTY, waitMs: 500 });
  })().catch((error: unknown) => error);
  expect(failure).toMatchObject({ code: "TRB-STREAM-REPLACED" });
  await expect(reader.head()).rejects.toMatchObject({ code: "TRB-STREAM-REPLACED" });
  await expect.poll(() => writer.name, { timeout: 20_000 }).not.toBe(before);
  // The new one is read from its beginning, though the group had a record in the old one.
  await expect
    .poll(
      () =>
        writer.append(texts(100, 8)).then(
          () => true,
          () => false,
        ),
      { timeout: 20_000 },
    )
    .toBe(true);
  const again = opened(await openKafkaReader(cluster, topic, FEW));
  expect(again.name).toBe(writer.name);
  const fresh = await again.consume("c");
  const events = await readEvents(fresh, 8);
  expect(events.map(({ text }) => text).sort()).toEqual(
    Array.from({ length: 8 }, (_, i) => `event-${100 + i}`).sort(),
  );
});

/** As retention does it: what comes before is gone. */
async function forget(topic: string, partition: number, offset: number): Promise<void> {
  const connection = new Connection("admin");
  const [host, port] = cluster.brokers[0]!.split(":");
  await connection.connect(host!, Number(port));
  const partitions = [{ partitionIndex: partition, offset: BigInt(offset) }];
  await deleteRecordsV2.api.async(connection, [{ name: topic, partitions }], 5_000);
  await connection.close();
}

test("events that were forgotten before they were landed are told loudly, never stepped over", async () => {
  const topic = newTopic();
  const writer = opened(await openKafkaWriter(cluster, topic, FEW));
  const reader = opened(await openKafkaReader(cluster, topic, FEW));
  await writer.append(texts(0, 400));
  // Registered, and one that has read and committed a little of it.
  let consumer = await reader.consume("c");
  const events = (await readEvents(consumer, 400)).filter(({ partition }) => partition === "1");
  await consumer.commit(lastOf(events.slice(0, 10)));
  await consumer.close();
  await forget(topic, 1, 30);
  consumer = await reader.consume("c");
  const failure = await (async () => {
    for (;;) await consumer.read(PLENTY);
  })().catch((error: unknown) => error);
  expect(failure).toMatchObject({
    code: "TRB-STREAM-FORGOTTEN",
    message: expect.stringContaining("partition 1: 20 events"),
  });
  await consumer.close();
  // An operator who accepts the loss lets the group begin at what is left, with Kafka's own tool.
  const group = `--bootstrap-server ${cluster.brokers[0]} --group ${topic}.c --topic ${topic}:1`;
  await cluster.tool(
    "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    ...`${group} --reset-offsets --to-earliest --execute`.split(" "),
  );
  consumer = await reader.consume("c");
  const left = await readEvents(consumer, 370);
  expect(left.filter(({ partition }) => partition === "1")).toHaveLength(70);
  await consumer.close();
  // Who has read nothing, but had registered, has lost as much; who comes later has not.
  const late = await reader.consume("late");
  expect(await readEvents(late, 370)).toHaveLength(370);
  const follower = await reader.follow(new Map([["1", "0000000000000009"]]));
  await expect(
    (async () => {
      for (;;) await follower.read(PLENTY);
    })(),
  ).rejects.toMatchObject({ code: "TRB-STREAM-FORGOTTEN" });
});

test("a group that was away so long that brokers dropped its record is told what it missed", async () => {
  const topic = newTopic();
  const writer = opened(await openKafkaWriter(cluster, topic, FEW));
  const reader = opened(await openKafkaReader(cluster, topic, FEW));
  await writer.append(texts(0, 400));
  const holder = (landed: ReadonlyMap<string, string> | undefined) => ({
    assigned: () => undefined,
    revoked: async () => undefined,
    landed: async () => landed,
  });
  await forget(topic, 1, 30);
  // As after offsets.retention.minutes: the group has no record, and yet it is no newcomer. Nor is it when it starts again.
  for (const [landed, missed] of [
    [new Map([["1", "0000000000000009"]]), 20],
    [new Map([["1", "0000000000000009"]]), 20],
    [new Map([["0", "0000000000000009"]]), 30],
  ] as const) {
    const consumer = await reader.consume("c", holder(landed));
    await expect(
      (async () => {
        for (;;) await consumer.read(PLENTY);
      })(),
    ).rejects.toMatchObject({
      code: "TRB-STREAM-FORGOTTEN",
      message: expect.stringContaining(`partition 1: ${missed} events`),
    });
    await consumer.close();
  }
  for (const [name, landed] of [
    ["up-to-date", new Map([["1", "0000000000000029"]])],
    ["newcomer", undefined],
  ] as const) {
    const consumer = await reader.consume(name, holder(landed));
    expect(await readEvents(consumer, 370), name).toHaveLength(370);
    await consumer.close();
  }
});

test("a writer knows from its start how far consumers are behind", async () => {
  const topic = newTopic();
  let writer = await openKafkaWriter(cluster, topic, FEW);
  const reader = opened(await openKafkaReader(cluster, topic, FEW));
  const consumer = await reader.consume("c");
  await writer.append(texts(0, 400));
  await consumer.commit(lastOf((await readEvents(consumer, 400)).slice(0, 100)));
  await writer.close();
  writer = opened(await openKafkaWriter(cluster, topic, FEW));
  const behind = writer.backlogBytes();
  expect(behind).toBeGreaterThan(0);
  await consumer.commit(await reader.head());
  await expect.poll(() => writer.backlogBytes(), { timeout: 10_000 }).toBe(0);
});

test("a consumer that registered and was away while all was forgotten is told, too", async () => {
  const topic = newTopic();
  const writer = opened(await openKafkaWriter(cluster, topic, FEW));
  const reader = opened(await openKafkaReader(cluster, topic, FEW));
  await (await reader.consume("c")).close();
  await writer.append(texts(0, 40));
  await forget(topic, 2, 5);
  const consumer = await reader.consume("c");
  await expect(
    (async () => {
      for (;;) await consumer.read(PLENTY);
    })(),
  ).rejects.toMatchObject({ code: "TRB-STREAM-FORGOTTEN" });
});

const event = (id: number) =>
  encodeEvent({
    tenantId: "acme",
    entityType: "scm.v1.File",
    entityId: `src/file-${id}`,
    operation: 3,
    version: id + 1,
    attributes: { traceparent: `00-trace-${id}` },
  });

const PACKED: Compression[] = [
  "none",
  "gzip",
  "snappy",
  "lz4",
  ...(process.versions.node >= "22.15" ? (["zstd"] as const) : []),
];

test.each(PACKED)(
  "packed with %s: Kafka's own consumer reads keys, headers, times and events; so do we",
  async (compression) => {
    const topic = newTopic();
    const facts = new EventFactsReader();
    const writer = opened(
      await openKafkaWriter(cluster, topic, FEW, {
        compression,
        describe: (bytes, start, end) => facts.facts(bytes, start, end),
      }),
    );
    const before = Date.now();
    const places = placesOf(
      await writer.append(
        eventSlices(Array.from({ length: 200 }, (_, i) => ({ partition: i % 4, bytes: event(i) }))),
      ),
    );
    const shown = "timestamp key offset partition headers".split(" ").map((what) => `print.${what}=true`);
    shown.push("print.value=false");
    const printed = await cluster.tool(
      "org.apache.kafka.tools.consumer.ConsoleConsumer",
      ...`--bootstrap-server ${cluster.brokers[0]} --topic ${topic} --from-beginning --max-messages 200`.split(
        " ",
      ),
      ...shown.flatMap((what) => ["--property", what]),
    );
    const lines = printed.split("\n").filter((line) => line.startsWith("CreateTime:"));
    expect(lines).toHaveLength(200);
    for (const [i, { partition, position }] of places.entries()) {
      const line = lines.find(
        (candidate) =>
          candidate.includes(`acme/scm.v1.File/src/file-${i}\t`) ||
          candidate.endsWith(`acme/scm.v1.File/src/file-${i}`),
      );
      expect(line).toContain(`Partition:${partition}\tOffset:${Number(position)}`);
      expect(line).toContain(
        `content-type:application/x-protobuf,entity-type:scm.v1.File,traceparent:00-trace-${i}`,
      );
      expect(Number(/^CreateTime:(\d+)/.exec(line!)![1])).toBeGreaterThanOrEqual(before);
    }
    const consumer = await opened(await openKafkaReader(cluster, topic, FEW)).consume("c");
    const seen = new Map(
      (await readEvents(consumer, 200)).map(({ partition, position, text }) => [
        `${partition} ${position}`,
        text,
      ]),
    );
    for (const [i, { partition, position }] of places.entries()) {
      expect(seen.get(`${partition} ${position}`)).toBe(event(i).toString("latin1"));
    }
  },
);

test.each(["none", "gzip", "snappy", "lz4", "zstd"])(
  "what Kafka's own producer writes, packed with %s, is read",
  async (codec) => {
    const topic = newTopic();
    await made(topic);
    await cluster.tool(
      "org.apache.kafka.tools.ProducerPerformance",
      ...`--topic ${topic} --num-records 3000 --record-size 300 --throughput -1 --producer-props`.split(" "),
      ...[`bootstrap.servers=${cluster.brokers[0]}`, `compression.type=${codec}`, "acks=all"],
    );
    const consumer = await opened(await openKafkaReader(cluster, topic, FEW)).consume("c");
    const events = await readEvents(consumer, 3000);
    expect(events).toHaveLength(3000);
    for (const { text } of events) expect(text).toMatch(/^[A-Z]{300}$/);
  },
);

test("of foreign transactions, what was committed is read, and the record moves beyond what holds no events", async () => {
  const topic = newTopic();
  await made(topic, {}, 2);
  const reader = opened(await openKafkaReader(cluster, topic, FEW));
  const consumer = await reader.consume("c");
  const producer = opened(
    new Producer<Buffer, Buffer, Buffer, Buffer>({
      clientId: "foreign",
      bootstrapBrokers: cluster.brokers,
      idempotent: true,
      acks: ProduceAcks.ALL,
      transactionalId: newTopic(),
    }),
  );
  const say = (text: string, count: number) =>
    Array.from({ length: count }, (_, i) => ({
      topic,
      partition: i % 2,
      value: Buffer.from(`${text}-${i}`),
    }));
  const expected: string[] = [];
  for (let round = 0; round < 6; round++) {
    const transaction = await producer.beginTransaction({});
    await transaction.send({ messages: say(`round-${round}`, 10) });
    if (round % 2 === 1) {
      await transaction.abort();
    } else {
      await transaction.commit();
      expected.push(...say(`round-${round}`, 10).map(({ value }) => value.toString()));
    }
  }
  const events = await readEvents(consumer, expected.length);
  expect(events.map(({ text }) => text).sort()).toEqual(expected.sort());
  expect(await consumer.read({ ...PLENTY, waitMs: 1_000 })).toBeUndefined();
  await consumer.commit(lastOf(events));
  // Nothing waits: the last record of each partition is a mark, no event.
  await expect
    .poll(async () => new Map(await reader.lowWater("c")), { timeout: 10_000 })
    .toEqual(new Map(await reader.head()));
  // And where a mark comes when all is done.
  const transaction = await producer.beginTransaction({});
  await transaction.send({ messages: say("never", 4) });
  await transaction.abort();
  await expect
    .poll(
      async () => {
        await consumer.read({ ...PLENTY, waitMs: 100 });
        const [done, head] = [await reader.lowWater("c"), await reader.head()];
        return [...head].every(([partition, position]) => done.get(partition) === position);
      },
      { timeout: 15_000 },
    )
    .toBe(true);
});

test("messages that are no events, without keys or without anything, come through as they are", async () => {
  const topic = newTopic();
  await made(topic, {}, 1);
  const producer = opened(
    new Producer<Buffer, Buffer, Buffer, Buffer>({
      clientId: "foreign",
      bootstrapBrokers: cluster.brokers,
      acks: ProduceAcks.ALL,
      compression: "gzip" satisfies CompressionAlgorithmValue,
      strict: false,
    }),
  );
  const values = [Buffer.from("no envelope"), Buffer.alloc(0), null, Buffer.from([0xff, 0x00])];
  await producer.send({ messages: values.map((value) => ({ topic, value: value as Buffer })) });
  const consumer = await opened(await openKafkaReader(cluster, topic, FEW)).consume("c");
  const events = await readEvents(consumer, 4);
  expect(events.map(({ text }) => text)).toEqual(["no envelope", "", "", "\xff\x00"]);
});

test("partitions that are added are written to and read without a restart", async () => {
  const topic = newTopic();
  const writer = opened(
    await openKafkaWriter(cluster, topic, { ...FEW, partitions: 2 }, { metadataMs: 200 }),
  );
  const reader = opened(await openKafkaReader(cluster, topic, { ...FEW, partitions: 2 }));
  const held: string[] = [];
  const consumer = await reader.consume("c", {
    assigned: (partitions) => held.push(...partitions.map(({ name }) => name)),
    revoked: async () => undefined,
  });
  const follower = await reader.follow("oldest");
  await writer.append(texts(0, 40));
  await readEvents(consumer, 40);
  await admin.createPartitions({
    topics: [{ name: topic, count: 5, assignments: new Array(3).fill({ brokerIds: [1] }) }],
  });
  const names = new Set<string>();
  let sent = 40;
  await expect
    .poll(
      async () => {
        const places = placesOf(await writer.append(texts(sent, 40)));
        sent += 40;
        for (const { partition } of places) names.add(partition);
        return names.size;
      },
      { timeout: 20_000 },
    )
    .toBeGreaterThanOrEqual(4);
  expect((await readEvents(consumer, sent - 40, PATIENT)).map(({ text }) => text).sort()).toEqual(
    Array.from({ length: sent - 40 }, (_, i) => `event-${40 + i}`).sort(),
  );
  expect(held.sort()).toEqual(["0", "1", "2", "3", "4"]);
  expect(await readEvents(follower, sent, PATIENT)).toHaveLength(sent);
});

test("an event larger than the topic takes is refused by itself, and what comes in bulk beyond memory waits outside", async () => {
  const topic = newTopic();
  const writer = opened(await openKafkaWriter(cluster, topic, FEW, { maxInFlightBytes: 1024 * 1024 }));
  const bytes = Buffer.alloc(5 * 1024 * 1024);
  const refused = await writer.append(eventSlices([{ partition: 0, bytes }]));
  expect([refused.positions, refused.tooLarge]).toEqual([[undefined], new Set([0])]);
  const body = () =>
    eventSlices(Array.from({ length: 8 }, (_, i) => ({ partition: i % 4, bytes: Buffer.alloc(100_000) })));
  const answers = await Promise.all([writer.append(body()), writer.append(body()), writer.append(body())]);
  expect(positionsIn(answers[0]!)).toHaveLength(8);
  expect(answers[1]!.positions).toEqual(new Array(8).fill(undefined));
  expect(answers[2]!.positions).toEqual(new Array(8).fill(undefined));
  expect(positionsIn(await writer.append(body()))).toHaveLength(8);
  const reader = opened(await openKafkaReader(cluster, topic, FEW));
  let count = 0;
  for await (const batch of reader.waiting("nobody")) count += eventsOf(batch).length;
  expect(count).toBe(16);
});

test.each(["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] as const)(
  "%s, with TLS and without",
  async (mechanism) => {
    const sasl = { mechanism, ...SASL_USER };
    for (const brokers of [
      { brokers: cluster.saslBrokers, clientId: "test", sasl },
      { brokers: cluster.tlsBrokers, clientId: "test", sasl, tls: { ca: cluster.ca } },
    ]) {
      const topic = newTopic();
      const writer = opened(await openKafkaWriter(cluster, topic, FEW, { brokers }));
      await writer.append(texts(0, 8));
      const reader = opened(await openKafkaReader(cluster, topic, FEW, { brokers }));
      expect(await readEvents(await reader.consume("c"), 8)).toHaveLength(8);
      await reader.close();
    }
  },
);

test("a wrong password, and an unknown authority, are told without either", async () => {
  const topic = newTopic();
  const sasl = { mechanism: "SCRAM-SHA-512", username: "alice", password: "not-the-secret" } as const;
  const settings = { topic: topicSettings(topic, FEW) };
  const failure = await KafkaReader.open({
    ...settings,
    brokers: { brokers: cluster.saslBrokers, clientId: "test", sasl },
  }).catch((error: unknown) => error);
  expect(failure).toMatchObject({
    code: "TRB-CONFIG",
    message: expect.stringContaining("stream.kafka.sasl"),
  });
  // With all that a log may show of it.
  expect(inspect(failure, { depth: 10 })).not.toContain("not-the-secret");
  const untrusted = KafkaWriter.open({
    brokers: { ...brokerSettings(cluster), brokers: cluster.tlsBrokers, tls: {} },
    ...settings,
    compression: "none",
    maxInFlightBytes: 1,
    describe: () => undefined,
  });
  await expect(untrusted).rejects.toMatchObject({
    code: "TRB-CONFIG",
    message: expect.stringContaining("stream.kafka.tls"),
  });
});
