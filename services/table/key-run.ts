import { randomUUID } from "node:crypto";
import { closeSync, openSync, readSync, rmSync, unlinkSync, writeSync } from "node:fs";
import { join } from "node:path";
import { assert } from "../base/errors.js";
import { entityHash } from "./entity-hash.js";
import { FLAGS, HASH1, HASH2, sameKey, TENANT, WORDS } from "./order.js";

const RECORD_BYTES = WORDS * 4;
/** Records that are read at once to find one; of each first one the hash is kept. */
const BLOCK = 64;
/** Of the filter, at least, for each record; with three bits of them set one look in fifty is for nothing. */
const BITS_PER_KEY = 8;
/** Words of a line of the filter. */
const LINE = 16;
/** Of a run of more tenants it is not kept which they are. */
const MOST_TENANTS = 256;
const SHIFT = 2 ** 20;
/** Records that one run can hold. */
export const RUN_ROWS = 250_000;

/** A run that nobody closes, as that of a table which is only looked at in passing, gives its file back all the same. */
const abandoned = new FinalizationRegistry<number>((file) => closeSync(file));

/** A run in a file that still has a name, for another process that hashes by the same seed. Plain, as messages are. */
export interface MadeRun {
  readonly path: string;
  /** Of the path, by the seed of whoever made it: by another one nothing would be found. */
  readonly proof: readonly number[];
  readonly count: number;
  /** The numbers of its tenants in the process that made it, and their names. */
  readonly tenants: readonly (readonly [number, Uint8Array])[];
}

/**
 * Records of entities, by their hash, in a local file that has no name any more: a look for one reads three kilobytes,
 * and memory holds two bytes a record. For entities of large files, which come by the million and are asked for one by
 * one.
 */
export class KeyRun {
  private readonly block = new Uint32Array(BLOCK * WORDS);
  /** Which block `block` holds. */
  private held = -1;

  private constructor(
    private readonly file: number,
    private readonly count: number,
    /** Of each block the hash of its first record. */
    private readonly fences: Uint32Array,
    private readonly filter: Uint32Array,
    /** Ordinals of all tenants whose entities it holds; undefined where they are many. */
    readonly tenants: ReadonlySet<number> | undefined,
    /** Of tenants as the file has them, where another process has made it. */
    private readonly ordinals: ReadonlyMap<number, number> | undefined,
  ) {
    abandoned.register(this, file, this);
  }

  /** Takes the first `count` of the records in, each of another entity. Errors: those of writing files. */
  static of(folder: string, records: Uint32Array, count: number): KeyRun {
    const { sorted, fences, filter, tenants } = sortedRun(records, count);
    const file = written(join(folder, `keys-${randomUUID()}`), [sorted], (path) => unlinkSync(path));
    return new KeyRun(file, count, fences, filter, tenants, undefined);
  }

  /** As `of`, for another process. Undefined where tenants are many. Errors: those of writing files. */
  static make(
    folder: string,
    records: Uint32Array,
    count: number,
    nameOf: (tenant: number) => Uint8Array,
  ): MadeRun | undefined {
    const { sorted, fences, filter, tenants } = sortedRun(records, count);
    if (tenants === undefined) return undefined;
    const path = join(folder, `keys-${randomUUID()}`);
    closeSync(written(path, [sorted, fences, filter]));
    return {
      path,
      proof: proofOf(path),
      count,
      tenants: [...tenants].map((tenant) => [tenant, nameOf(tenant)]),
    };
  }

  /** Of what was made and nobody has opened. */
  static discard(path: string): void {
    rmSync(path, { force: true });
  }

  /** Takes over what another process has made. Errors: those of reading files. */
  static open({ path, proof, count, tenants }: MadeRun, tenantOf: (name: Uint8Array) => number): KeyRun {
    assert(proofOf(path).join() === proof.join(), "a run of keys was made by another seed");
    const file = openSync(path, "r");
    try {
      unlinkSync(path);
      const fences = new Uint32Array(fencesFor(count));
      const filter = new Uint32Array(filterWordsFor(count));
      readAt(file, fences, count * RECORD_BYTES);
      readAt(file, filter, count * RECORD_BYTES + fences.byteLength);
      const ordinals = new Map(tenants.map(([theirs, name]) => [theirs, tenantOf(name)]));
      return new KeyRun(file, count, fences, filter, new Set(ordinals.values()), ordinals);
    } catch (error) {
      closeSync(file);
      throw error;
    }
  }

  private mayHold(record: Uint32Array, at: number): boolean {
    const { filter } = this;
    const line = lineOf(filter, record, at);
    const hash = record[at + HASH1]!;
    const has = (bit: number) => (filter[line + (bit >>> 5)]! & (1 << (bit & 31))) !== 0;
    return has(hash & 511) && has((hash >>> 9) & 511) && has((hash >>> 18) & 511);
  }

