import fc from "fast-check";
import protobuf from "protobufjs";
import { expect, test } from "vitest";
import {
  AGGREGATE_OVERHEAD,
  aggregate,
  aggregatedBytes,
  disaggregate,
  looksAggregated,
} from "./aggregate.js";

const { root } = protobuf.parse(`syntax = "proto2";
  message AggregatedRecord {
    repeated string partition_key_table = 1;
    repeated string explicit_hash_key_table = 2;
    repeated Record records = 3;
  }
  message Tag { required string key = 1; optional string value = 2; }
  message Record {
    required uint64 partition_key_index = 1;
    optional uint64 explicit_hash_key_index = 2;
    required bytes data = 3;
    repeated Tag tags = 4;
  }`);
const Aggregated = root.lookupType("AggregatedRecord");

const slices = (events: readonly Uint8Array[]) =>
  events.map((bytes) => ({ bytes, start: 0, end: bytes.length }));
const parts = (data: Uint8Array) => {
  const found = disaggregate(data);
  return found?.starts.map((start, i) => Buffer.from(data.subarray(start, found.ends[i])));
};
const events = fc.array(fc.uint8Array({ maxLength: 300 }), { minLength: 1, maxLength: 40 });

test("property: what is packed comes out again, and is the message that the format says", () => {
  fc.assert(
    fc.property(events, (given) => {
      const packed = aggregate(slices(given), "4294967295", "340282366920938463463374607431768211455");
      expect(parts(packed)).toEqual(given.map((event) => Buffer.from(event)));
      const message = Aggregated.decode(packed.subarray(4, -16)) as unknown as {
        partitionKeyTable: string[];
        explicitHashKeyTable: string[];
        records: { partitionKeyIndex: unknown; explicitHashKeyIndex: unknown; data: Uint8Array }[];
      };
      expect(message.partitionKeyTable).toEqual(["4294967295"]);
      expect(message.explicitHashKeyTable).toEqual(["340282366920938463463374607431768211455"]);
      expect(message.records.map(({ data }) => Buffer.from(data))).toEqual(given.map((e) => Buffer.from(e)));
      expect(
        message.records.every((r) => Number(r.partitionKeyIndex) + Number(r.explicitHashKeyIndex) === 0),
      ).toBe(true);
      const most = AGGREGATE_OVERHEAD + given.reduce((sum, { length }) => sum + aggregatedBytes(length), 0);
      expect(packed.length).toBeLessThanOrEqual(most);
    }),
  );
});

test("property: what is damaged, or none at all, is taken as it is", () => {
  fc.assert(
    fc.property(events, fc.nat(), fc.integer({ min: 1, max: 255 }), (given, at, flip) => {
      const packed = aggregate(slices(given), "1", "2");
      packed[at % packed.length]! ^= flip;
      expect(disaggregate(packed)).toBeUndefined();
    }),
  );
  for (const data of [Buffer.alloc(0), Buffer.from([0xf3, 0x89, 0x9a, 0xc2]), Buffer.alloc(100)]) {
    expect(disaggregate(data)).toBeUndefined();
  }
});

test("an event that is itself an aggregated record stays one event inside another", () => {
  const inner = aggregate(slices([Buffer.from("smuggled"), Buffer.from("events")]), "1", "2");
  expect(looksAggregated(inner)).toBe(true);
  expect(parts(aggregate(slices([inner]), "1", "2"))).toEqual([inner]);
});

test("tags, keys of every record and fields in another order are no obstacle", async () => {
  const { createHash } = await import("node:crypto");
  const body = Aggregated.encode(
    Aggregated.create({
      partitionKeyTable: ["a", "b"],
      records: [
        { partitionKeyIndex: 1, data: Buffer.from("x"), tags: [{ key: "k", value: "v" }] },
        { partitionKeyIndex: 0, data: Buffer.alloc(0) },
      ],
    }),
  ).finish();
  const packed = Buffer.concat([
    Buffer.from([0xf3, 0x89, 0x9a, 0xc2]),
    body,
    createHash("md5").update(body).digest(),
  ]);
  expect(parts(packed)).toEqual([Buffer.from("x"), Buffer.alloc(0)]);
});
