import type { SlotRange } from "../base/slots.js";

/**
 * The change-stream port: a partitioned, durable log of change events.
 *
 * Ordering. Events of one partition are read in the order of their positions, without gaps. Nothing is promised
 * between partitions. A partition carries a range of slots (base/slots.ts), so that all of an entity's events meet one
 * order; when a stream is split or merged, partitions end and others take over their ranges.
 * Durability. `append` resolves only when every event it gives a position survives the loss of process and power. A
 * call that rejects has promised nothing: its events may or may not appear.
 * Idempotency. `append` does not deduplicate; a producer that retries may write an event twice, at two positions.
 * Reading never removes anything, and may deliver an event again, to whoever holds its partition then. `commit` is a
 * low-water record: it may lag behind what a consumer has done, never run ahead, and only what every registered consumer
 * has committed may be forgotten.
 */

/** Events as slices of one buffer, so that a request body is copied once, into the log. */
export interface EventSlices {
  readonly bytes: Buffer;
  readonly count: number;
  /** Byte offsets into `bytes`; event i is bytes[starts[i], ends[i]). */
  readonly starts: Uint32Array;
  readonly ends: Uint32Array;
}

/** Bytes of the events alone, without what lies between them. */
export function bytesOf({ count, starts, ends }: EventSlices): number {
  let bytes = 0;
  for (let i = 0; i < count; i++) bytes += ends[i]! - starts[i]!;
  return bytes;
}

export interface OutgoingEvents extends EventSlices {
  /** Slot of each event's entity. */
  readonly slots: Uint32Array;
}

/** Where events stand: names of partitions, and by event an index into them and a position. */
interface Placed<Position> {
  readonly names: readonly string[];
  readonly partitions: Uint16Array;
  /** Opaque, ordered as strings within a partition (all of one length). */
  readonly positions: readonly Position[];
}

/** In input order. Without a position: refused for lack of capacity and not in the stream; sent again, it may pass. */
export interface Appended extends Placed<string | undefined> {
  /** Those of them that the stream never takes: they are larger than its records may be. */
  readonly tooLarge?: ReadonlySet<number>;
}

export interface StreamBatch extends EventSlices, Placed<string> {
  /** Milliseconds since the epoch at which the bus took the event. */
  readonly receivedAt: Float64Array;
}

/** Partition name → position of the last event that is done. A missing partition means none of it is. */
export type Checkpoint = ReadonlyMap<string, string>;

export interface ChangeStreamWriter {
  /** Part of every table's progress key; stable for the life of the stream, and of no other stream's. */
  readonly name: string;
  /** Errors: TRB-BUS-STREAM-DOWN (retry may help), TRB-STREAM-CORRUPT. */
  append(events: OutgoingEvents): Promise<Appended>;
  /** Of events on their way at once, what is beyond this is refused; absent where nothing is refused for that. */
  readonly maxInFlightBytes?: number;
  /** Bytes between the slowest registered consumer's low-water record and the head; of a remote stream an estimate. */
  backlogBytes(): number;
  close(): Promise<void>;
}

export interface Partition {
  readonly name: string;
  readonly slots: SlotRange;
}

/** Who reads partitions is told as they come and go. Of one consumer's processes, each has its own. */
export interface PartitionHolder {
  /** Ours from now on: no commit of an earlier holder's that comes later moves their low-water record. */
  assigned(partitions: readonly Partition[]): void;
  /**
   * They are about to be read by another: resolves when what was read of them is done and committed. It is waited for as
   * long as the other has patience; what it takes over too early is delivered twice.
   */
  revoked(names: readonly string[]): Promise<void>;
  /**
   * How far the stream has been landed, by the holder's own account; undefined when nothing of it has been. Asked where the
   * stream has no low-water record of a partition whose oldest events are gone: only a newcomer begins with what is left.
   */
  landed?(): Promise<Checkpoint | undefined>;
}

export interface ChangeStreamReader {
  readonly name: string;
  /** The named consumer's low-water record; empty when it has none. */
  lowWater(consumer: string): Promise<Checkpoint>;
  /** Position of the last durable event per partition. */
  head(): Promise<Checkpoint>;
  /**
   * For how many ms events are kept from when they came, whether or not they were read, as the stream is set now.
   * Undefined: until every registered consumer is done with them.
   */
  retentionMs(): Promise<number | undefined>;
  /** Registers the consumer and reads on after its low-water record, the partitions that it is given. */
  consume(consumer: string, holder?: PartitionHolder): Promise<StreamConsumer>;
  /**
   * Reads on after a checkpoint, or from the oldest or the next event, for somebody who keeps count himself: all
   * partitions, also those that are to come. Registers nothing and keeps nothing from being forgotten: a read rejects
   * with TRB-STREAM-FORGOTTEN where events after the checkpoint are gone. Partitions that it does not name are read from
   * their oldest event.
   */
  follow(from: Checkpoint | "oldest" | "next"): Promise<StreamFollower>;
  /**
   * The durable events after the named consumer's low-water record, to the head. Only looks: registers nothing, moves
   * nothing and keeps nothing from being forgotten.
   */
  waiting(consumer: string): AsyncIterable<StreamBatch>;
  close(): Promise<void>;
}

export interface StreamFollower {
  /** The next durable events, at least one; undefined when none came within `waitMs` or on abort. */
  read(limit: {
    maxEvents: number;
    maxBytes: number;
    waitMs: number;
    signal?: AbortSignal;
  }): Promise<StreamBatch | undefined>;
  close(): Promise<void>;
}

export interface StreamConsumer extends StreamFollower {
  /** Moves the low-water record. The checkpoint is one that reading has reached. Durable when resolved. */
  commit(checkpoint: Checkpoint): Promise<void>;
}
