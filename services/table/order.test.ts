import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { entityHash, TenantOrdinals } from "./entity-hash.js";
import { KeyIndex } from "./key-index.js";
import {
  CONTENT_HI,
  CONTENT_LO,
  compareOrder,
  FILE_SHIFT,
  FLAGS,
  HASH1,
  HASH2,
  MAX_FILES,
  OCCURRED_HI,
  OCCURRED_LO,
  ROW,
  SLOT,
  TENANT,
  TOMBSTONE_BIT,
  VERSION_HI,
  VERSION_LO,
  WORDS,
} from "./order.js";

interface Place {
  readonly version: bigint;
  readonly operation: number;
  readonly content: bigint;
  readonly occurred: bigint | undefined;
}

const LOW = 0xffffffffn;

function record(place: Place, words = new Uint32Array(WORDS), at = 0, flags = 0): Uint32Array {
  words[at + VERSION_LO] = Number(place.version & LOW);
  words[at + VERSION_HI] = Number(place.version >> 32n);
  words[at + CONTENT_LO] = Number(place.content & LOW);
  words[at + CONTENT_HI] = Number(place.content >> 32n);
  const shifted = place.occurred === undefined ? 0n : place.occurred + (1n << 63n);
  words[at + OCCURRED_LO] = Number(shifted & LOW);
  words[at + OCCURRED_HI] = Number(shifted >> 32n);
  words[at + FLAGS] = flags | place.operation;
  return words;
}

const compareBig = (a: bigint, b: bigint): number => (a < b ? -1 : a > b ? 1 : 0);

/** The order of design 3.1, in big integers. */
function reference(a: Place, b: Place): number {
  const never = -(1n << 70n);
  return (
    compareBig(a.version, b.version) ||
    Number(a.operation === 3) - Number(b.operation === 3) ||
    compareBig(a.content, b.content) ||
    compareBig(a.occurred ?? never, b.occurred ?? never) ||
    a.operation - b.operation
  );
}

const edges = (min: bigint, max: bigint) =>
  fc.oneof(
    fc.constantFrom(min, max, 1n, (1n << 32n) - 1n, 1n << 32n, 1n << 31n, 1n << 53n, (1n << 53n) + 1n),
    fc.bigInt({ min, max }),
  );
const place: fc.Arbitrary<Place> = fc.record({
  version: edges(1n, (1n << 63n) - 1n),
  operation: fc.constantFrom(1, 2, 3),
  content: edges(0n, (1n << 64n) - 1n),
  occurred: fc.option(
    fc.oneof(
      fc.constantFrom(0n, -1n, 1n, -(1n << 32n), -62_135_596_800_000_000n, 253_402_300_799_999_999n),
      fc.bigInt({ min: -(1n << 62n), max: 1n << 62n }),
    ),
    { nil: undefined },
  ),
});
/** Two places that agree in a random part of their fields. */
const pair = fc.tuple(place, place, fc.nat(15)).map(([a, b, same]): [Place, Place] => [
  a,
  {
    version: same & 1 ? a.version : b.version,
    operation: same & 2 ? a.operation : b.operation,
    content: same & 4 ? a.content : b.content,
    occurred: same & 8 ? a.occurred : b.occurred,
  },
]);
const flags = fc
  .tuple(fc.constantFrom(0, 1, 77, MAX_FILES - 1), fc.boolean())
  .map(([file, tombstone]) => (file << FILE_SHIFT) | (tombstone ? TOMBSTONE_BIT : 0));

describe("the order of writes", () => {
  test("is that of the contract, wherever the records point", () => {
    fc.assert(
      fc.property(pair, flags, flags, ([a, b], aFlags, bFlags) => {
        const delta = compareOrder(
          record(a, new Uint32Array(WORDS), 0, aFlags),
          0,
          record(b, new Uint32Array(2 * WORDS), WORDS, bFlags),
          WORDS,
        );
        expect(Math.sign(delta)).toBe(reference(a, b));
      }),
      { numRuns: 5000 },
    );
  });

  test("file ordinals fit beside the flags up to the last", () => {
    const words = new Uint32Array(1);
    for (const file of [0, 1, 2 ** 28 - 1, 2 ** 28, MAX_FILES - 1]) {
      words[0] = (file << FILE_SHIFT) | TOMBSTONE_BIT | 3;
      expect(words[0]! >>> FILE_SHIFT).toBe(file);
    }
  });
});

