import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterEach, beforeEach } from "vitest";
import { chunksOf, Duck } from "../../services/base/duckdb.js";
import { CSV_DEFAULTS, type Reject, told } from "../../services/sources/formats.js";
import { HeldFile } from "../../services/sources/held-file.js";
import { LocalRoot } from "../../services/sources/local-root.js";
import { SourceReader, START } from "../../services/sources/reader.js";
import type { Mark } from "../../services/sources/splitter.js";
import { localIdentity, type ReadUnit } from "../../services/sources/unit.js";

const MiB = 1024 * 1024;

/** Zstandard frames whose blocks are not packed (RFC 8878), of `frame` bytes each. */
export function rawZstd(bytes: Buffer, frame = 300_000): Buffer {
  const parts: Buffer[] = [];
  for (let at = 0; at === 0 || at < bytes.length; at += frame) {
    const content = bytes.subarray(at, at + frame);
    const head = Buffer.alloc(6);
    head.writeUInt32LE(0xfd2fb528, 0);
    head[5] = 10 << 3;
    parts.push(head);
    for (let from = 0; from === 0 || from < content.length; from += 100_000) {
      const block = content.subarray(from, from + 100_000);
      const last = from + 100_000 >= content.length ? 1 : 0;
      const size = Buffer.alloc(3);
      size.writeUIntLE((block.length << 3) | last, 0, 3);
      parts.push(size, block);
    }
  }
  return Buffer.concat(parts);
}

export const PACKED = {
  "": (bytes: Buffer) => bytes,
  ".gz": (bytes: Buffer) => gzipSync(bytes),
  ".zst": (bytes: Buffer) => rawZstd(bytes),
} as const;

export function writeFile(path: string, content: string | Buffer): void {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, content);
}

export const LIMITS = { maxRecordBytes: MiB, readerMemoryBytes: 256 * MiB, readerIdleMs: 60_000 };

/** For each test of a file: a folder with one of exports in it, and an engine that writes there. */
export function exportsFolder() {
  let folder: string;
  let duck: Duck;
  const at = (...names: string[]) => join(folder, ...names);
  beforeEach(async () => {
    folder = mkdtempSync(join(tmpdir(), "tributary-sources-"));
    mkdirSync(at("exports"));
    duck = await Duck.create({ memoryBytes: 512 * MiB });
  });
  afterEach(() => {
    duck.close();
    rmSync(folder, { recursive: true, force: true });
  });
  return {
    at,
    engine: () => duck,
    run: (sql: string) => duck.with((connection) => connection.run(sql)),
    /** Of what lies in it, as jobs name it. */
    place: (path = "") => ({ root: new LocalRoot("exports", at("exports"), at("data")), path }),
  };
}

/** What a reader of the file is told, its format and packing by its name. */
export async function unitOf(path: string, more: Partial<ReadUnit> = {}): Promise<ReadUnit> {
  const { format, compression } = told(path);
  return {
    shown: "exports/file",
    path,
    identity: await localIdentity(path),
    format: format ?? "ndjson",
    compression,
    partition: {},
    csv: CSV_DEFAULTS,
    maxRecordBytes: MiB,
    batchBytes: 4 * MiB,
    ...more,
  };
}

export interface ReadFile {
  readonly columns: readonly string[];
  /** Ordinal first. */
  readonly rows: readonly (readonly unknown[])[];
  readonly rejects: readonly Reject[];
  readonly marks: readonly Mark[];
  readonly bytes: number;
  /** What was said to be left behind each batch. */
  readonly left: readonly number[];
}

/** Reads a whole file in this process, the way that rows are meant to be read: as a stream of chunks, counted. */
export async function readAll(unit: ReadUnit, from = START): Promise<ReadFile> {
  const file = await HeldFile.open(unit);
  const duck = await Duck.sealed(256 * MiB, [file.path]);
  try {
    return await duck.with(async (connection) => {
      const reader = await SourceReader.open(connection, file);
      const rows: unknown[][] = [];
      const rejects: Reject[] = [];
      const marks: Mark[] = [];
      const left: number[] = [];
      let bytes = 0;
      for await (const batch of reader.batches(from)) {
        let count = 0;
        try {
          for await (const chunk of chunksOf(connection, batch.sql)) {
            rows.push(...chunk.getRows().map(([ordinal, ...values]) => [Number(ordinal), ...values]));
            count += chunk.rowCount;
          }
          if (count !== batch.rows) throw new Error(`${count} rows, not ${batch.rows}`);
        } catch (error) {
          throw await reader.failure(error);
        }
        rejects.push(...batch.rejects);
        marks.push(batch.next);
        bytes += batch.bytes;
        left.push(batch.left);
      }
      return { columns: reader.columns.map(({ name }) => name), rows, rejects, marks, bytes, left };
    });
  } finally {
    duck.close();
    await file.close();
  }
}
