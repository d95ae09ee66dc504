import { setTimeout as sleep } from "node:timers/promises";
import type {
  KinesisClient,
  PutRecordsCommandInput,
  PutRecordsCommandOutput,
  SubscribeToShardCommandInput,
  SubscribeToShardCommandOutput,
  SubscribeToShardEventStream,
} from "@aws-sdk/client-kinesis";
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "vitest";
import { connectKinesis } from "../../services/stream/kinesis/connect.js";
import { readEvents } from "../contract/change-stream.js";
import { type KinesisServer, startKinesis } from "../servers/kinesis.js";
import { eventSlices, eventsOf } from "../support/event-slices.js";
import { TestStream } from "../support/kinesis.js";
import { MemoryLeases } from "../support/memory-leases.js";

let server: KinesisServer;
let stream: TestStream;
beforeAll(async () => {
  server = await startKinesis();
});
afterAll(() => server?.stop());
beforeEach(async () => {
  stream = await TestStream.create({ endpoint: server.endpoint, leases: new MemoryLeases() });
});
afterEach(() => stream.dispose());

/** Of each request some records are refused, as a shard without room does: they are never sent. */
function refusing(client: KinesisClient, refuse: () => boolean): KinesisClient {
  client.middlewareStack.add(
    (next, context) => async (args) => {
      if (context.commandName !== "PutRecordsCommand") return next(args);
      const input = args.input as PutRecordsCommandInput;
      const refused = input.Records!.map(() => refuse());
      const sent = input.Records!.filter((_, i) => !refused[i]);
      const error = { ErrorCode: "ProvisionedThroughputExceededException", ErrorMessage: "injected" };
      if (sent.length === 0) {
        const output = {
          Records: refused.map(() => error),
          FailedRecordCount: refused.length,
          $metadata: {},
        };
        return { output: output as PutRecordsCommandOutput, response: {} };
      }
      const result = await next({ ...args, input: { ...input, Records: sent } as typeof args.input });
      const output = result.output as PutRecordsCommandOutput;
      const answers = [...output.Records!];
      const Records = refused.map((was) => (was ? error : answers.shift()!));
      return { ...result, output: { ...output, Records } as typeof result.output };
    },
    { step: "initialize", name: "refuse" },
  );
  return client;
}

/** Publishes small batches for so long; what was told of each event: a place, a refusal, or nothing at all. */
async function publish(client: KinesisClient, calls: number) {
  const writer = await stream.openWriter(client);
  const accepted = new Map<string, string>();
  const refused = new Set<string>();
  const doubtful = new Set<string>();
  await Promise.all(
    Array.from({ length: calls }, async (_, call) => {
      await sleep(call * 25);
      const texts = Array.from({ length: 12 }, (_, i) => `event-${call}-${i}`);
      try {
        const { names, partitions, positions } = await writer.append(
          eventSlices(texts.map((text, i) => ({ partition: i % 4, bytes: Buffer.from(text) }))),
        );
        positions.forEach((position, i) => {
          if (position === undefined) refused.add(texts[i]!);
          else accepted.set(texts[i]!, `${names[partitions[i]!]} ${position}`);
        });
      } catch {
        for (const text of texts) doubtful.add(text);
      }
    }),
  );
  return { accepted, refused, doubtful };
}

/** All that stands in the stream: text by place. */
async function stored(): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  for await (const batch of (await stream.openReader()).waiting("nobody")) {
    for (const { partition, position, text } of eventsOf(batch)) found.set(`${partition} ${position}`, text);
  }
  return found;
}

test("a third of the records refused for some seconds: all in the end there once, none said to be there that is not", async () => {
  const end = performance.now() + 4_000;
  let asked = 0;
  const client = refusing(connectKinesis({ endpoint: server.endpoint, answerMs: 60_000 }), () => {
    return performance.now() < end && ++asked % 3 === 0;
  });
  const { accepted, refused, doubtful } = await publish(client, 200);
  const found = await stored();
  for (const [text, place] of accepted) expect(found.get(place)).toBe(text);
  expect([...found.values()].filter((text) => refused.has(text))).toEqual([]);
  expect(found.size).toBe(accepted.size);
  expect(new Set(found.values()).size).toBe(found.size);
  expect(doubtful.size).toBe(0);
  expect(accepted.size + refused.size).toBe(2_400);
  // A third is no reason to give up within two seconds.
  expect(accepted.size).toBeGreaterThan(2_300);
  client.destroy();
});