  /** The record of the entity of `record` at `at`: into what its offset leads, until the next call; -1 where there is none. */
  find(record: Uint32Array, at: number): number {
    if (!this.mayHold(record, at)) return -1;
    const hash = record[at + HASH1]!;
    const { fences, block } = this;
    let low = 0;
    for (let high = fences.length; low < high; ) {
      const middle = (low + high) >> 1;
      if (fences[middle]! < hash) low = middle + 1;
      else high = middle;
    }
    // Records of one hash may begin in the block before the one that begins with it.
    for (let name = Math.max(0, low - 1); name < fences.length && fences[name]! <= hash; name++) {
      const rows = this.read(name);
      for (let i = 0; i < rows; i++) {
        const found = i * WORDS;
        if (block[found + HASH1]! > hash) return -1;
        if (sameKey(block, found, record, at)) return found;
      }
    }
    return -1;
  }

  /** How many there are to `read`. */
  get blocks(): number {
    return this.fences.length;
  }

  get records(): Uint32Array {
    return this.block;
  }

  /** What FLAGS of the record say beside its file. */
  flagsAt(found: number): number {
    return this.block[found + FLAGS]!;
  }

  /** Reads a block: so many records of it stand in `records` until the next call. */
  read(name: number): number {
    const rows = Math.min(BLOCK, this.count - name * BLOCK);
    if (name === this.held) return rows;
    this.held = -1;
    readAt(this.file, this.block.subarray(0, rows * WORDS), name * BLOCK * RECORD_BYTES);
    if (this.ordinals !== undefined) {
      for (let at = TENANT; at < rows * WORDS; at += WORDS)
        this.block[at] = this.ordinals.get(this.block[at]!)!;
    }
    this.held = name;
    return rows;
  }

  close(): void {
    abandoned.unregister(this);
    closeSync(this.file);
  }
}

function proofOf(path: string): number[] {
  const bytes = Buffer.from(path);
  const words = new Uint32Array(WORDS);
  entityHash(bytes, 0, bytes.length, words, 0);
  return [words[HASH1]!, words[HASH2]!];
}

const fencesFor = (count: number): number => Math.ceil(count / BLOCK);
const filterWordsFor = (count: number): number =>
  2 ** Math.ceil(Math.log2(Math.max(LINE * 32, count * BITS_PER_KEY))) / 32;

/** The first `count` of the records in the order of their hashes, and what is kept in memory of them. */
function sortedRun(records: Uint32Array, count: number) {
  const order = new Float64Array(count);
  for (let i = 0; i < count; i++) order[i] = records[i * WORDS + HASH1]! * SHIFT + i;
  order.sort();
  const sorted = new Uint32Array(count * WORDS);
  const fences = new Uint32Array(fencesFor(count));
  const filter = new Uint32Array(filterWordsFor(count));
  const tenants = new Set<number>();
  for (let i = 0; i < count; i++) {
    const at = (order[i]! % SHIFT) * WORDS;
    sorted.set(records.subarray(at, at + WORDS), i * WORDS);
    if (i % BLOCK === 0) fences[i / BLOCK] = records[at + HASH1]!;
    mark(filter, records, at);
    if (tenants.size <= MOST_TENANTS) tenants.add(records[at + TENANT]!);
  }
  return { sorted, fences, filter, tenants: tenants.size <= MOST_TENANTS ? tenants : undefined };
}

function mark(filter: Uint32Array, record: Uint32Array, at: number): void {
  const line = lineOf(filter, record, at);
  const hash = record[at + HASH1]!;
  for (const bit of [hash & 511, (hash >>> 9) & 511, (hash >>> 18) & 511])
    filter[line + (bit >>> 5)]! |= 1 << (bit & 31);
}

/** All bits of one entity lie in one line of the processor's cache. */
const lineOf = (filter: Uint32Array, record: Uint32Array, at: number): number =>
  (record[at + HASH2]! & (filter.length / LINE - 1)) * LINE;

/** A new file of these words, open; `named` is called before they are written. */
function written(
  path: string,
  parts: readonly Uint32Array[],
  named: (path: string) => void = () => undefined,
): number {
  const file = openSync(path, "wx+");
  try {
    named(path);
    let place = 0;
    for (const { buffer, byteOffset, byteLength } of parts) {
      const bytes = new Uint8Array(buffer, byteOffset, byteLength);
      for (let at = 0; at < bytes.length; ) at += writeSync(file, bytes, at, bytes.length - at, place + at);
      place += byteLength;
    }
    return file;
  } catch (error) {
    closeSync(file);
    rmSync(path, { force: true });
    throw error;
  }
}

function readAt(file: number, { buffer, byteOffset, byteLength }: Uint32Array, place: number): void {
  const bytes = new Uint8Array(buffer, byteOffset, byteLength);
  for (let at = 0; at < bytes.length; ) {
    const read = readSync(file, bytes, at, bytes.length - at, place + at);
    if (read === 0) throw new RangeError("a run of keys has lost its end");
    at += read;
  }
}
