import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { slotsOfRange } from "../../services/base/slots.js";
import type {
  ChangeStreamReader,
  ChangeStreamWriter,
  Checkpoint,
  Partition,
  StreamFollower,
} from "../../services/stream/change-stream.js";
import { eventSlices, eventsOf, placesOf, positionsIn, type ReadEvent } from "../support/event-slices.js";

/** One stream of 4 partitions, each of a quarter of the slots, empty at first; what `openWriter` and `openReader` return is closed by `dispose`. */
export interface ChangeStreamFixture {
  openWriter(): Promise<ChangeStreamWriter>;
  openReader(): Promise<ChangeStreamReader>;
  dispose(): Promise<void>;
  /** How much a large append holds, where a server is too slow for 64 MiB. */
  readonly largeMiB?: number;
  /** Where it forgets by age. */
  readonly retentionMs?: number;
}

const PLENTY = { maxEvents: 10_000, maxBytes: 64 * 1024 * 1024, waitMs: 5_000 };

/** Events named by the text, one partition after the other unless told. */
export const texts = (from: number, count: number, partition = (i: number) => i % 4) =>
  eventSlices(
    Array.from({ length: count }, (_, i) => ({
      partition: partition(i),
      bytes: Buffer.from(`event-${from + i}`),
    })),
  );

/** Reads until `count` events have come. */
export async function readEvents(
  consumer: StreamFollower,
  count: number,
  limit = PLENTY,
): Promise<ReadEvent[]> {
  const events: ReadEvent[] = [];
  while (events.length < count) {
    const batch = await consumer.read(limit);
    if (batch === undefined) throw new Error(`${events.length} of ${count} events came`);
    events.push(...eventsOf(batch));
  }
  return events;
}

/** Last position per partition. */
export function lastOf(events: readonly ReadEvent[]): Checkpoint {
  return new Map(events.map((event) => [event.partition, event.position]));
}

/** Between partitions no order is promised. */
const sorted = (events: readonly ReadEvent[]) =>
  [...events].sort((a, b) =>
    a.partition === b.partition ? (a.position < b.position ? -1 : 1) : a.partition < b.partition ? -1 : 1,
  );
const names = (events: readonly ReadEvent[]) => events.map((event) => event.text);
const numbered = (from: number, count: number) =>
  Array.from({ length: count }, (_, i) => `event-${from + i}`);

