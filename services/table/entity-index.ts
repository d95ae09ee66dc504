import { KeyIndex } from "./key-index.js";
import { HASH2, WORDS } from "./order.js";

/** A power of two. None is so large that moving it as it grows is felt: 20 million entities are 80,000 in each. */
const PARTS = 256;
/** What an entity takes at most, parts of slots being free. */
const BYTES_PER_KEY = 80;

/**
 * What a table's writer knows of all its entities: where each stands, in some hundred key indexes that grow each by
 * itself. A cache: the table alone rebuilds it.
 */
export class EntityIndex {
  private readonly parts: (KeyIndex | undefined)[] = Array.from({ length: PARTS }, () => undefined);
  private count = 0;
  private total = 0;

  /** Where the last entity lies that was found, by the offset that `find` gave; valid until the next call. */
  records: Uint32Array = new Uint32Array(0);

  get size(): number {
    return this.count;
  }

  get bytes(): number {
    return this.total;
  }

  /** Bytes the index would take with so many keys, about. */
  static bytesFor(keys: number): number {
    return keys * BYTES_PER_KEY;
  }

  /** Offset into `records` of the record's entity, or -1. */
  find(record: Uint32Array, at: number): number {
    const part = this.parts[record[at + HASH2]! & (PARTS - 1)];
    if (part === undefined) return -1;
    const found = part.find(record, at);
    this.records = part.records;
    return found;
  }

  /** Stores the record, replacing what the entity had. */
  put(record: Uint32Array, at: number): void {
    const name = record[at + HASH2]! & (PARTS - 1);
    let part = this.parts[name];
    if (part === undefined) {
      part = new KeyIndex(0);
      this.parts[name] = part;
      this.total += part.bytes;
    }
    const { size, bytes } = part;
    part.put(record, at);
    this.count += part.size - size;
    this.total += part.bytes - bytes;
  }

  /** Points an entity's record elsewhere, if it is at `from` now. True when it was. */
  move(record: Uint32Array, at: number, isFrom: (flags: number) => boolean): boolean {
    return this.parts[record[at + HASH2]! & (PARTS - 1)]?.move(record, at, isFrom) === true;
  }

  /** Copies of the entities' records, one after the other. */
  *all(): Generator<Uint32Array> {
    for (const part of this.parts) {
      if (part === undefined) continue;
      for (const at of part.occupied()) yield part.records.slice(at, at + WORDS);
    }
  }

  /** Drops the entities for which `keep` says no, told where in `records` they stand. */
  retain(keep: (records: Uint32Array, at: number) => boolean): void {
    this.count = 0;
    this.total = 0;
    for (const part of this.parts) {
      if (part === undefined) continue;
      const { records } = part;
      part.retain((at) => keep(records, at));
      this.count += part.size;
      this.total += part.bytes;
    }
  }
}
