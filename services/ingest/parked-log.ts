import { randomUUID } from "node:crypto";
import { inGroups } from "../base/in-groups.js";
import type { ObjectStore } from "../storage/object-store.js";
import { type Track, trackOf } from "../table/progress.js";
import { decode, encode, type ParkedChunk, type ParkedEvents } from "./parked-format.js";

const ROOT = "parked/";
/** Objects that are read or written at once. */
const AT_ONCE = 16;
/** Greater than whatever a key goes on with. */
const LAST = "~~";

interface Parked {
  readonly key: string;
  readonly stream: string;
  readonly partition: string;
  readonly track: Track;
  readonly bytes: number;
}

/**
 * Events of one table that were accepted and cannot land yet, as objects of the lake:
 * parked/<table>/<stream>/<partition>/<first position>-<random>. Each has events of one partition alone, all that were
 * read between its first and its last one; so in the order of their keys they land without a gap, and what was parked
 * twice is told by its positions. Whoever has a partition lands what is parked of it, whoever parked it.
 */
export class ParkedLog {
  private readonly parked = new Map<string, Parked>();
  private readonly appending = new Set<Promise<void>>();
  /** Keys that were written since the look that runs has begun. */
  private written: Set<string> | undefined;

  constructor(
    private readonly store: ObjectStore,
    private readonly table: string,
    /** Whose turn it is to land what is parked of a track may change at any time. */
    private readonly isOurs: (track: Track) => boolean,
  ) {}

  /** Finds what is parked, by whomever. Errors: TRB-STORE-FAILED. */
  async look(): Promise<void> {
    const written = new Set<string>();
    this.written = written;
    const found = new Map<string, Parked>();
    for await (const { key, bytes } of this.store.list(`${ROOT}${this.table}/`)) {
      const parked = parkedOf(key, bytes);
      if (parked !== undefined) found.set(key, parked);
    }
    for (const key of this.parked.keys()) if (!found.has(key) && !written.has(key)) this.parked.delete(key);
    for (const [key, parked] of found) this.parked.set(key, parked);
  }

  private ours(): Parked[] {
    return [...this.parked.values()].filter(({ track }) => this.isOurs(track));
  }

  /** Of what is ours. */
  get bytes(): number {
    return this.ours().reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /** True when nothing of ours is left that may not have landed, and nothing is being appended. */
  get empty(): boolean {
    return this.appending.size === 0 && (this.parked.size === 0 || this.ours().length === 0);
  }

  /**
   * Durable when resolved; when it rejects, some of the events may be parked all the same. Events of partitions that
   * are not ours any more are left out: who has them reads them from the stream. Errors: TRB-STORE-FAILED.
   */
  append(stream: string, events: ParkedEvents): Promise<void> {
    const work = this.write(stream, events).finally(() => this.appending.delete(work));
    this.appending.add(work);
    return work;
  }

  /** Resolves when nothing is being appended, however that ended. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.appending);
  }

  private async write(stream: string, events: ParkedEvents): Promise<void> {
    const byPartition = new Map<string, number[]>();
    for (let i = 0; i < events.count; i++) {
      const partition = events.partitions[i]!;
      const picked = byPartition.get(partition);
      if (picked !== undefined) picked.push(i);
      else if (this.isOurs(trackOf(stream, partition))) byPartition.set(partition, [i]);
    }
    await inGroups([...byPartition], AT_ONCE, async ([partition, picked]) => {
      const place = [this.table, stream, partition].map(encodeURIComponent).join("/");
      const key = `${ROOT}${place}/${events.positions[picked[0]!]}-${randomUUID()}`;
      const bytes = encode(stream, partition, events, picked);
      await this.store.put(key, bytes);
      this.written?.add(key);
      this.parked.set(key, {
        key,
        stream,
        partition,
        track: trackOf(stream, partition),
        bytes: bytes.length,
      });
    });
  }

  /**
   * Of what is ours the oldest events that may not have landed, of some partitions of one stream; at least one object's;
   * undefined without any. Errors: TRB-STORE-FAILED, TRB-STREAM-CORRUPT.
   */
  async peek(maxEvents: number, maxBytes: number): Promise<ParkedChunk | undefined> {
    const ours = this.ours().sort((a, b) => (a.key < b.key ? -1 : 1));
    const picked: Parked[] = [];
    let bytes = 0;
    for (const one of ours) {
      if (picked.length > 0 && (one.stream !== ours[0]!.stream || bytes + one.bytes > maxBytes)) break;
      picked.push(one);
      bytes += one.bytes;
    }
    const read = await inGroups(picked, AT_ONCE, async ({ key }) => ({
      key,
      bytes: await this.store.get(key),
    }));
    const objects: { key: string; bytes: Buffer }[] = [];
    let events = 0;
    for (const { key, bytes: object } of read) {
      // It has landed, and whoever landed it has deleted it.
      if (object === undefined) {
        this.parked.delete(key);
        continue;
      }
      const { count } = decode([{ key, bytes: object }]);
      if (objects.length > 0 && events + count > maxEvents) break;
      objects.push({ key, bytes: object });
      events += count;
    }
    return objects.length === 0 ? undefined : decode(objects);
  }

  /** The chunk has landed. Errors: TRB-STORE-FAILED. */
  async drop({ keys }: ParkedChunk): Promise<void> {
    await this.store.delete(keys);
    for (const key of keys) this.parked.delete(key);
  }
}

function parkedOf(key: string, bytes: number): Parked | undefined {
  const [, , stream, partition] = key.split("/").map(decodeURIComponent);
  if (stream === undefined || partition === undefined) return undefined;
  return { key, stream, partition, track: trackOf(stream, partition), bytes };
}

/** The tables that have parked events. Errors: TRB-STORE-FAILED. */
export const parkedTables = (store: ObjectStore): Promise<string[]> => foldersOf(store, ROOT);

/** Names of the folders right below `prefix`, without a look at all that is in them. Errors: TRB-STORE-FAILED. */
export async function foldersOf(store: ObjectStore, prefix: string): Promise<string[]> {
  const names: string[] = [];
  for (let after: string | undefined = ""; after !== undefined; ) {
    const from: string = after;
    after = undefined;
    for await (const { key } of from === "" ? store.list(prefix) : store.list(prefix, from)) {
      const name = key.slice(prefix.length).split("/")[0]!;
      names.push(decodeURIComponent(name));
      after = `${prefix}${name}/${LAST}`;
      break;
    }
  }
  return names;
}

/** Positions of a stream's events that are parked, whatever their table. Errors: TRB-STORE-FAILED, TRB-STREAM-CORRUPT. */
export async function parkedPositions(
  store: ObjectStore,
  stream: string,
): Promise<{ readonly partition: string; readonly position: string }[]> {
  const found: { partition: string; position: string }[] = [];
  for await (const { key, bytes: size } of store.list(ROOT)) {
    if (parkedOf(key, size)?.stream !== stream) continue;
    const bytes = await store.get(key);
    if (bytes === undefined) continue;
    const { partitions, positions } = decode([{ key, bytes }]);
    partitions.forEach((partition, i) => {
      found.push({ partition, position: positions[i]! });
    });
  }
  return found;
}
