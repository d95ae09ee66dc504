import type { EventSlices } from "../change-stream.js";
import { PositionFormatter } from "../positions.js";
import { alignedBuffer, frameBytes, frameHeaderBytes, sealFrame } from "./format.js";

export interface PendingAppend {
  readonly events: EventSlices;
  /** Index of each event's partition. */
  readonly partitions: Uint16Array;
  readonly receivedAt: number;
  readonly resolve: (positions: readonly string[]) => void;
  readonly reject: (error: unknown) => void;
}

/** Bytes between two events of one body (a tag and a length) that are cheaper to copy along than to step over. */
const MAX_GAP = 16;

/** Appends that become one frame, and durable together. The events' bytes are copied here once, and written from here. */
export class AppendGroup {
  readonly capacity: number;
  private readonly partitions: number;
  private readonly buffer: Buffer;
  private dataBytes = 0;
  private events = 0;
  private starts = new Uint32Array(1024);
  private lengths = new Uint32Array(1024);
  private partitionOf = new Uint16Array(1024);
  private appends: PendingAppend[] = [];

  constructor(partitions: number, capacity: number) {
    this.partitions = partitions;
    this.capacity = capacity;
    this.buffer = alignedBuffer(capacity);
  }

  get isEmpty(): boolean {
    return this.appends.length === 0;
  }

  /** Frame bytes an append needs when it is alone. */
  static bytesFor(partitions: number, events: EventSlices): number {
    return frameBytes(partitions, runBytes(events), events.count, 1);
  }

  /** False when there is no room. */
  add(append: PendingAppend): boolean {
    const { events, partitions } = append;
    const total = this.events + events.count;
    const dataBytes = this.dataBytes + runBytes(events);
    if (frameBytes(this.partitions, dataBytes, total, this.appends.length + 1) > this.capacity) {
      return false;
    }
    this.growTables(total);
    const dataAt = frameHeaderBytes(this.partitions);
    let row = this.events;
    let to = this.dataBytes;
    eachRun(events, (from, end, firstEvent, afterEvent) => {
      this.buffer.set(events.bytes.subarray(from, end), dataAt + to);
      for (let i = firstEvent; i < afterEvent; i++, row++) {
        this.starts[row] = to + events.starts[i]! - from;
        this.lengths[row] = events.ends[i]! - events.starts[i]!;
        this.partitionOf[row] = partitions[i]!;
      }
      to += end - from;
    });
    this.dataBytes = dataBytes;
    this.events = total;
    this.appends.push(append);
    return true;
  }

  /** The frame's bytes; valid until `clear`. */
  seal(marker: Buffer, first: readonly number[]): Buffer {
    return sealFrame(this.buffer, marker, first, {
      dataBytes: this.dataBytes,
      events: this.events,
      starts: this.starts,
      lengths: this.lengths,
      partitions: this.partitionOf,
      appends: this.appends.map(({ receivedAt, events }) => ({ receivedAt, count: events.count })),
    });
  }

  /** Positions after this group when `first` is the first free one of each partition. */
  nextAfter(first: readonly number[]): number[] {
    const next = [...first];
    for (let row = 0; row < this.events; row++) next[this.partitionOf[row]!]!++;
    return next;
  }

  /** Tells every append its positions. */
  acknowledge(first: readonly number[]): void {
    const next = [...first];
    const formatters = next.map(() => new PositionFormatter());
    for (const { events, partitions, resolve } of this.appends) {
      const positions = new Array<string>(events.count);
      for (let i = 0; i < events.count; i++) {
        const p = partitions[i]!;
        positions[i] = formatters[p]!.format(next[p]!++);
      }
      resolve(positions);
    }
  }

  reject(error: unknown): void {
    for (const { reject } of this.appends) reject(error);
  }

  clear(): void {
    this.dataBytes = 0;
    this.events = 0;
    this.appends = [];
  }

  private growTables(events: number): void {
    if (events <= this.starts.length) return;
    const size = 2 ** Math.ceil(Math.log2(events));
    const grow = <T extends Uint32Array | Uint16Array>(old: T, grown: T): T => {
      grown.set(old);
      return grown;
    };
    this.starts = grow(this.starts, new Uint32Array(size));
    this.lengths = grow(this.lengths, new Uint32Array(size));
    this.partitionOf = grow(this.partitionOf, new Uint16Array(size));
  }
}

/** Calls back for stretches of neighbouring events, so that a body is copied in a few large pieces. */
function eachRun(
  { count, starts, ends }: EventSlices,
  run: (from: number, end: number, firstEvent: number, afterEvent: number) => void,
): void {
  let first = 0;
  for (let i = 1; i <= count; i++) {
    const gap = i < count ? starts[i]! - ends[i - 1]! : -1;
    if (gap >= 0 && gap <= MAX_GAP) continue;
    run(starts[first]!, ends[i - 1]!, first, i);
    first = i;
  }
}

function runBytes(events: EventSlices): number {
  let bytes = 0;
  eachRun(events, (from, end) => {
    bytes += end - from;
  });
  return bytes;
}