describe("the key index", () => {
  type Command = { kind: "put" | "greater" | "find" | "move"; key: number; version: number; row: number };
  const command = (keys: number): fc.Arbitrary<Command> =>
    fc.record({
      kind: fc.constantFrom("put", "greater", "find", "move"),
      key: fc.nat(keys - 1),
      version: fc.integer({ min: 1, max: 5 }),
      row: fc.nat(1000),
    });

  function keyed({ key, version, row }: Command, colliding: boolean): Uint32Array {
    const words = record({ version: BigInt(version), operation: 1, content: 0n, occurred: undefined });
    // Colliding: all keys meet in one slot and are told apart by the other words alone.
    words[HASH1] = colliding ? 7 : Math.imul(key, 0x9e3779b1);
    words[SLOT] = key & 0xff;
    words[HASH2] = key >>> 8;
    words[TENANT] = colliding ? 0 : key % 3;
    words[ROW] = row;
    return words;
  }

  for (const colliding of [false, true]) {
    test(`is a map${colliding ? ", also when every key collides" : " that grows"}`, () => {
      fc.assert(
        fc.property(fc.array(command(colliding ? 40 : 3000), { maxLength: 3000 }), (commands) => {
          const index = new KeyIndex(1);
          const map = new Map<number, { version: number; row: number }>();
          for (const one of commands) {
            const words = keyed(one, colliding);
            const standing = map.get(one.key);
            if (one.kind === "put") {
              index.put(words, 0);
              map.set(one.key, { version: one.version, row: one.row });
            } else if (one.kind === "greater") {
              index.putIfGreater(words, 0);
              if (standing === undefined || one.version > standing.version) {
                map.set(one.key, { version: one.version, row: one.row });
              }
            } else if (one.kind === "move") {
              const even = standing !== undefined && standing.row % 2 === 0;
              const at = index.find(words, 0);
              const rowNow = at < 0 ? 1 : index.records[at + ROW]!;
              expect(index.move(words, 0, () => rowNow % 2 === 0)).toBe(even);
              if (even) standing.row = one.row;
            } else {
              const at = index.find(words, 0);
              expect(at < 0).toBe(standing === undefined);
              if (standing !== undefined) expect(index.records[at + ROW]).toBe(standing.row);
            }
          }
          expect(index.size).toBe(map.size);
          for (const [key, { version, row }] of map) {
            const at = index.find(keyed({ kind: "find", key, version: 1, row: 0 }, colliding), 0);
            expect([index.records[at + VERSION_LO], index.records[at + ROW]]).toEqual([version, row]);
          }
          expect(index.bytes).toBeLessThanOrEqual(Math.max(16, map.size * 2 + 1) * WORDS * 4);
        }),
        { numRuns: colliding ? 60 : 40 },
      );
    });
  }
});

describe("hashes and ordinals", () => {
  test("ids that differ a little get different hashes", () => {
    const seen = new Set<string>();
    const words = new Uint32Array(WORDS);
    const ids = [
      ...Array.from({ length: 100_000 }, (_, i) => String(i)),
      ...Array.from({ length: 2000 }, (_, i) => "\0".repeat(i + 1)),
      ...Array.from({ length: 2000 }, (_, i) => `${"a".repeat(i)}b`),
    ];
    for (const id of ids) {
      const bytes = Buffer.from(id);
      entityHash(bytes, 0, bytes.length, words, 0);
      seen.add(`${words[HASH1]},${words[HASH2]}`);
    }
    expect(seen.size).toBe(ids.length);
    // Each word for itself spreads too: about n^2 / 2^33 pairs meet by chance.
    for (const word of [0, 1]) {
      const distinct = new Set([...seen].map((text) => text.split(",")[word])).size;
      expect(ids.length - distinct).toBeLessThan(30);
    }
  });

  test("a hash depends on the bytes alone, not on where they lie", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 40 }), fc.nat(9), (id, gap) => {
        const a = new Uint32Array(WORDS);
        const b = new Uint32Array(WORDS + 5);
        entityHash(id, 0, id.length, a, 0);
        const moved = Buffer.concat([Buffer.alloc(gap, 0xee), id, Buffer.alloc(3, 0xdd)]);
        entityHash(moved, gap, gap + id.length, b, 5);
        expect([...b.subarray(5, 8)]).toEqual([...a.subarray(0, 3)]);
      }),
    );
  });

  test("tenants keep their ordinals, through growth", () => {
    const ordinals = new TenantOrdinals();
    const names = Array.from({ length: 3000 }, (_, i) => Buffer.from(`tenant-${i % 1500}`));
    const first = new Map<string, number>();
    for (const name of names) {
      const framed = Buffer.concat([Buffer.from("<"), name, Buffer.from(">")]);
      const ordinal = ordinals.of(framed, 1, 1 + name.length);
      const known = first.get(name.toString());
      if (known === undefined) first.set(name.toString(), ordinal);
      else expect(ordinal).toBe(known);
    }
    expect([...first.values()]).toEqual(Array.from({ length: 1500 }, (_, i) => i));
  });
});
