import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { crc32 } from "node:zlib";
import { TributaryError } from "../base/errors.js";
import { ensureFolder, type FileOps, type OpenFile, readWhole, writeFully } from "../base/files.js";
import { Turns } from "../base/turns.js";

/*
 * A segment: magic 8 · marker 8 · frames. A frame: marker 8 · crc 4 (of all that follows) · length 4 (of the body) ·
 * body: length of the head 4 · head (JSON: stream, partition names, [partition, position, received-at, length] per
 * event) · the events' bytes. A frame without a body seals a segment that was left whole. Numbers are little-endian.
 * The marker is random per segment, so that no payload can pass for a frame.
 */
const MAGIC = Buffer.from("TRBPARK1", "latin1");
const HEADER_BYTES = 16;
const FRAME_BYTES = 16;
const SEGMENT_BYTES = 8 * 1024 * 1024;
const NAME = /^(\d{12})\.log$/;

/** Events in the order in which they land. */
export interface ParkedEvents {
  readonly count: number;
  readonly partitions: readonly string[];
  readonly positions: readonly string[];
  /** Milliseconds since the epoch. */
  readonly receivedAt: readonly number[];
  event(i: number): Buffer;
}

/** The oldest parked events, of one stream. */
export interface ParkedChunk extends ParkedEvents {
  readonly stream: string;
  /** Where the rest begins. */
  readonly end: { readonly segment: number; readonly at: number };
}

interface Segment {
  readonly number: number;
  readonly path: string;
  /** End of the last whole frame. */
  bytes: number;
  /** What it takes on disk. */
  size: number;
}

/**
 * Events that were accepted and cannot land yet, in a folder of their own: appended durably, read from the oldest on,
 * deleted once they have landed. Reading begins with the oldest segment again after a restart: what has landed
 * meanwhile is told by positions, not by this log. Calls run one after the other.
 */
export class ParkedLog {
  private readonly turns = new Turns();
  private writer: OpenFile | undefined;
  private marker: Buffer = Buffer.alloc(8);
  /** Offset in the oldest segment up to which events have landed. */
  private landed = HEADER_BYTES;

  private constructor(
    private readonly files: FileOps,
    private readonly folder: string,
    private readonly segments: Segment[],
    private readonly segmentBytes: number,
  ) {}

  /** Makes no folder before there is something to park. Errors: TRB-STORE-FAILED. */
  static open(files: FileOps, folder: string, segmentBytes = SEGMENT_BYTES): Promise<ParkedLog> {
    return guard(async () => {
      const segments: Segment[] = [];
      const found = (await files.stat(folder))?.isFolder === true ? await files.list(folder) : [];
      for (const { name } of found) {
        const number = NAME.exec(name)?.[1];
        if (number === undefined) continue;
        const path = join(folder, name);
        const size = (await files.stat(path))?.bytes ?? 0;
        segments.push({ number: Number(number), path, bytes: size, size });
      }
      segments.sort((a, b) => a.number - b.number);
      for (const segment of [...segments]) {
        // What ends in the middle of a frame was never durable, so never counted on. What is damaged is told when its
        // turn to land comes: what is parked meanwhile still goes behind it.
        const end = await wholeEnd(files, segment);
        if (end === undefined) continue;
        segment.bytes = end;
        if (end > HEADER_BYTES) continue;
        await files.unlink(segment.path);
        segments.splice(segments.indexOf(segment), 1);
      }
      return new ParkedLog(files, folder, segments, segmentBytes);
    });
  }

  /** On disk. */
  get bytes(): number {
    return this.segments.reduce((sum, { size }) => sum + size, 0);
  }

  /** True when nothing is left that may not have landed, and nothing is being appended. */
  get empty(): boolean {
    return this.segments.length === 0 && this.appending === 0;
  }
  private appending = 0;

  /** Durable when resolved; when it rejects the events may be parked all the same. Errors: TRB-STORE-FAILED. */
  append(stream: string, events: ParkedEvents): Promise<void> {
    if (events.count === 0) return Promise.resolve();
    this.appending++;
    return this.turns
      .run(() => guard(() => this.write(stream, events)))
      .finally(() => {
        this.appending--;
      });
  }

  private async write(stream: string, events: ParkedEvents): Promise<void> {
    let segment = this.segments.at(-1);
    if (this.writer !== undefined && segment!.bytes >= this.segmentBytes) await this.seal(segment!);
    if (this.writer === undefined) {
      segment = await this.begin();
    }
    const frame = encode(this.marker, stream, events);
    try {
      await writeFully(this.writer!, frame, segment!.bytes);
      await this.writer!.dataSync();
    } catch (error) {
      await this.abandon(segment!);
      throw error;
    }
    segment!.bytes += frame.length;
    segment!.size = segment!.bytes;
  }

