import { PutRecordsCommand } from "@aws-sdk/client-kinesis";
import { expect, test } from "vitest";
import { eventSlices } from "../../../test/support/event-slices.js";
import { FakeKinesis, throttled } from "../../../test/support/fake-kinesis.js";
import { MemoryLeases } from "../../../test/support/memory-leases.js";
import { aggregate, disaggregate } from "./aggregate.js";
import { eventPosition, recordPosition } from "./positions.js";
import { KinesisWriter } from "./writer.js";

const open = (kinesis: FakeKinesis, patience = { refuseMs: 2_000, downMs: 10_000 }) =>
  KinesisWriter.open({
    patience,
    client: kinesis.client(),
    stream: "fake",
    leases: async () => new MemoryLeases(),
  });

/** Everything that stands in the stream, by its place. */
function stored(kinesis: FakeKinesis): Map<string, string> {
  const found = new Map<string, string>();
  for (const { id, records } of kinesis.shards) {
    for (const { number, data } of records) {
      const { starts, ends } = disaggregate(data) ?? { starts: [0], ends: [data.length] };
      starts.forEach((start, i) => {
        const position = eventPosition(recordPosition(String(number)), i);
        found.set(`${id} ${position}`, data.toString("latin1", start, ends[i]));
      });
    }
  }
  return found;
}
const batch = (from: number, count: number, bytes = 20, shard = (i: number) => i % 4) =>
  eventSlices(
    Array.from({ length: count }, (_, i) => ({
      partition: shard(i),
      bytes: Buffer.from(`event-${from + i} `.padEnd(bytes, "x")),
    })),
  );
const puts = (kinesis: FakeKinesis) =>
  kinesis.requests.filter((command) => command instanceof PutRecordsCommand);

test("events go to the shards of their slots, in their order, few records for many", async () => {
  const kinesis = new FakeKinesis(4);
  const writer = await open(kinesis);
  const { names, partitions, positions } = await writer.append(batch(0, 2_000, 700));
  const found = stored(kinesis);
  positions.forEach((position, i) => {
    expect(names[partitions[i]!]).toBe(kinesis.shards[i % 4]!.id);
    expect(found.get(`${names[partitions[i]!]} ${position}`)).toMatch(new RegExp(`^event-${i} `));
  });
  for (const { records } of kinesis.shards) {
    // 350 kB a shard: two records, the first as large as they get.
    expect(records).toHaveLength(2);
    expect(records[0]!.data.length).toBeGreaterThan(250_000);
  }
  await writer.close();
});

test("what comes while a record is on its way goes together in the next one", async () => {
  const kinesis = new FakeKinesis(1);
  const writer = await open(kinesis);
  await Promise.all(Array.from({ length: 50 }, (_, i) => writer.append(batch(i, 1, 20, () => 0))));
  expect(kinesis.shards[0]!.records).toHaveLength(2);
  await writer.close();
});

test("refused records are tried again by themselves; none is told of that is not there, none is there twice", async () => {
  const kinesis = new FakeKinesis(4);
  const writer = await open(kinesis);
  const end = performance.now() + 1_000;
  kinesis.fate = () => (performance.now() < end && Math.random() < 1 / 3 ? "refuse" : undefined);
  const appended = await Promise.all(
    Array.from({ length: 200 }, async (_, call) => {
      await new Promise((resolve) => setTimeout(resolve, call * 6));
      return writer.append(batch(call * 10, 10));
    }),
  );
  const found = stored(kinesis);
  expect(found.size).toBe(2_000);
  expect(new Set(found.values()).size).toBe(2_000);
  appended.forEach(({ names, partitions, positions }, call) => {
    positions.forEach((position, i) => {
      expect(found.get(`${names[partitions[i]!]} ${position}`)).toMatch(
        new RegExp(`^event-${call * 10 + i} `),
      );
    });
  });
  // No event was overtaken by a later one of its shard.
  for (const { id, records } of kinesis.shards) {
    const numbers = records.flatMap(({ data }) =>
      data
        .toString("latin1")
        .match(/event-\d+/g)!
        .map((t) => Number(t.slice(6))),
    );
    expect([id, numbers]).toEqual([id, [...numbers].sort((a, b) => a - b)]);
  }
  await writer.close();
});

