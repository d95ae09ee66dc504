import { rmSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { temporaryFolder } from "../../test/support/lake.js";
import { Duck, literal, rowsOf } from "../base/duckdb.js";
import type { TributaryError } from "../base/errors.js";
import {
  decodeVector,
  encodeVector,
  encodeVectorFile,
  locateVector,
  unframeVector,
  vectorFileName,
} from "./deletion-vector.js";
import { Mask } from "./mask.js";
import { decodeZ85, encodeZ85, uuidToZ85, z85ToUuid } from "./z85.js";

const UUID = "d2c639aa-8816-431a-aaf6-d3fe2512ff61";
const codeOf = (work: () => unknown): string | undefined => {
  try {
    work();
    return undefined;
  } catch (error) {
    return (error as TributaryError).code;
  }
};

describe("Z85", () => {
  test("the vector of the RFC", () => {
    const bytes = Buffer.from([0x86, 0x4f, 0xd2, 0x6f, 0xb5, 0x59, 0xf7, 0x5b]);
    expect(encodeZ85(bytes)).toBe("HelloWorld");
    expect(decodeZ85("HelloWorld")).toEqual(bytes);
  });

  test("the file of the Delta protocol's example", () => {
    expect(uuidToZ85(UUID)).toBe("^-aqEH.-t@S}K{vb[*k^");
    expect(z85ToUuid("^-aqEH.-t@S}K{vb[*k^")).toBe(UUID);
    expect(
      locateVector({
        storageType: "u",
        pathOrInlineDv: "ab^-aqEH.-t@S}K{vb[*k^",
        offset: 4,
        sizeInBytes: 40,
        cardinality: 6,
      }),
    ).toEqual({ path: `ab/${vectorFileName(UUID)}` });
  });

  test("round trips; what is not Z85 is told", () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 16, maxLength: 16 }), (bytes) => {
        expect(decodeZ85(encodeZ85(Buffer.from(bytes)))).toEqual(Buffer.from(bytes));
      }),
    );
    for (const text of ["abcd", "abcd ", "#####", "abc~d"]) expect(decodeZ85(text)).toBeUndefined();
  });
});

