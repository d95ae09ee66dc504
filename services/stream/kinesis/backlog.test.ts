import { beforeEach, expect, test } from "vitest";
import { eventSlices } from "../../../test/support/event-slices.js";
import { FakeKinesis } from "../../../test/support/fake-kinesis.js";
import { MemoryLeases } from "../../../test/support/memory-leases.js";
import { newLease } from "../../lease/lease-store.js";
import { Backlog } from "./backlog.js";
import { eventPosition, formatCheckpoint, recordPosition } from "./positions.js";
import { KinesisWriter } from "./writer.js";

const HOUR_MS = 3_600_000;
const at = (sequence: number) => eventPosition(recordPosition(String(sequence)), 0);

let leases: MemoryLeases;
beforeEach(() => {
  leases = new MemoryLeases();
});

/** A consumer is done with a shard up to there. */
async function done(consumer: string, shard: string, sequence: number | undefined): Promise<void> {
  const name = `${consumer}/${shard}`;
  const position = sequence === undefined ? undefined : at(sequence);
  const to = newLease(name, [], formatCheckpoint({ position, coveredUntil: undefined }));
  const from = leases.leases.get(name);
  await leases.change([from === undefined ? { from, to } : { from, to }]);
}
const settles = (backlog: Backlog, bytes: number) => expect.poll(() => backlog.current()).toBe(bytes);
const open = () => new Backlog(leases, 24 * HOUR_MS, 0);

test("what several buses have put into one stream counts in each of them", async () => {
  await done("ingest", "s0", undefined);
  await done("ingest", "s1", undefined);
  const [one, other] = [open(), open()];
  one.add("s0", at(5), 1_000);
  one.add("s1", at(6), 200);
  other.add("s0", at(7), 30);
  await settles(one, 1_200);
  await settles(other, 1_230);
  await settles(one, 1_230);
  await done("ingest", "s0", 5);
  await settles(other, 230);
  await settles(one, 230);
  await done("ingest", "s1", 6);
  await done("ingest", "s0", 7);
  await settles(one, 0);
  await settles(other, 0);
});

test("the slowest consumer is what counts", async () => {
  await done("ingest", "s0", 5);
  await done("search", "s0", 2);
  const [one, other] = [open(), open()];
  one.add("s0", at(5), 1_000);
  await one.close();
  await settles(other, 1_000);
  await done("search", "s0", 5);
  await settles(other, 0);
});

test("what a bus has left behind counts until it has landed, shard by shard; then the rest of it goes, too", async () => {
  await done("ingest", "s0", undefined);
  await done("ingest", "s1", undefined);
  const gone = open();
  gone.add("s0", at(5), 1_000);
  gone.add("s1", at(6), 200);
  await gone.close();
  const next = open();
  await settles(next, 1_200);
  await done("ingest", "s0", 5);
  await settles(next, 200);
  await done("ingest", "s1", 6);
  await settles(next, 0);
  const names = () => [...leases.leases.keys()].filter((name) => name.startsWith(".writers/"));
  expect(names()).toHaveLength(1);
  const [lease] = [...leases.leases.values()].filter(({ name }) => name.startsWith(".writers/"));
  const old = JSON.parse(lease!.checkpoint) as [string, { at: number }][];
  for (const [, chunk] of old) chunk.at -= 2 * HOUR_MS;
  await leases.change([{ from: lease!, to: { ...lease!, checkpoint: JSON.stringify(old) } }]);
  await expect
    .poll(() => {
      next.current();
      return names();
    })
    .toEqual([]);
});

test("a record that nobody can read, and leases that do not answer, do no harm", async () => {
  await done("ingest", "s0", undefined);
  await leases.change([{ from: undefined, to: newLease(".writers/damaged", [], "?") }]);
  const backlog = open();
  backlog.add("s0", at(5), 1_000);
  await settles(backlog, 1_000);
  leases.down = true;
  await done("ingest", "s0", 5).catch(() => undefined);
  await settles(backlog, 1_000);
  leases.down = false;
  await done("ingest", "s0", 5);
  await settles(backlog, 0);
});

test("a bus that is closed leaves its count to the one that comes after it", async () => {
  const kinesis = new FakeKinesis(2);
  const writer = () =>
    KinesisWriter.open({ client: kinesis.client(), stream: "fake", leases: async () => leases });
  const first = await writer();
  await first.append(eventSlices([{ partition: 0, bytes: Buffer.alloc(5_000) }]));
  await first.close();
  const second = await writer();
  await expect.poll(() => second.backlogBytes()).toBe(5_000);
  await second.close();
});