test("a shard without room refuses its events in the end, and theirs alone", async () => {
  const kinesis = new FakeKinesis(4);
  const writer = await open(kinesis);
  const full = kinesis.shards[2]!.id;
  kinesis.fate = (shard) => (shard === full ? "refuse" : undefined);
  const began = performance.now();
  const { positions, partitions, names } = await writer.append(batch(0, 8));
  expect(performance.now() - began).toBeLessThan(10_000);
  expect(positions.map((position) => position !== undefined)).toEqual([
    true,
    true,
    false,
    true,
    true,
    true,
    false,
    true,
  ]);
  expect([...partitions].every((partition) => partition < names.length)).toBe(true);
  expect(stored(kinesis).size).toBe(6);
  kinesis.fate = () => undefined;
  expect((await writer.append(batch(8, 4))).positions).not.toContain(undefined);
  await writer.close();
});

test("throttling of whole requests refuses, too; an answer that never comes is a stream that is down", async () => {
  const kinesis = new FakeKinesis(1);
  const writer = await open(kinesis, { refuseMs: 200, downMs: 700 });
  kinesis.before = (command) => {
    if (command instanceof PutRecordsCommand) throw throttled();
  };
  expect((await writer.append(batch(0, 2, 20, () => 0))).positions).toEqual([undefined, undefined]);
  kinesis.before = () => undefined;
  kinesis.after = (command) => {
    if (command instanceof PutRecordsCommand) throw Object.assign(new Error("reset"), { code: "ECONNRESET" });
  };
  await expect(writer.append(batch(2, 1, 20, () => 0))).rejects.toMatchObject({
    code: "TRB-BUS-STREAM-DOWN",
  });
  kinesis.after = () => undefined;
  // In doubt once, then refused: it may be there, so it is not said to be refused.
  let tries = 0;
  kinesis.fate = () => (tries++ === 0 ? "fail" : "refuse");
  await expect(writer.append(batch(3, 1, 20, () => 0))).rejects.toMatchObject({
    code: "TRB-BUS-STREAM-DOWN",
  });
  await writer.close();
});

test("after a split events go on; the first few may be guessed to the wrong child, none is lost", async () => {
  const kinesis = new FakeKinesis(2);
  const writer = await open(kinesis);
  kinesis.split(0);
  const calls = await Promise.all(
    Array.from({ length: 40 }, async (_, call) => {
      await new Promise((resolve) => setTimeout(resolve, call * 40));
      return writer.append(batch(call * 8, 8, 20, (i) => i % 4));
    }),
  );
  const found = stored(kinesis);
  expect(found.size).toBe(320);
  for (const { names, partitions, positions } of calls) {
    positions.forEach((position, i) => {
      expect(found.has(`${names[partitions[i]!]} ${position}`)).toBe(true);
    });
  }
  const [, , low, high] = kinesis.shards;
  const last = calls.at(-1)!;
  expect(new Set(last.names)).toEqual(new Set([low!.id, high!.id, kinesis.shards[1]!.id]));
  await writer.close();
});

test("requests stay within what the stream takes; an event beyond it is refused by itself", async () => {
  const kinesis = new FakeKinesis(4);
  const writer = await open(kinesis);
  const { positions } = await writer.append(batch(0, 60, 900_000));
  expect(positions).not.toContain(undefined);
  expect(puts(kinesis).length).toBeGreaterThan(10);
  expect(await writer.append(batch(0, 1, 1024 * 1024 + 1))).toMatchObject({ tooLarge: new Set([0]) });
  await writer.close();
});

test("an event that looks like an aggregated record smuggles nothing in", async () => {
  const kinesis = new FakeKinesis(1);
  const writer = await open(kinesis);
  const smuggled = [Buffer.from("one"), Buffer.from("two")].map((bytes) => ({ bytes, start: 0, end: 3 }));
  const event = aggregate(smuggled, "1", "2");
  await writer.append(eventSlices([{ partition: 0, bytes: event }], () => 0, 1));
  expect([...stored(kinesis).values()]).toEqual([event.toString("latin1")]);
  await writer.close();
});

test("an answer that makes no sense fails what it speaks of, and stops nothing that comes later", async () => {
  const kinesis = new FakeKinesis(1);
  const client = kinesis.client();
  let broken = true;
  const send = async (command: unknown) => {
    const answer = await client.send(command as never);
    if (!broken || !(command instanceof PutRecordsCommand)) return answer;
    broken = false;
    return { Records: [{ ShardId: kinesis.shards[0]!.id, SequenceNumber: "not a number" }] };
  };
  const writer = await KinesisWriter.open({
    client: { send } as unknown as typeof client,
    stream: "fake",
    leases: async () => new MemoryLeases(),
  });
  await expect(writer.append(batch(0, 1))).rejects.toMatchObject({ code: "TRB-STREAM-CORRUPT" });
  expect((await writer.append(batch(1, 1))).positions).not.toContain(undefined);
  await writer.close();
});
