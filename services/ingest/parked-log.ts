import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { TributaryError } from "../base/errors.js";
import { ensureFolder, type FileOps, isAbsent, type OpenFile, readWhole, writeFully } from "../base/files.js";
import { Turns } from "../base/turns.js";
import {
  damaged,
  decode,
  encode,
  frames,
  HEADER_BYTES,
  type ParkedChunk,
  type ParkedEvents,
  sealOf,
  segmentHeader,
} from "./parked-format.js";

const SEGMENT_BYTES = 8 * 1024 * 1024;
/** Earlier versions gave segments no more than their number. */
const NAME = /^(\d{12})(?:-[0-9a-f]{16})?\.log$/;

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
 *
 * One process parks; who comes after it gives every segment a new name before reading it. One that goes on although it
 * has been replaced (it was stopped for a while) then acknowledges nothing more in them and deletes none. What it parks
 * in a new segment of its own follows on what it had parked before, so it does no harm.
 */
export class ParkedLog {
  private readonly turns = new Turns();
  private writer: OpenFile | undefined;
  /** The segment to be begun next, whose file a failure may have left behind. */
  private coming: { readonly number: number; readonly path: string } | undefined;
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
        const path = join(folder, nameOf(Number(number)));
        await files.rename(join(folder, name), path);
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

  /**
   * Durable when resolved; when it rejects the events may be parked all the same.
   * Errors: TRB-STORE-FAILED; TRB-STREAM-FENCED when another process has taken over.
   */
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
    await this.assertOurs(segment!);
  }

  /** Passes while the segment has the name it was given: then whoever takes over later reads what was synced before. */
  private async assertOurs({ path }: Segment): Promise<void> {
    if ((await this.files.stat(path)) === undefined) throw new TributaryError("TRB-STREAM-FENCED");
  }

  private async begin(): Promise<Segment> {
    await ensureFolder(this.files, this.folder);
    const last = this.segments.at(-1)?.number ?? 0;
    if (this.coming === undefined || this.coming.number <= last) {
      this.coming = { number: last + 1, path: join(this.folder, nameOf(last + 1)) };
    }
    const { number, path } = this.coming;
    // Of a try that failed; nobody else gives this name, and no event was acknowledged in it.
    await this.files.unlink(path).catch(() => undefined);
    const file = await this.files.open(path, "create");
    this.marker = randomBytes(8);
    try {
      await writeFully(file, segmentHeader(this.marker), 0);
      // Before any event: a segment with events whose header does not read is damaged, not torn.
      await file.dataSync();
      await this.files.syncFolder(this.folder);
    } catch (error) {
      await file.close().catch(() => undefined);
      await this.files.unlink(path).catch(() => undefined);
      throw error;
    }
    this.writer = file;
    this.coming = undefined;
    const segment = { number, path, bytes: HEADER_BYTES, size: HEADER_BYTES };
    this.segments.push(segment);
    return segment;
  }

  /** Says that nothing is missing at the segment's end. */
  private async seal(segment: Segment): Promise<void> {
    const end = sealOf(this.marker);
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
    const ours = await this.assertOurs(segment).then(
      () => true,
      () => false,
    );
    if (ours) await writer.truncate(segment.bytes).catch(() => undefined);
    await writer.close().catch(() => undefined);
    if (segment.bytes > HEADER_BYTES) return;
    this.segments.splice(this.segments.indexOf(segment), 1);
    await this.files.unlink(segment.path).catch(() => undefined);
  }

  /**
   * The oldest events that may not have landed, at least one frame of them; undefined without any.
   * Errors: TRB-STORE-FAILED, TRB-STREAM-CORRUPT, TRB-STREAM-FENCED.
   */
  peek(maxEvents: number, maxBytes: number): Promise<ParkedChunk | undefined> {
    return this.turns.run(() =>
      guard(async () => {
        const segment = this.segments[0];
        if (segment === undefined) return undefined;
        const bytes = (await read(this.files, segment, 0)).subarray(0, segment.bytes);
        const chunk = decode(bytes, segment.number, this.landed, maxEvents, maxBytes);
        // What was whole is not any more: nothing would ever land.
        if (chunk.count === 0) throw damaged();
        return chunk;
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
    // So that what is damaged later does not pass for torn.
    if (this.writer !== undefined) await this.seal(this.segments.at(-1)!).catch(() => undefined);
  }
}

/** A name that no segment ever had. */
const nameOf = (number: number): string =>
  `${String(number).padStart(12, "0")}-${randomBytes(8).toString("hex")}.log`;

/** Where whole frames end; undefined when the segment is damaged before that. */
async function wholeEnd(files: FileOps, segment: Segment): Promise<number | undefined> {
  const bytes = await read(files, segment, 0);
  try {
    return frames(bytes, 0).end;
  } catch {
    return undefined;
  }
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
    // What was there has another name, or has been done with, by another process.
    if (isAbsent(cause)) throw new TributaryError("TRB-STREAM-FENCED");
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