describe("deletion vectors", () => {
  const shapes: readonly [string, Uint32Array][] = [
    ["empty", new Uint32Array(0)],
    ["one row", Uint32Array.of(0)],
    ["the last row there can be", Uint32Array.of(0xffffffff)],
    ["all of 200,000", Uint32Array.from({ length: 200_000 }, (_, i) => i)],
    ["every third across containers", Uint32Array.from({ length: 70_000 }, (_, i) => i * 3)],
    ["sparse", Uint32Array.of(1, 65_535, 65_536, 2 ** 31, 2 ** 32 - 2)],
  ];
  test.each(shapes)("%s: round trip", (_, rows) => {
    expect(decodeVector(encodeVector(rows))).toEqual(rows);
  });

  test("random rows: round trip, one by one and as a file of several", () => {
    const rows = fc.uniqueArray(fc.nat(200_000), { maxLength: 300 }).map((r) => Uint32Array.from(r).sort());
    fc.assert(
      fc.property(fc.array(rows, { minLength: 1, maxLength: 5 }), (vectors) => {
        const { bytes, descriptors } = encodeVectorFile(UUID, vectors);
        for (const [i, { offset, sizeInBytes, cardinality }] of descriptors.entries()) {
          const frame = bytes.subarray(offset!, offset! + sizeInBytes + 8);
          expect(decodeVector(unframeVector(frame, sizeInBytes))).toEqual(vectors[i]);
          expect(cardinality).toBe(vectors[i]!.length);
        }
      }),
      { numRuns: 50 },
    );
  });

  test("an inline vector is read", () => {
    const payload = encodeVector(Uint32Array.of(3, 4, 7, 11, 18, 29));
    const padded = Buffer.concat([payload, Buffer.alloc((4 - (payload.length % 4)) % 4)]);
    const at = locateVector({
      storageType: "i",
      pathOrInlineDv: encodeZ85(padded),
      sizeInBytes: payload.length,
      cardinality: 6,
    });
    expect([...decodeVector((at as { inline: Buffer }).inline)]).toEqual([3, 4, 7, 11, 18, 29]);
  });

  test("any changed byte of a frame is detected", () => {
    const { bytes, descriptors } = encodeVectorFile(UUID, [Uint32Array.of(1, 5, 70_000)]);
    const { offset, sizeInBytes } = descriptors[0]!;
    const frame = bytes.subarray(offset!);
    for (let i = 0; i < frame.length; i++) {
      const damaged = Buffer.from(frame);
      damaged[i]! ^= 1 << (i % 8);
      expect(
        codeOf(() => unframeVector(damaged, sizeInBytes)),
        `byte ${i}`,
      ).toBe("TRB-TABLE-CORRUPT");
    }
    expect(codeOf(() => unframeVector(frame.subarray(1), sizeInBytes))).toBe("TRB-TABLE-CORRUPT");
  });

  test("damaged payloads without a checksum are told, never thrown as something else", () => {
    const payload = encodeVector(Uint32Array.from({ length: 500 }, (_, i) => i * 7));
    for (let cut = 0; cut < payload.length; cut += 3) {
      expect(["TRB-TABLE-CORRUPT", "TRB-TABLE-UNSUPPORTED"]).toContain(
        codeOf(() => decodeVector(payload.subarray(0, cut))),
      );
    }
    const buckets = Buffer.from(payload);
    buckets.writeBigUInt64LE(2n, 4);
    expect(codeOf(() => decodeVector(buckets))).toBe("TRB-TABLE-UNSUPPORTED");
    buckets.writeBigUInt64LE(0n, 4);
    expect(decodeVector(buckets.subarray(0, 12))).toEqual(new Uint32Array(0));
  });
});

describe("masks", () => {
  test("behave like sets", () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 300 }), fc.array(fc.nat(299)), (rows, picked) => {
        const fitting = picked.filter((row) => row < rows);
        const mask = Mask.none(rows);
        const set = new Set<number>();
        for (const row of fitting) {
          expect(mask.set(row)).toBe(!set.has(row));
          set.add(row);
        }
        expect([...mask.toRows()]).toEqual([...set].sort((a, b) => a - b));
        expect(mask.count).toBe(set.size);
        const copy = mask.copy();
        const free = Array.from({ length: rows }, (_, row) => row).find((row) => !set.has(row));
        if (free !== undefined) {
          copy.set(free);
          expect(mask.has(free)).toBe(false);
        }
        expect(() => mask.set(rows)).toThrow(RangeError);
      }),
    );
    expect([...Mask.all(9).toRows()]).toHaveLength(9);
  });

  test("say of every row what DuckDB's get_bit says", async () => {
    const folder = temporaryFolder();
    const duck = await Duck.create({ memoryBytes: 256 * 1024 * 1024 });
    try {
      await duck.with(async (connection) => {
        for (const rows of [1, 7, 8, 9, 5000]) {
          const path = join(folder, `${rows}.parquet`);
          await connection.run(
            `COPY (SELECT range AS i FROM range(${rows})) TO ${literal(path)} (FORMAT parquet)`,
          );
          const mask = Mask.of(
            rows,
            Array.from({ length: rows }, (_, i) => i).filter((i) => (i * 7919) % 3 === 0),
          );
          const bits = Buffer.from(mask.bits).toString("base64");
          const live = await rowsOf(
            connection,
            `SELECT i FROM read_parquet(${literal(path)}, file_row_number=true)
             WHERE get_bit(from_base64('${bits}')::BIT, file_row_number::INTEGER) = 0`,
          );
          expect(live.map(([i]) => Number(i))).toEqual(
            Array.from({ length: rows }, (_, i) => i).filter((i) => !mask.has(i)),
          );
        }
      });
    } finally {
      duck.close();
      rmSync(folder, { recursive: true });
    }
  });
});