/** What every adapter of the change-stream port has to do. */
export function changeStreamContract(
  make: () => Promise<ChangeStreamFixture>,
  /** An event that a record has no room for, where there is a limit. */
  tooLargeBytes?: number,
): void {
  describe("change stream", () => {
    let fixture: ChangeStreamFixture;
    let writer: ChangeStreamWriter;
    let reader: ChangeStreamReader;

    beforeEach(async () => {
      fixture = await make();
      writer = await fixture.openWriter();
      reader = await fixture.openReader();
    });
    afterEach(() => fixture.dispose());

    /** Names of the partitions, by the quarter of the slots that they carry. */
    async function partitionNames(): Promise<string[]> {
      const quarters = eventSlices([0, 1, 2, 3].map((partition) => ({ partition, bytes: Buffer.from("?") })));
      return placesOf(await writer.append(quarters)).map(({ partition }) => partition);
    }

    test("writer and reader agree on name and partitions; a holder is told of all of them", async () => {
      expect(reader.name).toBe(writer.name);
      const held: Partition[] = [];
      const consumer = await reader.consume("c", {
        assigned: (partitions) => held.push(...partitions),
        revoked: async () => undefined,
      });
      const names = await partitionNames();
      expect(new Set(names).size).toBe(4);
      const events = await readEvents(consumer, 4);
      expect(events.map(({ partition }) => partition).sort()).toEqual([...names].sort());
      for (const [quarter, name] of names.entries()) {
        expect(held.filter((partition) => partition.name === name)).toEqual([
          { name, slots: slotsOfRange(quarter, 4) },
        ]);
      }
      expect(held).toHaveLength(4);
    });

    test("tells for how long it keeps what nobody has read", async () => {
      expect(await reader.retentionMs()).toBe(fixture.retentionMs);
    });

    if (tooLargeBytes !== undefined)
      test("an event that is too large costs no other", async () => {
        const large = { partition: 1, bytes: Buffer.alloc(tooLargeBytes!, 1) };
        const small = [0, 1, 1, 2].map((partition, i) => ({ partition, bytes: Buffer.from(`event-${i}`) }));
        const { positions, tooLarge } = await writer.append(
          eventSlices([small[0]!, small[1]!, large, small[2]!, small[3]!]),
        );
        expect(tooLarge).toEqual(new Set([2]));
        expect(positions.map((position) => position !== undefined)).toEqual([true, true, false, true, true]);
        const alone = await writer.append(eventSlices([large]));
        expect([alone.positions, alone.tooLarge]).toEqual([[undefined], new Set([0])]);
        const consumer = await reader.consume("c");
        expect(names(await readEvents(consumer, 4)).sort()).toEqual(numbered(0, 4));
      });

    test("what was appended is read byte for byte, with its partition, position and time", async () => {
      const before = Date.now();
      const consumer = await reader.consume("c");
      const all = Buffer.from(Array.from({ length: 256 }, (_, i) => i));
      const places = placesOf(
        await writer.append(
          eventSlices([
            { partition: 2, bytes: all },
            { partition: 0, bytes: Buffer.alloc(0) },
            { partition: 2, bytes: Buffer.from("x") },
          ]),
        ),
      );
      expect(places[0]!.partition).toBe(places[2]!.partition);
      expect(places[1]!.partition).not.toBe(places[2]!.partition);
      const events = await readEvents(consumer, 3);
      expect(names(events).sort()).toEqual(["", "x", all.toString("latin1")].sort());
      for (const [i, text] of [all.toString("latin1"), "", "x"].entries()) {
        const event = events.find((candidate) => candidate.text === text);
        expect(event).toMatchObject(places[i]!);
        expect(event!.receivedAt).toBeGreaterThanOrEqual(before);
        expect(event!.receivedAt).toBeLessThanOrEqual(Date.now());
      }
    });

    test("what waits for a consumer can be looked at, and looking changes nothing", async () => {
      const waiting = async (consumer: string) => {
        const events: ReadEvent[] = [];
        for await (const batch of reader.waiting(consumer)) events.push(...eventsOf(batch));
        return events;
      };
      expect(await waiting("c")).toEqual([]);
      await writer.append(texts(0, 100));
      expect(names(await waiting("c")).sort()).toEqual(numbered(0, 100).sort());
      // It has registered nobody: a low-water record there is none, and nothing is kept for it.
      expect([...(await reader.lowWater("c"))]).toEqual([]);
      const consumer = await reader.consume("c");
      const events = await readEvents(consumer, 100);
      expect(sorted(await waiting("c"))).toEqual(sorted(events));
      await consumer.commit(lastOf(events.slice(0, 60)));
      const left = await waiting("c");
      for (const event of events.slice(60)) expect(left).toContainEqual(event);
      await writer.append(texts(100, 5));
      expect((await waiting("c")).length).toBe(left.length + 5);
      await consumer.commit(lastOf(await readEvents(consumer, 5)));
      expect(await waiting("c")).toEqual([]);
    });

    test("positions of a partition order as strings, in the order of appending", async () => {
      const consumer = await reader.consume("c");
      const given: string[][] = [[], [], [], []];
      const quarters: string[] = [];
      for (let call = 0; call < 30; call++) {
        placesOf(await writer.append(texts(call * 40, 40))).forEach(({ partition, position }, i) => {
          given[i % 4]!.push(position);
          quarters[i % 4] = partition;
        });
      }
      const events = await readEvents(consumer, 1200);
      for (let p = 0; p < 4; p++) {
        expect(given[p]).toEqual([...new Set(given[p])].sort());
        expect(new Set(given[p]!.map((position) => position.length)).size).toBe(1);
        const mine = events.filter((event) => event.partition === quarters[p]);
        expect(mine.map((event) => event.position)).toEqual(given[p]);
        expect(names(mine)).toEqual(numbered(0, 1200).filter((_, i) => i % 4 === p));
      }
    });

    test("appends at the same time all land once, each in its own order", async () => {
      const consumer = await reader.consume("c");
      const calls = await Promise.all(
        Array.from({ length: 50 }, async (_, call) =>
          positionsIn(await writer.append(texts(call * 10, 10, () => 1))),
        ),
      );
      const events = await readEvents(consumer, 500);
      const byPosition = new Map(events.map((event) => [event.position, event.text]));
      expect(byPosition.size).toBe(500);
      calls.forEach((positions, call) => {
        expect(positions).toEqual([...positions].sort());
        positions.forEach((position, i) => {
          expect(byPosition.get(position)).toBe(`event-${call * 10 + i}`);
        });
      });
    });

    test("an append of nothing gets no positions", async () => {
      expect(positionsIn(await writer.append(texts(0, 0)))).toEqual([]);
    });

    test("a large append, of 64 MiB, is read back", async () => {
      const { largeMiB = 64 } = fixture;
      const consumer = await reader.consume("c");
      const bytes = Buffer.alloc(1024 * 1024);
      const one = eventSlices(
        Array.from({ length: largeMiB }, (_, i) => {
          bytes.fill(i + 1);
          return { partition: i % 4, bytes: Buffer.from(bytes) };
        }),
      );
      await writer.append(one);
      await writer.append(texts(0, 4));
      let count = 0;
      const seen = new Set<number>();
      while (count < largeMiB + 4) {
        const batch = await consumer.read({ ...PLENTY, maxBytes: 5 * 1024 * 1024, waitMs: 120_000 });
        let size = 0;
        for (let i = 0; i < batch!.count; i++) {
          const event = batch!.bytes.subarray(batch!.starts[i]!, batch!.ends[i]!);
          size += event.length;
          if (event.length < 1024) continue;
          expect(event.equals(Buffer.alloc(1024 * 1024, event[0]))).toBe(true);
          seen.add(event[0]!);
        }
        expect(size).toBeLessThanOrEqual(5 * 1024 * 1024);
        count += batch!.count;
      }
      expect(seen.size).toBe(largeMiB);
    });

    test("a batch keeps both limits but holds at least one event", async () => {
      const consumer = await reader.consume("c");
      await writer.append(texts(0, 20));
      expect((await consumer.read({ ...PLENTY, maxEvents: 3 }))!.count).toBe(3);
      expect((await consumer.read({ ...PLENTY, maxBytes: 15 }))!.count).toBeLessThanOrEqual(2);
      expect((await consumer.read({ ...PLENTY, maxBytes: 1 }))!.count).toBe(1);
    });

    test("reading an empty stream ends after its time, or on abort", async () => {
      const consumer = await reader.consume("c");
      expect(await consumer.read({ ...PLENTY, waitMs: 0 })).toBeUndefined();
      expect(await consumer.read({ ...PLENTY, waitMs: 30 })).toBeUndefined();
      const abort = new AbortController();
      const reading = consumer.read({ ...PLENTY, waitMs: 3_600_000, signal: abort.signal });
      setTimeout(() => abort.abort(), 20);
      expect(await reading).toBeUndefined();
      expect(await consumer.read({ ...PLENTY, signal: AbortSignal.abort() })).toBeUndefined();
    });

    test("a waiting read wakes when something is appended", async () => {
      const consumer = await reader.consume("c");
      for (let round = 0; round < 5; round++) {
        const reading = consumer.read({ ...PLENTY, waitMs: 3_600_000 });
        await new Promise((resolve) => setTimeout(resolve, 10));
        await writer.append(texts(round, 1));
        expect(names(eventsOf((await reading)!))).toEqual([`event-${round}`]);
      }
    });

    test("reading without committing removes nothing; it starts again after the low-water record", async () => {
      await writer.append(texts(0, 40));
      let consumer = await reader.consume("c");
      const first = await readEvents(consumer, 40);
      await consumer.close();
      consumer = await reader.consume("c");
      const again = await readEvents(consumer, 40);
      expect(sorted(again)).toEqual(sorted(first));
      await consumer.commit(lastOf(again.slice(0, 17)));
      await consumer.close();
      consumer = await reader.consume("c");
      const rest = await readEvents(consumer, 23);
      expect(names(rest).sort()).toEqual(names(again.slice(17)).sort());
      expect(await consumer.read({ ...PLENTY, waitMs: 0 })).toBeUndefined();
    });

    test("a low-water record far ahead in one partition and behind in another skips just what is done", async () => {
      const [zero, one] = placesOf(await writer.append(texts(0, 400))).map(({ partition }) => partition);
      let consumer = await reader.consume("c");
      const events = await readEvents(consumer, 400);
      const ofOne = events.filter((event) => event.partition === one);
      await consumer.commit(lastOf(ofOne.slice(0, 90)));
      await consumer.close();
      consumer = await reader.consume("c");
      const rest = await readEvents(consumer, 310);
      expect(names(rest.filter((event) => event.partition === one))).toEqual(names(ofOne.slice(90)));
      expect(rest.filter((event) => event.partition === zero)).toHaveLength(100);
    });

    test("the low-water record is told, survives, and never moves back", async () => {
      const consumer = await reader.consume("c");
      expect((await reader.lowWater("c")).size).toBe(0);
      await writer.append(texts(0, 40));
      const events = await readEvents(consumer, 40);
      const early = lastOf(events.slice(0, 12));
      const late = lastOf(events.slice(0, 32));
      await consumer.commit(late);
      await consumer.commit(early);
      await consumer.commit(new Map());
      const other = await fixture.openReader();
      expect(new Map(await other.lowWater("c"))).toEqual(new Map(late));
      expect((await other.lowWater("unheard-of")).size).toBe(0);
    });

    test("a checkpoint beyond what was read does not skip events", async () => {
      await writer.append(texts(0, 40));
      let consumer = await reader.consume("c");
      const [first] = await readEvents(consumer, 1, { ...PLENTY, maxEvents: 1 });
      await consumer.commit(await reader.head());
      expect(new Map(await reader.lowWater("c"))).toEqual(new Map(lastOf([first!])));
      await consumer.close();
      consumer = await reader.consume("c");
      expect(names(await readEvents(consumer, 39))).not.toContain(first!.text);
    });

    test("consumers do not disturb each other", async () => {
      await writer.append(texts(0, 20));
      const one = await reader.consume("one");
      const two = await reader.consume("two");
      const ofOne = await readEvents(one, 20);
      await one.commit(lastOf(ofOne));
      expect(sorted(await readEvents(two, 20))).toEqual(sorted(ofOne));
      expect((await reader.lowWater("two")).size).toBe(0);
    });

    test("a follower reads on after what it has, all there is, or what comes next", async () => {
      const first = placesOf(await writer.append(texts(0, 20)));
      const oldest = await reader.follow("oldest");
      const next = await reader.follow("next");
      const events = await readEvents(oldest, 20);
      expect(names(events).sort()).toEqual(numbered(0, 20).sort());
      const seen = lastOf(events.slice(0, 13));
      const after = await reader.follow(seen);
      const rest = await readEvents(after, 7);
      expect(rest.map(({ text }) => text).sort()).toEqual(names(events.slice(13)).sort());
      for (const { partition, position } of rest) expect(position > (seen.get(partition) ?? "")).toBe(true);
      await writer.append(texts(20, 8));
      for (const follower of [oldest, next, after]) {
        expect(names(await readEvents(follower, 8)).sort()).toEqual(numbered(20, 8).sort());
        expect(await follower.read({ ...PLENTY, waitMs: 0 })).toBeUndefined();
      }
      // A partition that the checkpoint does not name is read from its beginning.
      const { partition, position } = first[0]!;
      const one = await reader.follow(new Map([[partition, position]]));
      expect(await readEvents(one, 27)).toHaveLength(27);
      await one.close();
      await expect(one.read(PLENTY)).rejects.toMatchObject({ code: "TRB-BUS-STREAM-DOWN" });
    });

    test("a follower is no consumer: nothing waits for it", async () => {
      await reader.follow("oldest");
      const consumer = await reader.consume("c");
      await writer.append(texts(0, 20));
      await consumer.commit(lastOf(await readEvents(consumer, 20)));
      await expect.poll(() => writer.backlogBytes(), { timeout: 10_000 }).toBe(0);
    });

    test("head tells the last position of each partition", async () => {
      expect((await reader.head()).size).toBe(0);
      const expected = new Map<string, string>();
      for (let call = 0; call < 20; call++) {
        const slices = texts(call, 7, (i) => (i + call) % 3);
        for (const { partition, position } of placesOf(await writer.append(slices))) {
          expected.set(partition, position);
        }
        if (call % 6 === 0) expect(new Map(await reader.head())).toEqual(expected);
      }
      expect(new Map(await reader.head())).toEqual(expected);
    });

    test("the backlog is what the slowest consumer is not done with", async () => {
      const one = await reader.consume("one");
      const two = await reader.consume("two");
      await writer.append(eventSlices([{ partition: 0, bytes: Buffer.alloc(100_000) }]));
      expect(writer.backlogBytes()).toBeGreaterThanOrEqual(100_000);
      const events = await readEvents(one, 1);
      await one.commit(lastOf(events));
      await new Promise((resolve) => setTimeout(resolve, 150));
      writer.backlogBytes();
      await new Promise((resolve) => setTimeout(resolve, 50));
      expect(writer.backlogBytes()).toBeGreaterThanOrEqual(100_000);
      await readEvents(two, 1);
      await two.commit(lastOf(events));
      await expect.poll(() => writer.backlogBytes(), { timeout: 10_000 }).toBe(0);
    });

    test("a closed writer takes nothing; another goes on where it ended", async () => {
      const consumer = await reader.consume("c");
      const before = positionsIn(await writer.append(texts(0, 4)));
      await writer.close();
      await expect(writer.append(texts(4, 4))).rejects.toMatchObject({ code: "TRB-BUS-STREAM-DOWN" });
      const next = await fixture.openWriter();
      expect(next.name).toBe(writer.name);
      const after = positionsIn(await next.append(texts(4, 4)));
      after.forEach((position, p) => {
        expect(position > before[p]!).toBe(true);
      });
      expect(names(await readEvents(consumer, 8)).sort()).toEqual(numbered(0, 8).sort());
    });

    test("closing the writer first finishes what was appended", async () => {
      const appends = Array.from({ length: 20 }, (_, i) => writer.append(texts(i, 1)));
      await writer.close();
      expect((await Promise.all(appends)).flatMap(positionsIn)).toHaveLength(20);
    });
  });
}
