import type { FileOps } from "../../base/files.js";
import type { Checkpoint, StreamBatch, StreamConsumer } from "../change-stream.js";
import { closedError, streamDown } from "../failures.js";
import { PositionFormatter } from "../positions.js";
import { fromCheckpoint } from "./checkpoints.js";
import { LogCursor, type Window } from "./cursor.js";
import { damaged, listSegments, openSegment, type StreamIdentity } from "./folder.js";
import type { Frame } from "./format.js";
import { type LowWater, readLowWater, writeLowWater } from "./low-water.js";
import type { FolderWatch } from "./watch.js";

interface Place {
  readonly segment: number;
  /** Offset in the segment's file, and in the frame bytes of the whole log. */
  readonly at: number;
  readonly logAt: number;
}

type ReadLimit = Parameters<StreamConsumer["read"]>[0];

/** Small limits still read a good stretch at once; the rest is served from memory. */
const MIN_READ_BYTES = 256 * 1024;

/** A frame that was delivered, at least in part, and may hold events that are not done. */
interface Delivered extends Place {
  readonly after: Place;
  /** First positions after the frame: all before them are in it or in earlier frames. */
  readonly next: readonly number[];
}

/** One named consumer of the embedded log. Not for concurrent `read`s. */
export class EmbeddedLogConsumer implements StreamConsumer {
  private readonly files: FileOps;
  private readonly folder: string;
  private readonly identity: StreamIdentity;
  private readonly name: string;
  private readonly watch: FolderWatch;
  private readonly cursor: LogCursor;
  private readonly onClose: () => void;
  private readonly formatters: readonly PositionFormatter[];
  /** The low-water record as it is on disk. */
  private record: LowWater;
  /** Positions up to these are not delivered: they were done when this consumer started. */
  private readonly skip: readonly number[];
  /** Position of the next event of each partition in reading order. */
  private readonly next: number[];
  private readonly delivered: Delivered[] = [];
  private window: Window | undefined;
  private frame = 0;
  private event = 0;
  /** Where reading would resume now. */
  private resume: Place;
  private reading: Promise<unknown> | undefined;
  private committing: Promise<void> = Promise.resolve();
  private closed = false;

  /**
   * Registers the consumer when it is new, durable when resolved; unless `looks` says that it will never commit.
   */
  static async open(
    files: FileOps,
    folder: string,
    identity: StreamIdentity,
    name: string,
    watch: FolderWatch,
    onClose: () => void,
    looks = false,
  ): Promise<EmbeddedLogConsumer> {
    const partitions = identity.partitions.length;
    let record = await readLowWater(files, folder, name, identity.partitions);
    let cursor: LogCursor;
    if (record === undefined) {
      // Registered before looking at the log: from here on nothing after the oldest segment is trimmed.
      record = { done: identity.partitions.map(() => 0), segment: 0, at: 0, bytes: 0 };
      if (!looks) await writeLowWater(files, folder, name, identity.partitions, record);
    }
    if (record.segment === 0) {
      // Whatever was forgotten before it registered counts as done.
      cursor = await LogCursor.open(files, folder, partitions, record.done);
      if (cursor.next !== undefined)
        record = { ...record, done: cursor.next.map((position) => position - 1) };
    } else {
      cursor = await LogCursor.open(files, folder, partitions, record.done, record);
    }
    return new EmbeddedLogConsumer(files, folder, identity, name, watch, onClose, record, cursor);
  }

  /**
   * Reads on after `after`, or from the oldest event, for somebody who keeps count himself: it registers nothing and is
   * not to commit.
   */
  static async openAfter(
    files: FileOps,
    folder: string,
    identity: StreamIdentity,
    after: readonly number[] | undefined,
    watch: FolderWatch,
    onClose: () => void,
  ): Promise<EmbeddedLogConsumer> {
    const { length } = identity.partitions;
    const cursor =
      after === undefined
        ? await LogCursor.open(files, folder, length, [])
        : await LogCursor.openAfter(files, folder, length, after);
    const oldest = cursor.next ?? identity.partitions.map(() => 1);
    const done = after ?? oldest.map((position) => position - 1);
    const record = { done, segment: 0, at: 0, bytes: 0 };
    return new EmbeddedLogConsumer(files, folder, identity, "", watch, onClose, record, cursor);
  }

  private constructor(
    files: FileOps,
    folder: string,
    identity: StreamIdentity,
    name: string,
    watch: FolderWatch,
    onClose: () => void,
    record: LowWater,
    cursor: LogCursor,
  ) {
    this.files = files;
    this.folder = folder;
    this.identity = identity;
    this.name = name;
    this.watch = watch;
    this.onClose = onClose;
    this.record = record;
    this.skip = record.done;
    this.next = record.done.map((position) => position + 1);
    this.resume = { segment: record.segment, at: record.at, logAt: record.bytes };
    this.cursor = cursor;
    this.formatters = identity.partitions.map(() => new PositionFormatter());
  }

  async read(limit: ReadLimit): Promise<StreamBatch | undefined> {
    if (this.closed) throw closedError("consumer");
    const reading = this.readNext(limit);
    this.reading = reading;
    try {
      return await reading;
    } catch (error) {
      throw streamDown("the log could not be read", error);
    }
  }

  /** Whether events that come next here have been trimmed: they were kept for nobody. */
  async isOverrun(): Promise<boolean> {
    const [oldest] = await listSegments(this.files, this.folder);
    if (oldest === undefined) return false;
    const opened = await openSegment(this.files, this.folder, oldest, this.next.length);
    await opened?.file.close();
    return opened?.header.first.some((position, p) => position > this.next[p]!) ?? false;
  }

