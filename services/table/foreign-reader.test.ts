import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { decompress } from "fzstd";
import { asyncBufferFromFile, parquetMetadataAsync, parquetReadObjects } from "hyparquet";
import { describe, expect, test } from "vitest";
import {
  expectedThings,
  Lake,
  Random,
  randomEvents,
  seeds,
  TestStream,
  THINGS_SQL,
} from "../../test/support/lake.js";
import { compactUpserted } from "./compact.js";

/**
 * A second reader of our tables that shares nothing with the engine: the log's JSON replayed by the letter of the
 * protocol, vectors taken apart here, Parquet read by hyparquet (I6).
 */

interface Add {
  readonly path: string;
  readonly deletionVector?: null | {
    storageType: string;
    pathOrInlineDv: string;
    offset: number;
    sizeInBytes: number;
    cardinality: number;
  };
  readonly stats: string;
}

/** From all commits, and again from the newest log checkpoint: both must say the same. */
async function liveAdds(table: string): Promise<Add[]> {
  const log = join(table, "_delta_log");
  const names = readdirSync(log);
  const fromStart = replay(log, names, new Map(), -1);
  const checkpoint = names
    .filter((name) => name.endsWith(".checkpoint.parquet"))
    .sort()
    .at(-1);
  if (checkpoint !== undefined) {
    checkpointsRead++;
    const live = new Map<string, Add>();
    for (const { add } of await rowsOf(join(log, checkpoint)))
      if (add) live.set(idOf(add as Add), add as Add);
    const after = replay(log, names, live, Number.parseInt(checkpoint, 10));
    expect([...after.keys()].sort()).toEqual([...fromStart.keys()].sort());
  }
  return [...fromStart.values()];
}

let checkpointsRead = 0;

function replay(
  log: string,
  names: readonly string[],
  live: Map<string, Add>,
  after: number,
): Map<string, Add> {
  for (const name of names.filter((file) => /^\d{20}\.json$/.test(file)).sort()) {
    if (Number.parseInt(name, 10) <= after) continue;
    const lines = readFileSync(join(log, name), "utf8")
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line));
    for (const { remove } of lines)
      if (remove) expect(live.delete(idOf(remove)), "removes what is there").toBe(true);
    for (const { add } of lines) if (add) live.set(idOf(add), add);
  }
  return live;
}

const decompressors = {
  ZSTD: (input: Uint8Array, length: number) => decompress(input, new Uint8Array(length)),
};

const rowsOf = async (path: string): Promise<Record<string, unknown>[]> =>
  parquetReadObjects({ file: await asyncBufferFromFile(path), compressors: decompressors });

const idOf = ({ path, deletionVector: v }: Add): string =>
  `${path} ${v == null ? "" : `${v.storageType}${v.pathOrInlineDv}@${v.offset}`}`;

const Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";

function maskedRows(table: string, { deletionVector }: Add): Set<number> {
  if (deletionVector == null) return new Set();
  const text = deletionVector.pathOrInlineDv;
  const prefix = text.slice(0, -20);
  let hex = "";
  for (let at = text.length - 20; at < text.length; at += 5) {
    let group = 0;
    for (const character of text.slice(at, at + 5)) group = group * 85 + Z85.indexOf(character);
    hex += group.toString(16).padStart(8, "0");
  }
  const uuid = hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
  const file = readFileSync(join(table, prefix, `deletion_vector_${uuid}.bin`));
  expect(file[0]).toBe(1);
  const { offset, sizeInBytes } = deletionVector;
  expect(file.readUInt32BE(offset)).toBe(sizeInBytes);
  const rows = roaring(file.subarray(offset + 4, offset + 4 + sizeInBytes));
  expect(rows.size).toBe(deletionVector.cardinality);
  return rows;
}

/** Delta's magic, one 64-bit bucket, then the portable Roaring layout. */
function roaring(bytes: Buffer): Set<number> {
  expect(bytes.readUInt32LE(0)).toBe(1681511377);
  const rows = new Set<number>();
  let at = 12;
  for (let bucket = Number(bytes.readBigUInt64LE(4)); bucket > 0; bucket--) {
    expect(bytes.readUInt32LE(at)).toBe(0);
    at += 4;
    const start = at;
    const cookie = bytes.readUInt32LE(at);
    at += 4;
    let count: number;
    let runs: Buffer = Buffer.alloc(0);
    const withRuns = (cookie & 0xffff) === 12347;
    if (withRuns) {
      count = (cookie >>> 16) + 1;
      runs = bytes.subarray(at, at + ((count + 7) >> 3));
      at += runs.length;
    } else {
      expect(cookie).toBe(12346);
      count = bytes.readUInt32LE(at);
      at += 4;
    }
    const heads = at;
    at += count * 4;
    if (!withRuns || count >= 4) at += count * 4;
    for (let i = 0; i < count; i++) {
      const high = bytes.readUInt16LE(heads + i * 4) * 65_536;
      const size = bytes.readUInt16LE(heads + i * 4 + 2) + 1;
      if (withRuns && (runs[i >> 3]! & (1 << (i & 7))) !== 0) {
        const pairs = bytes.readUInt16LE(at);
        at += 2;
        for (let pair = 0; pair < pairs; pair++, at += 4) {
          const first = bytes.readUInt16LE(at);
          for (let k = 0; k <= bytes.readUInt16LE(at + 2); k++) rows.add(high + first + k);
        }
      } else if (size <= 4096) {
        for (let k = 0; k < size; k++, at += 2) rows.add(high + bytes.readUInt16LE(at));
      } else {
        for (let bit = 0; bit < 65_536; bit++)
          if ((bytes[at + (bit >> 3)]! & (1 << (bit & 7))) !== 0) rows.add(high + bit);
        at += 8192;
      }
    }
    expect(at).toBeGreaterThan(start);
  }
  return rows;
}