  private async begin(): Promise<Segment> {
    await ensureFolder(this.files, this.folder);
    const number = (this.segments.at(-1)?.number ?? 0) + 1;
    const path = join(this.folder, `${String(number).padStart(12, "0")}.log`);
    // One that a failure has left behind bears the next number and holds nothing.
    await this.files.unlink(path).catch(() => undefined);
    const file = await this.files.open(path, "create");
    this.marker = randomBytes(8);
    try {
      await writeFully(file, Buffer.concat([MAGIC, this.marker]), 0);
      // Before any event: a segment with events whose header does not read is damaged, not torn.
      await file.dataSync();
      await this.files.syncFolder(this.folder);
    } catch (error) {
      await file.close().catch(() => undefined);
      await this.files.unlink(path).catch(() => undefined);
      throw error;
    }
    this.writer = file;
    const segment = { number, path, bytes: HEADER_BYTES, size: HEADER_BYTES };
    this.segments.push(segment);
    return segment;
  }

  /** Says that nothing is missing at the segment's end. */
  private async seal(segment: Segment): Promise<void> {
    const end = frameOf(this.marker, Buffer.alloc(0));
    try {
      await writeFully(this.writer!, end, segment.bytes);
      await this.writer!.dataSync();
    } catch (error) {
      await this.abandon(segment);
      throw error;
    }
    segment.size = segment.bytes + end.length;
    await this.writer!.close();
    this.writer = undefined;
  }

  /** After a failed write: what it left is cut off where that goes, and never written behind. */
  private async abandon(segment: Segment): Promise<void> {
    const writer = this.writer!;
    this.writer = undefined;
    await writer.truncate(segment.bytes).catch(() => undefined);
    await writer.close().catch(() => undefined);
    if (segment.bytes > HEADER_BYTES) return;
    this.segments.splice(this.segments.indexOf(segment), 1);
    await this.files.unlink(segment.path).catch(() => undefined);
  }

  /**
   * The oldest events that may not have landed, at least one frame of them; undefined without any.
   * Errors: TRB-STORE-FAILED, TRB-STREAM-CORRUPT.
   */
  peek(maxEvents: number, maxBytes: number): Promise<ParkedChunk | undefined> {
    return this.turns.run(() =>
      guard(async () => {
        const segment = this.segments[0];
        if (segment === undefined) return undefined;
        const bytes = (await read(this.files, segment, 0)).subarray(0, segment.bytes);
        return decode(bytes, segment.number, this.landed, maxEvents, maxBytes);
      }),
    );
  }

  /** The chunk has landed: what is no longer needed is deleted. */
  drop({ end }: ParkedChunk): Promise<void> {
    return this.turns.run(() =>
      guard(async () => {
        const segment = this.segments[0];
        if (segment?.number !== end.segment) return;
        this.landed = end.at;
        if (end.at < segment.bytes) return;
        if (this.segments.length === 1 && this.writer !== undefined) {
          await this.writer.close();
          this.writer = undefined;
        }
        await this.files.unlink(segment.path);
        this.segments.shift();
        this.landed = HEADER_BYTES;
      }),
    );
  }

  async close(): Promise<void> {
    await this.turns.settled();
    await this.writer?.close();
    this.writer = undefined;
  }
}

function encode(marker: Buffer, stream: string, events: ParkedEvents): Buffer {
  const names = [...new Set(events.partitions)];
  const rows: [number, string, number, number][] = [];
  const slices: Buffer[] = [];
  for (let i = 0; i < events.count; i++) {
    const event = events.event(i);
    slices.push(event);
    rows.push([
      names.indexOf(events.partitions[i]!),
      events.positions[i]!,
      events.receivedAt[i]!,
      event.length,
    ]);
  }
  const head = Buffer.from(JSON.stringify({ stream, partitions: names, rows }));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(head.length);
  return frameOf(marker, Buffer.concat([length, head, ...slices]));
}

function frameOf(marker: Buffer, body: Buffer): Buffer {
  const frame = Buffer.concat([marker, Buffer.alloc(8), body]);
  frame.writeUInt32LE(body.length, 12);
  frame.writeUInt32LE(crc32(frame.subarray(12)), 8);
  return frame;
}

/** Where whole frames end; undefined when the segment is damaged before that. */
async function wholeEnd(files: FileOps, segment: Segment): Promise<number | undefined> {
  const bytes = await read(files, segment, 0);
  try {
    return frames(bytes, 0).end;
  } catch {
    return undefined;
  }
}

interface Frames {
  /** Where each frame with a body begins and ends. */
  readonly found: readonly { readonly at: number; readonly end: number }[];
  /** Where whole frames end. */
  readonly end: number;
}