  private async readNext(limit: ReadLimit): Promise<StreamBatch | undefined> {
    const until = performance.now() + limit.waitMs;
    for (;;) {
      const batch = this.take(limit.maxEvents, limit.maxBytes);
      if (batch !== undefined) return batch;
      const seen = this.watch.changes;
      const window = await this.cursor.read(Math.max(limit.maxBytes, MIN_READ_BYTES));
      if (window !== undefined) {
        this.window = window;
        this.frame = 0;
        this.event = 0;
        continue;
      }
      const left = until - performance.now();
      if (left <= 0 || this.isOver(limit)) return undefined;
      await this.watch.wait(seen, left, limit.signal);
      if (this.isOver(limit)) return undefined;
    }
  }

  private isOver(limit: ReadLimit): boolean {
    return this.closed || limit.signal?.aborted === true;
  }

  /** The next events of the window as views into it; undefined when it has none left. */
  private take(maxEvents: number, maxBytes: number): StreamBatch | undefined {
    const window = this.window;
    if (window === undefined) return undefined;
    let room = -this.event;
    for (let f = this.frame; f < window.frames.length && room < maxEvents; f++) {
      room += window.frames[f]!.events;
    }
    room = Math.min(room, Math.max(1, maxEvents));
    const starts = new Uint32Array(room);
    const ends = new Uint32Array(room);
    const partitions = new Uint16Array(room);
    const receivedAt = new Float64Array(room);
    const positions: string[] = [];
    let bytes = 0;
    taking: while (this.frame < window.frames.length) {
      const frame = window.frames[this.frame]!;
      if (this.event === 0) this.beginFrame(window, frame);
      const mustSkip = frame.first.some((position, p) => position <= this.skip[p]!);
      let append = 0;
      let appendEnd = frame.appendCounts[0]!;
      for (let i = this.event; i < frame.events; i++) {
        const p = frame.partitions[i]!;
        const position = this.next[p]!;
        const length = frame.lengths[i]!;
        if (!mustSkip || position > this.skip[p]!) {
          const count = positions.length;
          if (count === room || (count > 0 && bytes + length > maxBytes)) break taking;
          while (i >= appendEnd) appendEnd += frame.appendCounts[++append]!;
          const start = frame.dataAt + frame.starts[i]!;
          starts[count] = start;
          ends[count] = start + length;
          partitions[count] = p;
          receivedAt[count] = frame.receivedAt[append]!;
          positions.push(this.formatters[p]!.format(position));
          bytes += length;
        }
        this.next[p] = position + 1;
        this.event = i + 1;
      }
      this.frame++;
      this.event = 0;
    }
    if (this.frame === window.frames.length) this.window = undefined;
    const count = positions.length;
    if (count === 0) return undefined;
    return {
      bytes: window.bytes,
      count,
      starts: starts.subarray(0, count),
      ends: ends.subarray(0, count),
      names: this.identity.partitions,
      partitions: partitions.subarray(0, count),
      receivedAt: receivedAt.subarray(0, count),
      positions,
    };
  }

  private beginFrame(window: Window, frame: Frame): void {
    frame.first.forEach((position, p) => {
      // Reading may start before what is done, never after it.
      if (position > this.next[p]!) throw damaged(window.segment, window.at + frame.at);
      this.next[p] = position;
    });
    const place = (offset: number): Place => ({
      segment: window.segment,
      at: window.at + offset,
      logAt: window.logAt + offset,
    });
    this.delivered.push({
      ...place(frame.at),
      after: place(frame.at + frame.length),
      next: frame.next,
    });
  }

  commit(checkpoint: Checkpoint): Promise<void> {
    // One after the other, so that an older record never replaces a newer one.
    const turn = this.committing.then(async () => {
      try {
        await this.moveRecord(checkpoint);
      } catch (error) {
        throw streamDown("the low-water record could not be written", error);
      }
    });
    this.committing = turn.catch(() => undefined);
    return turn;
  }

  private async moveRecord(checkpoint: Checkpoint): Promise<void> {
    // A process that was replaced may still be at it, and this may be the one: what the record on disk says is true as
    // well, and the log may have forgotten what comes before.
    const { partitions } = this.identity;
    const onDisk = await readLowWater(this.files, this.folder, this.name, partitions).catch(() => undefined);
    const found = onDisk ?? this.record;
    // Never backwards, and never beyond what reading has reached: what was not read cannot be done.
    const done = fromCheckpoint(partitions, checkpoint).map((position, p) =>
      Math.max(this.record.done[p]!, found.done[p]!, Math.min(position, this.next[p]! - 1)),
    );
    for (let oldest = this.delivered[0]; oldest !== undefined; oldest = this.delivered[0]) {
      const isDone = oldest.next.every((position, p) => position - 1 <= done[p]!);
      this.resume = isDone ? oldest.after : oldest;
      if (!isDone) break;
      this.delivered.shift();
    }
    const { segment, at, logAt } = this.resume;
    const record = found.bytes > logAt ? { ...found, done } : { done, segment, at, bytes: logAt };
    await writeLowWater(this.files, this.folder, this.name, partitions, record);
    this.record = record;
  }

  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    this.watch.wake();
    await this.reading?.catch(() => undefined);
    await this.committing;
    await this.cursor.close();
    this.onClose();
  }
}
