import { randomUUID } from "node:crypto";
import { closeSync, openSync, readSync, unlinkSync, writeSync } from "node:fs";
import { join } from "node:path";
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

/**
 * Records of entities, by their hash, in a local file that has no name any more: a look for one reads three kilobytes,
 * and memory holds two bytes a record. For entities of large files, which come by the million and are asked for one by
 * one.
 */
export class KeyRun {
  private readonly file: number;
  /** Of each block the hash of its first record. */
  private readonly fences: Uint32Array;
  private readonly filter: Uint32Array;
  /** Ordinals of all tenants whose entities it holds; undefined where they are many. */
  readonly tenants: ReadonlySet<number> | undefined;
  private readonly block = new Uint32Array(BLOCK * WORDS);
  /** Which block `block` holds. */
  private held = -1;

  /** Takes the first `count` of the records in, each of another entity. Errors: those of writing files. */
  constructor(
    folder: string,
    records: Uint32Array,
    private readonly count: number,
  ) {
    const order = new Float64Array(count);
    for (let i = 0; i < count; i++) order[i] = records[i * WORDS + HASH1]! * SHIFT + i;
    order.sort();
    const sorted = new Uint32Array(count * WORDS);
    this.fences = new Uint32Array(Math.ceil(count / BLOCK));
    this.filter = new Uint32Array(2 ** Math.ceil(Math.log2(Math.max(LINE * 32, count * BITS_PER_KEY))) / 32);
    const tenants = new Set<number>();
    for (let i = 0; i < count; i++) {
      const at = (order[i]! % SHIFT) * WORDS;
      sorted.set(records.subarray(at, at + WORDS), i * WORDS);
      if (i % BLOCK === 0) this.fences[i / BLOCK] = records[at + HASH1]!;
      this.mark(records, at);
      if (tenants.size <= MOST_TENANTS) tenants.add(records[at + TENANT]!);
    }
    this.tenants = tenants.size <= MOST_TENANTS ? tenants : undefined;
    const path = join(folder, `keys-${randomUUID()}`);
    this.file = openSync(path, "wx+");
    try {
      // Whatever becomes of this process, nothing of it stays.
      unlinkSync(path);
      const bytes = Buffer.from(sorted.buffer, sorted.byteOffset, sorted.byteLength);
      for (let at = 0; at < bytes.length; ) at += writeSync(this.file, bytes, at, bytes.length - at, at);
    } catch (error) {
      closeSync(this.file);
      throw error;
    }
    abandoned.register(this, this.file, this);
  }

  private mark(record: Uint32Array, at: number): void {
    const { filter } = this;
    const line = this.lineOf(record, at);
    const hash = record[at + HASH1]!;
    for (const bit of [hash & 511, (hash >>> 9) & 511, (hash >>> 18) & 511])
      filter[line + (bit >>> 5)]! |= 1 << (bit & 31);
  }

  private mayHold(record: Uint32Array, at: number): boolean {
    const { filter } = this;
    const line = this.lineOf(record, at);
    const hash = record[at + HASH1]!;
    const has = (bit: number) => (filter[line + (bit >>> 5)]! & (1 << (bit & 31))) !== 0;
    return has(hash & 511) && has((hash >>> 9) & 511) && has((hash >>> 18) & 511);
  }

  /** All bits of one entity lie in one line of the processor's cache. */
  private lineOf(record: Uint32Array, at: number): number {
    return (record[at + HASH2]! & (this.filter.length / LINE - 1)) * LINE;
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

  get records(): Uint32Array {
    return this.block;
  }

  /** What FLAGS of the record say beside its file. */
  flagsAt(found: number): number {
    return this.block[found + FLAGS]!;
  }

  private read(name: number): number {
    const rows = Math.min(BLOCK, this.count - name * BLOCK);
    if (name === this.held) return rows;
    this.held = -1;
    const { buffer, byteOffset } = this.block;
    const bytes = new Uint8Array(buffer, byteOffset, rows * RECORD_BYTES);
    for (let at = 0; at < bytes.length; ) {
      const read = readSync(this.file, bytes, at, bytes.length - at, name * BLOCK * RECORD_BYTES + at);
      if (read === 0) throw new RangeError("a run of keys has lost its end");
      at += read;
    }
    this.held = name;
    return rows;
  }

  close(): void {
    abandoned.unregister(this);
    closeSync(this.file);
  }
}
