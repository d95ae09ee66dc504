import { Reader, readRecordsBatch } from "@platformatic/kafka";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { at, batchOf, fetched, textsOf } from "../../../test/support/record-batches.js";
import { pack } from "./codecs.js";
import { BatchBuilder, type EventFacts, sequenceAfter, sign } from "./record-batch.js";
import type { Compression } from "./settings.js";
import { type FetchedPartition, windowOf } from "./window.js";

const NO_TRACE = { traceparentStart: -1, traceparentEnd: -1 };

/** tenant, type and id one after the other, then the event's own bytes. */
function laid(parts: readonly [string, string, string], rest: Uint8Array) {
  const [tenant, type, id] = parts.map((part) => Buffer.from(part)) as [Buffer, Buffer, Buffer];
  const bytes = Buffer.concat([Buffer.from("##"), tenant, type, id, rest, Buffer.from("##")]);
  const typeStart = 2 + tenant.length;
  const idStart = typeStart + type.length;
  const facts: EventFacts = {
    tenantStart: 2,
    tenantEnd: typeStart,
    typeStart,
    typeEnd: idStart,
    idStart,
    idEnd: idStart + id.length,
    ...NO_TRACE,
  };
  return { bytes, start: 2, end: bytes.length - 2, facts };
}

const textsIn = async (answers: FetchedPartition[], from = new Map([[3, 0]])) => {
  const window = await windowOf(answers, from);
  const { count, offsets, next } = window;
  return { texts: textsOf(window), offsets: [...offsets.subarray(0, count)], next: next.get(3) };
};

