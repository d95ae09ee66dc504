import { compareOrder, FLAGS, HASH1, ROW, sameKey, TENANT, WORDS } from "./order.js";

const FREE = 0xffffffff;
/** Only while what is left is moved. */
const GONE = 0xfffffffe;
const MAX_LOAD = 0.7;
/** Memory beyond what is needed, against how often all has to be moved. */
const GROWTH = 1.25;

/**
 * Entity → order fields and location of its current row or tombstone. Open addressing over one typed array, 48 bytes
 * a slot. The tenant word marks a free slot.
 */
export class KeyIndex {
  private words: Uint32Array;
  private used = 0;

  constructor(expected = 1024) {
    this.words = free(capacityFor(expected));
  }

  get size(): number {
    return this.used;
  }

  get bytes(): number {
    return this.words.byteLength;
  }

  /** Word offset of the record's entity in `records`, or -1. */
  find(record: Uint32Array, at: number): number {
    const slot = this.slot(this.words, record, at);
    return this.words[slot + TENANT] === FREE ? -1 : slot;
  }

  /** The slots themselves; valid until the next `put`. */
  get records(): Uint32Array {
    return this.words;
  }

  /** Word offsets of the entities' records. */
  *occupied(): Generator<number> {
    for (let at = 0; at < this.words.length; at += WORDS) if (this.words[at + TENANT] !== FREE) yield at;
  }

  /** Stores the record, replacing what the entity had. */
  put(record: Uint32Array, at: number): void {
    const slot = this.slot(this.words, record, at);
    if (this.words[slot + TENANT] === FREE) this.used++;
    this.words.set(record.subarray(at, at + WORDS), slot);
    if (this.used * WORDS > this.words.length * MAX_LOAD) this.grow();
  }

  /** Stores the record unless the entity has one that is at least as great. */
  putIfGreater(record: Uint32Array, at: number): void {
    const slot = this.find(record, at);
    if (slot < 0 || compareOrder(record, at, this.words, slot) > 0) this.put(record, at);
  }

  /** Points an entity's record elsewhere, if it is at `from` now. True when it was. */
  move(record: Uint32Array, at: number, isFrom: (flags: number) => boolean): boolean {
    const slot = this.find(record, at);
    if (slot < 0 || !isFrom(this.words[slot + FLAGS]!)) return false;
    this.words[slot + FLAGS] = record[at + FLAGS]!;
    this.words[slot + ROW] = record[at + ROW]!;
    return true;
  }

  private slot(words: Uint32Array, record: Uint32Array, at: number): number {
    // The high bits say where, so that any number of slots will do.
    const hash = (record[at + HASH1]! ^ Math.imul(record[at + TENANT]!, 0x9e3779b1)) >>> 0;
    let offset = Math.floor((hash * (words.length / WORDS)) / 2 ** 32) * WORDS;
    for (;;) {
      if (words[offset + TENANT] === FREE || sameKey(words, offset, record, at)) return offset;
      offset += WORDS;
      if (offset === words.length) offset = 0;
    }
  }

  /** Drops the entities for which `keep` says no, told where in `records` they stand. */
  retain(keep: (at: number) => boolean): void {
    let kept = 0;
    for (let at = 0; at < this.words.length; at += WORDS) {
      if (this.words[at + TENANT] === FREE) continue;
      if (keep(at)) kept++;
      else this.words[at + TENANT] = GONE;
    }
    this.used = kept;
    this.rehash(capacityFor(kept));
  }

  private grow(): void {
    this.rehash(Math.ceil((this.words.length / WORDS) * GROWTH));
  }

  private rehash(slots: number): void {
    const words = free(slots);
    for (let from = 0; from < this.words.length; from += WORDS) {
      if (this.words[from + TENANT]! >= GONE) continue;
      words.set(this.words.subarray(from, from + WORDS), this.slot(words, this.words, from));
    }
    this.words = words;
  }
}

const LEAST_SLOTS = 4;

const capacityFor = (keys: number): number => Math.max(LEAST_SLOTS, Math.ceil((keys + 1) / MAX_LOAD));

function free(slots: number): Uint32Array {
  const words = new Uint32Array(slots * WORDS);
  for (let at = TENANT; at < words.length; at += WORDS) words[at] = FREE;
  return words;
}