/** The whole frames of a segment from `from` on. Errors: TRB-STREAM-CORRUPT when something is damaged before the last one. */
function frames(bytes: Buffer, from: number): Frames {
  if (bytes.length <= HEADER_BYTES) return { found: [], end: 0 };
  if (!bytes.subarray(0, 8).equals(MAGIC)) throw damaged();
  const marker = bytes.subarray(8, 16);
  const found: { at: number; end: number }[] = [];
  let at = Math.max(from, HEADER_BYTES);
  for (;;) {
    const end = frameEnd(bytes, marker, at);
    if (end === undefined) break;
    if (end > at + FRAME_BYTES) found.push({ at, end });
    at = end;
  }
  for (let later = bytes.indexOf(marker, at + 1); later >= 0; later = bytes.indexOf(marker, later + 1)) {
    if (frameEnd(bytes, marker, later) !== undefined) {
      throw damaged();
    }
  }
  return { found, end: at };
}

const damaged = () =>
  new TributaryError("TRB-STREAM-CORRUPT", "a log of parked events is damaged; restore it from a copy");

function frameEnd(bytes: Buffer, marker: Buffer, at: number): number | undefined {
  if (bytes.length < at + FRAME_BYTES || bytes.compare(marker, 0, 8, at, at + 8) !== 0) return undefined;
  const end = at + FRAME_BYTES + bytes.readUInt32LE(at + 12);
  if (end > bytes.length || crc32(bytes.subarray(at + 12, end)) !== bytes.readUInt32LE(at + 8))
    return undefined;
  return end;
}

interface Head {
  readonly stream: string;
  readonly partitions: readonly string[];
  readonly rows: readonly [number, string, number, number][];
}

function decode(
  bytes: Buffer,
  segment: number,
  from: number,
  maxEvents: number,
  maxBytes: number,
): ParkedChunk {
  const partitions: string[] = [];
  const positions: string[] = [];
  const receivedAt: number[] = [];
  const events: Buffer[] = [];
  let stream: string | undefined;
  let size = 0;
  const { found, end } = frames(bytes, from);
  let reached = end;
  for (const frame of found) {
    const headAt = frame.at + FRAME_BYTES + 4;
    const headEnd = headAt + bytes.readUInt32LE(frame.at + FRAME_BYTES);
    const head = JSON.parse(bytes.toString("utf8", headAt, headEnd)) as Head;
    const full = events.length > 0 && (events.length + head.rows.length > maxEvents || size >= maxBytes);
    if (full || (stream !== undefined && stream !== head.stream)) {
      reached = frame.at;
      break;
    }
    stream = head.stream;
    let at = headEnd;
    for (const [partition, position, received, length] of head.rows) {
      partitions.push(head.partitions[partition]!);
      positions.push(position);
      receivedAt.push(received);
      events.push(bytes.subarray(at, at + length));
      at += length;
      size += length;
    }
  }
  return {
    stream: stream ?? "",
    count: events.length,
    partitions,
    positions,
    receivedAt,
    event: (i) => events[i]!,
    end: { segment, at: reached },
  };
}

async function read(files: FileOps, segment: Segment, from: number): Promise<Buffer> {
  const file = await files.open(segment.path, "read");
  try {
    const bytes = Buffer.allocUnsafeSlow((await file.size()) - from);
    return bytes.subarray(0, await file.read(bytes, from));
  } finally {
    await file.close();
  }
}

async function guard<T>(step: () => Promise<T>): Promise<T> {
  try {
    return await step();
  } catch (cause) {
    if (cause instanceof TributaryError) throw cause;
    throw new TributaryError("TRB-STORE-FAILED", "parked events cannot be written or read", { cause });
  }
}

/** Positions of a stream's events in all logs below a folder, which may be written meanwhile. */
export async function parkedPositions(
  files: FileOps,
  folder: string,
  stream: string,
): Promise<{ readonly partition: string; readonly position: string }[]> {
  const found: { partition: string; position: string }[] = [];
  if ((await files.stat(folder))?.isFolder !== true) return found;
  for (const { name, isFolder } of await files.list(folder)) {
    if (!isFolder) continue;
    for (const { name: file } of await files.list(join(folder, name))) {
      const bytes = NAME.test(file) ? await readWhole(files, join(folder, name, file)) : undefined;
      if (bytes === undefined) continue;
      for (let at = HEADER_BYTES; ; ) {
        const chunk = decode(bytes, 0, at, 1, 1);
        if (chunk.stream === stream) {
          for (const [i, partition] of chunk.partitions.entries())
            found.push({ partition, position: chunk.positions[i]! });
        }
        if (chunk.count === 0 || chunk.end.at <= at) break;
        at = chunk.end.at;
      }
    }
  }
  return found;
}
