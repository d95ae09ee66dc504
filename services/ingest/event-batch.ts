import { assert } from "../base/errors.js";
import { microsHalves } from "../columns/column-writers.js";
import { Envelope } from "../contracts/envelope.js";
import type { StreamBatch } from "../stream/change-stream.js";
import { type Progress, positionsAlong } from "../table/progress.js";

/** Words an event takes in `EventBatch.fields`. */
const FIELDS = 17;
/** What an event occupies beside its bytes, at least: its fields, its position, its places in the arrays. */
export const EVENT_BYTES = 128;

/**
 * Events of one entity type on their way into tables: slices of the stream's buffers, where their fields lie in them,
 * and what the stream knows of them. Values are read from the bytes when a column needs them; no event becomes an
 * object.
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
  /** Bytes of the buffers that the events are slices of, which stay in memory as long as one of them does. */
  heldBytes = 0;
  /** How many of the payloads are packed. */
  packedCount = 0;
  /** Where the references of those lie whose payload did not travel with them. */
  private readonly references = new Map<number, readonly [start: number, end: number]>();
  /** What `Envelope.read` found, FIELDS words an event, so that it is found once. */
  private fields = new Int32Array(64 * FIELDS);
  private readonly occurredSeconds: number[] = [];

  constructor(
    readonly entityType: string,
    /** Name of the stream that all of them came by. */
    readonly stream: string,
  ) {}

  get count(): number {
    return this.starts.length;
  }

  /** Bytes that the events take, but for what else of their buffers is held. */
  get memoryBytes(): number {
    return this.byteCount + EVENT_BYTES * this.count;
  }

  /** `read` has the event's fields, when the caller has read them already. */
  add(
    bytes: Buffer,
    start: number,
    end: number,
    partition: string,
    position: string,
    receivedAt: number,
    read: Envelope = readEnvelope(bytes, start, end),
  ): void {
    this.keep(read);
    // Events of one buffer come together.
    if (this.bytes[this.count - 1] !== bytes) this.heldBytes += bytes.length;
    this.bytes.push(bytes);
    this.starts.push(start);
    this.ends.push(end);
    this.partitions.push(partition);
    this.positions.push(position);
    this.receivedAt.push(receivedAt);
    this.byteCount += end - start;
    if (read.compression !== 0) this.packedCount++;
  }

  /** How many payloads are elsewhere. */
  get offloadedCount(): number {
    return this.references.size;
  }

  /** Indices of the events whose payloads are elsewhere. */
  get offloaded(): Iterable<number> {
    return this.references.keys();
  }

  private keep(envelope: Envelope): void {
    const { referenceStart, referenceEnd } = envelope;
    if (referenceStart >= 0) this.references.set(this.count, [referenceStart, referenceEnd]);
    let at = this.count * FIELDS;
    if (at === this.fields.length) {
      const grown = new Int32Array(at * 2);
      grown.set(this.fields);
      this.fields = grown;
    }
    const { fields } = this;
    fields[at++] = envelope.tenantStart;
    fields[at++] = envelope.tenantEnd;
    fields[at++] = envelope.typeStart;
    fields[at++] = envelope.typeEnd;
    fields[at++] = envelope.idStart;
    fields[at++] = envelope.idEnd;
    fields[at++] = envelope.operation;
    fields[at++] = envelope.versionLo;
    fields[at++] = envelope.versionHi;
    fields[at++] = envelope.occurredNanos;
    fields[at++] = envelope.typeUrlStart;
    fields[at++] = envelope.typeUrlEnd;
    fields[at++] = envelope.payloadStart;
    fields[at++] = envelope.payloadEnd;
    fields[at++] = envelope.compression;
    fields[at++] = envelope.eventIdStart;
    fields[at] = envelope.eventIdEnd;
    this.occurredSeconds.push(envelope.occurredSeconds);
  }

  /** Points `envelope` at event `i`; its attributes are not there (see `readWhole`). */
  read(i: number, envelope: Envelope): void {
    const { fields } = this;
    let at = i * FIELDS;
    envelope.bytes = this.bytes[i]!;
    envelope.start = this.starts[i]!;
    envelope.end = this.ends[i]!;
    envelope.tenantStart = fields[at++]!;
    envelope.tenantEnd = fields[at++]!;
    envelope.typeStart = fields[at++]!;
    envelope.typeEnd = fields[at++]!;
    envelope.idStart = fields[at++]!;
    envelope.idEnd = fields[at++]!;
    envelope.operation = fields[at++]!;
    envelope.versionLo = fields[at++]! >>> 0;
    envelope.versionHi = fields[at++]! >>> 0;
    envelope.occurredNanos = fields[at++]!;
    envelope.typeUrlStart = fields[at++]!;
    envelope.typeUrlEnd = fields[at++]!;
    envelope.payloadStart = fields[at++]!;
    envelope.payloadEnd = fields[at++]!;
    envelope.compression = fields[at++]!;
    envelope.eventIdStart = fields[at++]!;
    envelope.eventIdEnd = fields[at]!;
    envelope.occurredSeconds = this.occurredSeconds[i]!;
    const reference = this.references.size === 0 ? undefined : this.references.get(i);
    envelope.referenceStart = reference?.[0] ?? -1;
    envelope.referenceEnd = reference?.[1] ?? -1;
    envelope.attributeCount = 0;
  }

  /** As `read`, with attributes. */
  readWhole(i: number, envelope: Envelope): void {
    const code = envelope.read(this.bytes[i]!, this.starts[i]!, this.ends[i]!, 0);
    assert(code === undefined, `an event of a batch is unreadable (${code})`);
  }

  event(i: number): Buffer {
    return this.bytes[i]!.subarray(this.starts[i]!, this.ends[i]!);
  }

  /** Adds event `i` of another batch of the stream, to which `read` points. */
  take(from: EventBatch, i: number, read: Envelope): void {
    this.add(
      from.bytes[i]!,
      from.starts[i]!,
      from.ends[i]!,
      from.partitions[i]!,
      from.positions[i]!,
      from.receivedAt[i]!,
      read,
    );
  }

  /** The events that `keep` says yes to, in order. */
  filter(keep: (i: number) => boolean): EventBatch {
    const kept = new EventBatch(this.entityType, this.stream);
    const envelope = new Envelope();
    for (let i = 0; i < this.count; i++) {
      if (!keep(i)) continue;
      this.read(i, envelope);
      kept.take(this, i, envelope);
    }
    return kept;
  }

  /** The events beyond the given positions. */
  after(positions: ReadonlyMap<string, string>): EventBatch {
    const isNew = (i: number) => this.positions[i]! > (positions.get(this.partitions[i]!) ?? "");
    for (let i = 0; i < this.count; i++) if (!isNew(i)) return this.filter(isNew);
    return this;
  }

  /** As `after`, of progress along all streams. */
  afterProgress(progress: Progress): EventBatch {
    return this.after(positionsAlong(progress, this.stream));
  }

  /** When the newest event was received; undefined without events. */
  newest(): number | undefined {
    return this.receivedAt.reduce<number | undefined>(
      (a, b) => (a === undefined || b > a ? b : a),
      undefined,
    );
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

function readEnvelope(bytes: Buffer, start: number, end: number): Envelope {
  const envelope = new Envelope();
  const code = envelope.read(bytes, start, end, 0);
  assert(code === undefined, `an unreadable event comes to a batch (${code})`);
  return envelope;
}

export interface Unreadable {
  readonly event: Buffer;
  readonly code: string;
  readonly partition: string;
  readonly position: string;
  readonly receivedAt: number;
}

/** Entity types name folders: what a producer past the bus may have written is looked at again. */
export const ENTITY_TYPE = /^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$/;

/** Why bytes that are no event are none. */
export function unreadableCode(event: Buffer): string {
  return new Envelope().read(event, 0, event.length) ?? "TRB-EVENT-ENTITY-TYPE";
}

/** Sorts a read of the stream by entity type. What is no event at all goes to `unreadable`, never away. */
export function route(
  batch: StreamBatch,
  batchFor: (entityType: string) => EventBatch,
  unreadable: (event: Unreadable) => void,
): void {
  const envelope = new Envelope();
  let lastType = "";
  let last: EventBatch | undefined;
  for (let i = 0; i < batch.count; i++) {
    const start = batch.starts[i]!;
    const end = batch.ends[i]!;
    const partition = batch.names[batch.partitions[i]!]!;
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
    last.add(batch.bytes, start, end, partition, position, receivedAt, envelope);
  }
}

export const OPERATIONS = ["", "CREATED", "UPDATED", "DELETED"] as const;

/** occurred_at in microseconds, rounded down, as int64 halves; false when the event has none. */
export function occurredHalves(envelope: Envelope, halves: Uint32Array): boolean {
  const { occurredSeconds: seconds } = envelope;
  if (Number.isNaN(seconds)) return false;
  microsHalves(seconds, Math.floor(envelope.occurredNanos / 1000), halves);
  return true;
}