test("answers that are lost: what is accepted is where it was said to be; a record sent twice has two positions", async () => {
  const client = connectKinesis({ endpoint: server.endpoint, answerMs: 60_000 });
  let count = 0;
  client.middlewareStack.add(
    (next, context) => async (args) => {
      const result = await next(args);
      if (context.commandName === "PutRecordsCommand" && ++count % 4 === 0) {
        throw Object.assign(new Error("socket hang up"), { code: "ECONNRESET" });
      }
      return result;
    },
    { step: "deserialize", name: "loseAnswers" },
  );
  const { accepted, refused, doubtful } = await publish(client, 60);
  expect([accepted.size, refused.size, doubtful.size]).toEqual([720, 0, 0]);
  const found = await stored();
  for (const [text, place] of accepted) expect(found.get(place)).toBe(text);
  expect(new Set(found.values()).size).toBe(720);
  expect(found.size).toBeGreaterThan(720);
  client.destroy();
});

test("enhanced fan-out: pushed records come once and in order, across subscriptions that end and a split", async () => {
  const client = connectKinesis({ endpoint: server.endpoint, answerMs: 60_000 });
  let subscriptions = 0;
  let closed: string | undefined;
  client.middlewareStack.add(
    (next, context) => async (args) => {
      const result = await next(args);
      if (context.commandName !== "SubscribeToShardCommand") return result;
      subscriptions++;
      const output = result.output as SubscribeToShardCommandOutput;
      const { ShardId } = args.input as SubscribeToShardCommandInput;
      const short = async function* (events: AsyncIterable<SubscribeToShardEventStream>) {
        let left = 2;
        for await (const event of events) {
          const pushed = event.SubscribeToShardEvent;
          if (ShardId === closed && pushed?.Records?.length === 0) {
            // As AWS says that a shard has ended; kinesis-local never does.
            const last = { ...pushed, ContinuationSequenceNumber: undefined, ChildShards: [] };
            yield { SubscribeToShardEvent: last };
            return;
          }
          yield event;
          // As after five minutes, only sooner.
          if (--left === 0) return;
        }
      };
      return {
        ...result,
        output: { ...output, EventStream: short(output.EventStream!) } as typeof result.output,
      };
    },
    { step: "initialize", name: "endSoon" },
  );
  const writer = await stream.openWriter();
  const consumer = await (await stream.openReader({ client, fanOut: true })).consume("pushed");
  const seen: { partition: string; position: string; text: string }[] = [];
  const take = async (count: number) => {
    const events = await readEvents(consumer, count, { maxEvents: 1_000, maxBytes: 1e7, waitMs: 60_000 });
    seen.push(...events);
    await consumer.commit(new Map(events.map(({ partition, position }) => [partition, position])));
  };
  const append = (from: number) =>
    writer.append(
      eventSlices(
        Array.from({ length: 16 }, (_, i) => ({ partition: i % 4, bytes: Buffer.from(`event-${from + i}`) })),
      ),
    );
  for (let round = 0; round < 5; round++) {
    await append(round * 16);
    await take(16);
  }
  const [first] = await stream.openShards();
  await stream.split(first!);
  closed = first!.ShardId;
  for (let round = 5; round < 8; round++) await append(round * 16);
  await take(48);
  expect(seen.map(({ text }) => text).sort()).toEqual(
    Array.from({ length: 128 }, (_, i) => `event-${i}`).sort(),
  );
  const last = new Map<string, string>();
  for (const { partition, position } of seen) {
    expect(position > (last.get(partition) ?? "")).toBe(true);
    last.set(partition, position);
  }
  expect(subscriptions).toBeGreaterThan(6);
  await consumer.close();
  client.destroy();
});