/** A required column needs a writer feature that Spark looks for before it opens the table. */
function expectNothingRequired(table: string): void {
  const first = readFileSync(join(table, "_delta_log", `${"0".repeat(20)}.json`), "utf8");
  const { metaData } = first
    .split("\n")
    .map((line) => JSON.parse(line || "{}"))
    .find((action) => action.metaData !== undefined);
  for (const { name, nullable } of JSON.parse(metaData.schemaString).fields)
    expect(nullable, name).toBe(true);
}

async function foreignRows(table: string): Promise<string[]> {
  const rows: string[] = [];
  for (const add of await liveAdds(table)) {
    const path = join(table, decodeURIComponent(add.path));
    expect(existsSync(path), "the log's path leads to a file").toBe(true);
    const file = await asyncBufferFromFile(path);
    // Else Spark refuses times before 1900.
    const { key_value_metadata: notes } = await parquetMetadataAsync(file);
    expect(notes).toContainEqual({ key: "org.apache.spark.version", value: "3.5.0" });
    const read = await rowsOf(path);
    expect(read.length).toBe(JSON.parse(add.stats).numRecords);
    const masked = maskedRows(table, add);
    if (add.path.includes("tombstones-")) expect(masked.size, "tombstones never show").toBe(read.length);
    for (const [row, object] of read.entries()) if (!masked.has(row)) rows.push(inOurWords(object));
  }
  return rows.sort();
}

const inOurWords = (row: Record<string, unknown>): string =>
  JSON.stringify([
    row.tenant_id,
    row.entity_id,
    row.operation,
    String(row.version),
    row.occurred_at == null ? null : String(microsOf(row.occurred_at)),
    row.name,
    String(row.amount),
    row.labels,
  ]);

/** hyparquet gives times as Dates: milliseconds, rounded down or towards zero. */
const microsOf = (value: unknown): bigint => BigInt((value as Date).getTime()) * 1000n;

describe("an independent reader sees the live rows", () => {
  test("of a table with vectors, tombstones, compactions and log checkpoints", async () => {
    for (const seed of seeds(1)) {
      const random = new Random(seed);
      // Whole milliseconds only: that is all this reader can tell.
      const events = randomEvents(random, 200).map((event) => {
        const { occurred: _, ...timeless } = event;
        return event.occurred === undefined
          ? timeless
          : { ...timeless, occurred: { seconds: event.occurred.seconds, nanos: 0 } };
      });
      const lake = await Lake.create({ checkpointEvery: 4, models: { things: THINGS_SQL } });
      try {
        const stream = new TestStream();
        const table = join(lake.folder, "lake", "refined", "t", "things");
        for (let at = 0; at < events.length; at += 17) {
          await (await lake.lane()).land(stream.batch(events.slice(at, at + 17)));
          await lake.settled();
          expect(await foreignRows(table), `seed ${seed}, ${at}`).toEqual(expectedThings(stream.events));
          if (!random.chance(0.2)) continue;
          const { writer } = await lake.target();
          const live = writer.table.snapshot.files.filter(({ tombstones }) => !tombstones);
          if (live.length > 0) await lake.context.duck.with((c) => compactUpserted(writer, c, live));
        }
        expect(await foreignRows(table), `seed ${seed}`).toEqual(expectedThings(events));
        expect(checkpointsRead).toBeGreaterThan(1);
        for (const name of ["refined/t/things", "raw/t.v1.Thing", "dead_letters"]) {
          expectNothingRequired(join(lake.folder, "lake", name));
        }
        // Rebuilt tables have their files and vectors in a folder of their own.
        await lake.reopen({ models: { things: `${THINGS_SQL} and true` } });
        expect(await lake.rows()).toEqual(expectedThings(events));
        expect(await foreignRows(table), `seed ${seed}, rebuilt`).toEqual(expectedThings(events));
        const newer = events.slice(0, 20).map((event) => ({ ...event, version: (1n << 63n) - 1n }));
        await (await lake.lane()).land(stream.batch(newer));
        await lake.settled();
        expect(await foreignRows(table), `seed ${seed}, rebuilt and on`).toEqual(
          expectedThings([...events, ...newer]),
        );
      } finally {
        await lake.close();
      }
    }
  });
});
