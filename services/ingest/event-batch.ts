import { Envelope } from "../contracts/envelope.js";
import type { StreamBatch } from "../stream/change-stream.js";

/**
 * Events of one entity type on their way into tables: slices of the stream's buffers with what the stream knows of
 * them. Fields are read from the bytes when a column needs them; no event becomes an object.
 */
export class EventBatch {
  readonly bytes: Buffer[] = [];
  readonly starts: number[] = [];
  readonly ends: number[] = [];
  readonly partitions: string[] = [];
  readonly positions: string[] = [];
  /** Milliseconds since the epoch. */
  readonly receivedAt: number[] = [];
  byteCount = 0;

  constructor(readonly entityType: string) {}

  get count(): number {
    return this.starts.length;
  }

  add(
    bytes: Buffer,
    start: number,
    end: number,
    partition: string,
    position: string,
    receivedAt: number,
  ): void {
    this.bytes.push(bytes);
    this.starts.push(start);
    this.ends.push(end);
    this.partitions.push(partition);
    this.positions.push(position);
    this.receivedAt.push(receivedAt);
    this.byteCount += end - start;
  }

  /** Points `envelope` at event `i`, which was read without fault before. */
  read(i: number, envelope: Envelope): void {
    const code = envelope.read(this.bytes[i]!, this.starts[i]!, this.ends[i]!);
    if (code !== undefined) throw new Error(`assertion failed: an event of a batch is unreadable (${code})`);
  }

  event(i: number): Buffer {
    return this.bytes[i]!.subarray(this.starts[i]!, this.ends[i]!);
  }

  /** The events that `keep` says yes to, in order. */
  filter(keep: (i: number) => boolean): EventBatch {
    const kept = new EventBatch(this.entityType);
    for (let i = 0; i < this.count; i++) {
      if (!keep(i)) continue;
      kept.add(
        this.bytes[i]!,
        this.starts[i]!,
        this.ends[i]!,
        this.partitions[i]!,
        this.positions[i]!,
        this.receivedAt[i]!,
      );
    }
    return kept;
  }

  /** The events beyond the given positions. */
  after(positions: ReadonlyMap<string, string>): EventBatch {
    const isNew = (i: number) => this.positions[i]! > (positions.get(this.partitions[i]!) ?? "");
    for (let i = 0; i < this.count; i++) if (!isNew(i)) return this.filter(isNew);
    return this;
  }

  /** Partition → last position in the batch. */
  reached(): Map<string, string> {
    const reached = new Map<string, string>();
    for (let i = 0; i < this.count; i++) {
      const partition = this.partitions[i]!;
      const position = this.positions[i]!;
      const before = reached.get(partition);
      if (before === undefined || position > before) reached.set(partition, position);
    }
    return reached;
  }
}

export interface Unreadable {
  readonly event: Buffer;
  readonly code: string;
  readonly partition: string;
  readonly position: string;
  readonly receivedAt: number;
}

/** Entity types name folders: what a producer past the bus may have written is looked at again. */
const ENTITY_TYPE = /^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$/;

/** Sorts a read of the stream by entity type. What is no event at all goes to `unreadable`, never away. */
export function route(
  batch: StreamBatch,
  partitionNames: readonly string[],
  batchFor: (entityType: string) => EventBatch,
  unreadable: (event: Unreadable) => void,
): void {
  const envelope = new Envelope();
  let lastType = "";
  let last: EventBatch | undefined;
  for (let i = 0; i < batch.count; i++) {
    const start = batch.starts[i]!;
    const end = batch.ends[i]!;
    const partition = partitionNames[batch.partitions[i]!]!;
    const position = batch.positions[i]!;
    const receivedAt = batch.receivedAt[i]!;
    const code = envelope.read(batch.bytes, start, end);
    if (code !== undefined) {
      unreadable({ event: batch.bytes.subarray(start, end), code, partition, position, receivedAt });
      continue;
    }
    const type = envelope.entityType();
    if (last === undefined || type !== lastType) {
      if (!ENTITY_TYPE.test(type)) {
        const event = batch.bytes.subarray(start, end);
        unreadable({ event, code: "TRB-EVENT-ENTITY-TYPE", partition, position, receivedAt });
        continue;
      }
      last = batchFor(type);
      lastType = type;
    }
    last.add(batch.bytes, start, end, partition, position, receivedAt);
  }
}

export const OPERATIONS = ["", "CREATED", "UPDATED", "DELETED"] as const;

const MILLION = 1_000_000n;

/** occurred_at in microseconds, or null. */
export function occurredMicros(envelope: Envelope): bigint | null {
  const seconds = envelope.occurredSeconds;
  if (Number.isNaN(seconds)) return null;
  const micros = Math.floor(envelope.occurredNanos / 1000);
  // 2^53 microseconds are 285 years.
  if (Math.abs(seconds) < 9_000_000_000) return BigInt(seconds * 1e6 + micros);
  return BigInt(seconds) * MILLION + BigInt(micros);
}