describe("record batches", () => {
  test("what is written is what the client's own parser finds, and what we find", async () => {
    const event = fc.record({
      parts: fc.tuple(
        fc.stringMatching(/^[a-z0-9]{1,128}$/),
        fc.stringMatching(/^[a-z.]{1,60}$/),
        fc.string({ minLength: 1, maxLength: 300, unit: "binary" }),
      ),
      keyed: fc.boolean(),
      rest: fc.uint8Array({ maxLength: 400 }),
      timestamp: fc.integer({ min: 0, max: 2 ** 42 }),
    });
    await fc.assert(
      fc.asyncProperty(
        fc.array(event, { minLength: 1, maxLength: 200 }),
        fc.constantFrom<Compression>("none", "gzip", "snappy", "lz4"),
        async (events, compression) => {
          const builder = new BatchBuilder(1024 * 1024, 64);
          for (const { parts, keyed, rest, timestamp } of events) {
            const { bytes, start, end, facts } = laid(parts, rest);
            expect(builder.add(bytes, start, end, keyed ? facts : undefined, timestamp)).toBe(true);
          }
          const packed = compression === "none" ? undefined : await pack(compression, builder.records);
          const batch = builder.finish(packed);
          sign(batch, { id: 123n, epoch: 4 }, 56);
          const theirs = readRecordsBatch(Reader.from(at(batch, 1_000)));
          expect(theirs).toMatchObject({ producerId: 123n, producerEpoch: 4, firstSequence: 56 });
          const ours = await windowOf([fetched(at(batch, 1_000))], new Map([[3, 0]]));
          expect(ours.count).toBe(events.length);
          expect(ours.next.get(3)).toBe(1_000 + events.length);
          for (const [i, { parts, keyed, rest, timestamp }] of events.entries()) {
            const value = Buffer.concat([Buffer.from(parts.join("")), rest]);
            const record = theirs.records[i]!;
            expect(record.value).toEqual(value);
            expect(record.key?.toString()).toBe(
              keyed ? parts.map((part) => Buffer.from(part).toString()).join("/") : undefined,
            );
            expect(theirs.firstTimestamp + record.timestampDelta).toBe(BigInt(timestamp));
            expect(ours.bytes.subarray(ours.starts[i], ours.ends[i])).toEqual(value);
            expect(ours.timestamps[i]).toBe(timestamp);
            expect(ours.offsets[i]).toBe(1_000 + i);
          }
        },
      ),
      { numRuns: 60 },
    );
  });

  test("a batch takes what fits, and one event that is larger alone", () => {
    const builder = new BatchBuilder(1_000);
    const large = Buffer.alloc(5_000);
    expect(builder.add(large, 0, 5_000, undefined, 0)).toBe(true);
    expect(builder.add(large, 0, 1, undefined, 0)).toBe(false);
    const other = new BatchBuilder(1_000);
    let count = 0;
    while (other.add(large, 0, 50, undefined, 0)) count++;
    expect(count).toBeGreaterThan(5);
    expect(other.bytes).toBeLessThanOrEqual(1_000);
  });

  test("sequences go on from 0 after the last int32", () => {
    expect(sequenceAfter(2 ** 31 - 3, 2)).toBe(2 ** 31 - 1);
    expect(sequenceAfter(2 ** 31 - 3, 3)).toBe(0);
    expect(sequenceAfter(2 ** 31 - 3, 5)).toBe(2);
  });

  test("reading begins within a batch, and an answer may end within one", async () => {
    const answer = Buffer.concat([
      at(batchOf(["a", "b", "c"]), 10),
      at(batchOf(["d", "e"]), 13),
      at(batchOf(["f"]), 15).subarray(0, 70),
    ]);
    expect(await textsIn([fetched(answer)], new Map([[3, 11]]))).toEqual({
      texts: ["b", "c", "d", "e"],
      offsets: [11, 12, 13, 14],
      next: 15,
    });
  });

  test("an answer that holds far more than it weighs is unpacked piece by piece, and nothing of it is passed over", async () => {
    const MiB = 1024 * 1024;
    const builder = new BatchBuilder(MiB);
    builder.add(Buffer.alloc(MiB - 1_000), 0, MiB - 1_000, undefined, 0);
    const small = builder.finish(await pack("gzip", builder.records));
    sign(small, { id: 1n, epoch: 0 }, 0);
    // 50 of each partition: 100 MiB, packed into a ten-thousandth of the most that a broker answers at once.
    const answer = Buffer.concat(Array.from({ length: 50 }, (_, i) => at(small, i)));
    expect(answer.length).toBeLessThan(MiB);
    const next = new Map([
      [3, 0],
      [4, 0],
    ]);
    const seen = new Map<number, number[]>([
      [3, []],
      [4, []],
    ]);
    for (let turn = 0; turn < 10; turn++) {
      const answers = [fetched(answer), fetched(answer, { index: 4 })];
      const window = await windowOf(turn % 2 === 0 ? answers : answers.reverse(), next);
      expect(window.bytes.length).toBeLessThan(34 * MiB);
      for (let i = 0; i < window.count; i++) seen.get(window.partitions[i]!)!.push(window.offsets[i]!);
      for (const [partition, offset] of window.next) next.set(partition, offset);
    }
    const all = Array.from({ length: 50 }, (_, i) => i);
    expect(Object.fromEntries(seen)).toEqual({ 3: all, 4: all });
  });

  test("of transactions, aborted events and marks are stepped over; what others wrote between stays", async () => {
    const TRANSACTIONAL = 0x10;
    const CONTROL = 0x20;
    const of = (producer: bigint, texts: string[], offset: number) =>
      at(batchOf(texts, { attributes: TRANSACTIONAL, producer }), offset);
    const mark = (producer: bigint, offset: number) =>
      at(batchOf(["mark"], { attributes: TRANSACTIONAL | CONTROL, producer }), offset);
    const records = Buffer.concat([
      of(1n, ["gone"], 0),
      of(2n, ["kept"], 1),
      at(batchOf(["plain"], { producer: 1n }), 2),
      of(1n, ["gone"], 3),
      mark(1n, 4),
      of(1n, ["kept too"], 5),
      mark(2n, 6),
      mark(1n, 7),
    ]);
    expect(await textsIn([fetched(records, { aborted: [{ producer: 1n, first: 0 }] })])).toEqual({
      texts: ["kept", "plain", "kept too"],
      offsets: [1, 2, 5],
      next: 8,
    });
  });

  test("damage is told: a flipped bit anywhere, an unknown format, a record beyond its batch", async () => {
    const batch = at(batchOf(["some text", "and more"]), 0);
    for (let i = 21; i < batch.length; i++) {
      const damaged = Buffer.from(batch);
      damaged[i]! ^= 0x10;
      await expect(textsIn([fetched(damaged)])).rejects.toMatchObject({ code: "TRB-STREAM-CORRUPT" });
    }
    const old = Buffer.from(batch);
    old[16] = 1;
    await expect(textsIn([fetched(old)])).rejects.toMatchObject({ code: "TRB-STREAM-CORRUPT" });
    const long = Buffer.from(batch);
    long.writeInt32BE(99, 57);
    sign(long, { id: 1n, epoch: 0 }, 0);
    await expect(textsIn([fetched(long)])).rejects.toMatchObject({ code: "TRB-STREAM-CORRUPT" });
  });
});
