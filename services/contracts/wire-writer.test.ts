import { fromBinary } from "@bufbuild/protobuf";
import { BinaryReader } from "@bufbuild/protobuf/wire";
import { TimestampSchema } from "@bufbuild/protobuf/wkt";
import fc from "fast-check";
import { expect, test } from "vitest";
import { WireWriter } from "./wire-writer.js";

const writer = new WireWriter(64);

test("times are read as they were written, also from before 1970", () => {
  const seconds = fc.integer({ min: -62_135_596_800, max: 253_402_300_799 });
  const edges = [-1, 0, 1, 2 ** 31, 2 ** 32, -(2 ** 31) - 1, -(2 ** 32), -(2 ** 32) - 1];
  fc.assert(
    fc.property(
      fc.oneof(seconds, fc.constantFrom(...edges)),
      fc.integer({ min: 0, max: 999_999_999 }),
      (s, nanos) => {
        const reader = new BinaryReader(writer.reset().time(6, s, nanos).copy());
        expect(reader.tag()).toEqual([6, 2]);
        const read = fromBinary(TimestampSchema, reader.bytes());
        expect([read.seconds, read.nanos, reader.pos]).toEqual([BigInt(s), nanos, reader.len]);
      },
    ),
  );
});

test("numbers of 64 bits are read as they were written", () => {
  fc.assert(
    fc.property(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), (number) => {
      writer.reset().varint64(Number(number & 0xffffffffn), Number(number >> 32n));
      expect(BigInt(new BinaryReader(writer.copy()).uint64())).toBe(number);
    }),
  );
  fc.assert(
    fc.property(fc.nat({ max: Number.MAX_SAFE_INTEGER }), (number) => {
      expect(BigInt(new BinaryReader(writer.reset().varint(number).copy()).uint64())).toBe(BigInt(number));
    }),
  );
});

test("what its length comes before is read as it was written, however long it is, and room grows", () => {
  const lengths = [0, 1, 127, 128, 16_383, 16_384, 2_097_151, 2_097_152];
  for (const inner of lengths) {
    const small = new WireWriter(8);
    const opened = small.varint(10).open();
    small.ensure(inner).raw(Buffer.alloc(inner, 7));
    small.close(opened).ensure(5).varint(21).fixed32(0xfedcba98);
    const reader = new BinaryReader(small.copy());
    expect(reader.tag()).toEqual([1, 2]);
    expect(reader.bytes().every((byte) => byte === 7)).toBe(true);
    expect(reader.tag()).toEqual([2, 5]);
    expect([reader.fixed32(), reader.pos]).toEqual([0xfedcba98, reader.len]);
    small.rewind(1);
    expect(small.copy()).toEqual(Buffer.from([10]));
  }
});
