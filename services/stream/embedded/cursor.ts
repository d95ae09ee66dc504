import { join } from "node:path";
import { TributaryError } from "../../base/errors.js";
import type { FileOps, OpenFile } from "../../base/files.js";
import { damaged, listSegments, logFolder, type OpenSegment, openSegment, segmentName } from "./folder.js";
import {
  alignedBuffer,
  type Frame,
  firstPositions,
  frameHeaderBytes,
  frameLength,
  hasMarker,
  readFrame,
  type SegmentHeader,
  segmentHeaderBytes,
} from "./format.js";

const SKIP_BYTES = 1024 * 1024;

/** Whole, checked, durable frames of one segment, in order. */
export interface Window {
  readonly bytes: Buffer;
  readonly frames: readonly Frame[];
  readonly segment: number;
  /** Offset of `bytes` in the segment's file, and in the frame bytes of the whole log. */
  readonly at: number;
  readonly logAt: number;
}

/** Where reading goes on. */
export interface Place {
  readonly segment: number;
  readonly at: number;
}

/**
 * Reads the log forward while a writer, perhaps in another process, appends to it, dies or starts again.
 *
 * Only durable frames are handed out: were a frame delivered that a power loss takes back, its positions would be
 * given to other events. That a frame is durable is known when the next one has begun (see the writer); the last one
 * is synced here first. And it has to count: the last frame of a segment that a new writer has fenced may be one that
 * the new writer did not read. Whether it did, the header of the next segment tells.
 */
export class LogCursor {
  private readonly files: FileOps;
  private readonly folder: string;
  private readonly partitions: number;
  private file: OpenFile | undefined;
  private header: SegmentHeader | undefined;
  private at = 0;
  /** Where the segment ends; undefined while none after it has been seen. */
  private end: number | undefined;
  /** First position expected next per partition; undefined before the first frame of a resumed reading. */
  private nextFree: readonly number[] | undefined;

  private constructor(files: FileOps, folder: string, partitions: number) {
    this.files = files;
    this.folder = folder;
    this.partitions = partitions;
  }

  /**
   * From `from`, or, when that segment has been trimmed, from the oldest one after it; without it from the oldest.
   * `done` = positions that may be missing from what is left. Errors: TRB-STREAM-CORRUPT.
   */
  static async open(
    files: FileOps,
    folder: string,
    partitions: number,
    done: readonly number[],
    from?: Place,
  ): Promise<LogCursor> {
    const cursor = new LogCursor(files, folder, partitions);
    await cursor.openFirst(done, from);
    return cursor;
  }

  /** From the beginning of the newest segment. */
  static async openNewest(files: FileOps, folder: string, partitions: number): Promise<LogCursor> {
    const cursor = new LogCursor(files, folder, partitions);
    for (;;) {
      const number = (await listSegments(files, folder)).at(-1);
      if (number === undefined) return cursor;
      const opened = await openSegment(files, folder, number, partitions);
      if (opened === undefined) continue;
      cursor.use(opened.file, opened.header);
      return cursor;
    }
  }

  /**
   * At a segment from which on every event after `done` is found; with nothing open while there is no segment at all.
   * Errors: TRB-STREAM-FORGOTTEN, TRB-STREAM-CORRUPT.
   */
  static async openAfter(
    files: FileOps,
    folder: string,
    partitions: number,
    done: readonly number[],
  ): Promise<LogCursor> {
    const cursor = new LogCursor(files, folder, partitions);
    const numbers = await listSegments(files, folder);
    for (const number of numbers.reverse()) {
      const opened = await openSegment(files, folder, number, partitions);
      // Trimmed since the listing, like all before it.
      if (opened === undefined) break;
      if (opened.header.first.every((position, p) => position <= done[p]! + 1)) {
        cursor.use(opened.file, opened.header);
        return cursor;
      }
      await opened.file.close();
    }
    if (numbers.length > 0) throw new TributaryError("TRB-STREAM-FORGOTTEN");
    return cursor;
  }

  private async openFirst(done: readonly number[], from: Place | undefined): Promise<void> {
    // A segment may be trimmed between listing and opening; then a later one is the oldest.
    for (;;) {
      const numbers = await listSegments(this.files, this.folder);
      const number = numbers.find((n) => from === undefined || n >= from.segment);
      if (number === undefined) {
        if (from !== undefined) throw damaged(from.segment, from.at);
        return; // no writer has been here yet
      }
      const opened = await openSegment(this.files, this.folder, number, this.partitions);
      if (opened === undefined) continue;
      this.use(opened.file, opened.header);
      if (number === from?.segment) {
        this.at = from.at;
        if (from.at > (await opened.file.size())) throw damaged(number, from.at);
        this.nextFree = undefined;
      } else if (from !== undefined && opened.header.first.some((position, p) => position > done[p]! + 1)) {
        throw damaged(from.segment, from.at);
      }
      return;
    }
  }

  private use(file: OpenFile, header: SegmentHeader): void {
    this.file = file;
    this.header = header;
    this.at = segmentHeaderBytes(this.partitions);
    this.end = undefined;
    this.nextFree = header.first;
  }

  /** Undefined while there is no segment. */
  get place(): (Place & { readonly logAt: number }) | undefined {
    if (this.header === undefined) return undefined;
    const logAt = this.header.base + this.at - segmentHeaderBytes(this.partitions);
    return { segment: this.header.number, at: this.at, logAt };
  }

  /** Next free position per partition at `place`; undefined while not known. */
  get next(): readonly number[] | undefined {
    return this.nextFree;
  }

  /**
   * The next frames, about `maxBytes` of them but at least one; undefined when there is none yet.
   * Errors: TRB-STREAM-CORRUPT.
   */
  async read(maxBytes: number): Promise<Window | undefined> {
    let atLeast = 0;
    let retries = 0;
    for (;;) {
      if (this.file === undefined || this.header === undefined) {
        await this.openFirst([], undefined);
        if (this.file === undefined || this.header === undefined) return undefined;
      }
      const size = Math.min(await this.file.size(), this.end ?? Number.POSITIVE_INFINITY);
      let bytes: Buffer = Buffer.alloc(0);
      if (size > this.at) {
        const chunk = alignedBuffer(Math.min(size - this.at, Math.max(maxBytes, atLeast)));
        bytes = chunk.subarray(0, await this.file.read(chunk, this.at));
        const { frames, end, tail } = this.framesOf(bytes);
        if (frames.length > 0) {
          const window = await this.deliver(bytes, frames, end);
          if (window !== undefined) return window;
          // Fenced: how much of the segment counts is known once the next one is there.
          if (!(await this.findEnd())) return undefined;
          continue;
        }
        if (tail.kind === "partial" && tail.needs > bytes.length && tail.needs <= size - this.at) {
          atLeast = tail.needs;
          continue;
        }
      }
      if (this.end === this.at) {
        if (!(await this.goToNextSegment())) return undefined;
        continue;
      }
      // Nothing whole here: the writer is at it, or has gone on to the next segment, or something is damaged.
      if (bytes.length > 8 && this.hasLaterMarker(bytes)) {
        // A read that ran across an undone write and its successor can look so too, but not again and again.
        if (retries++ === 3) throw damaged(this.header.number, this.at);
        continue;
      }
      if (this.end !== undefined) throw damaged(this.header.number, this.at);
      // Once there is a later segment what counts of this one no longer changes. Read it again: frames may have been
      // added between the read above and the making of that segment.
      if (!(await this.findEnd())) return undefined;
    }
  }

  /** Finds where this segment ends; false while there is none after it. */
  private async findEnd(): Promise<boolean> {
    const opened = await this.openLater();
    if (opened === undefined) return false;
    await opened.file.close();
    this.end = opened.header.base - this.header!.base + segmentHeaderBytes(this.partitions);
    // Events between, in segments that are gone, would be missing.
    if (this.end < this.at) throw damaged(this.header!.number, this.at);
    return true;
  }

  /** The first segment after this one. What was trimmed between held no events, or none that are still needed. */
  private async openLater(): Promise<OpenSegment | undefined> {
    for (const candidate of await listSegments(this.files, this.folder)) {
      if (candidate <= this.header!.number) continue;
      const opened = await openSegment(this.files, this.folder, candidate, this.partitions);
      if (opened !== undefined) return opened;
    }
    return undefined;
  }

  private framesOf(bytes: Buffer) {
    const marker = this.header!.marker;
    const frames: Frame[] = [];
    let at = 0;
    let next = this.nextFree;
    for (;;) {
      const frame = readFrame(bytes, at, marker, this.partitions);
      if ("kind" in frame) return { frames, end: at, tail: frame };
      if (next?.some((position, p) => position !== frame.first[p])) {
        throw damaged(this.header!.number, this.at + at);
      }
      frames.push(frame);
      next = frame.next;
      at += frame.length;
    }
  }

  /** Undefined when the only frame there is may not count. */
  private async deliver(bytes: Buffer, frames: Frame[], end: number): Promise<Window | undefined> {
    if (!hasMarker(bytes, end, this.header!.marker)) {
      // The last frame is not known to be durable. If there are others, deliver those: by the next read this one
      // often has a successor, and the sync is saved.
      if (frames.length > 1) end = frames.pop()!.at;
      else {
        await this.file!.dataSync();
        // A name that stands now says that no new writer has read this segment before the frame was in it.
        const counts = this.end !== undefined || this.hasLaterMarker(bytes, end + 8);
        if (!counts && !(await this.isOpen())) return undefined;
      }
    }
    const window = { bytes, frames, segment: this.header!.number, at: this.at, logAt: this.place!.logAt };
    this.at += end;
    this.nextFree = frames.at(-1)!.next;
    return window;
  }

  private async isOpen(): Promise<boolean> {
    const path = join(logFolder(this.folder), segmentName(this.header!.number));
    return (await this.files.stat(path)) !== undefined;
  }

  private hasLaterMarker(bytes: Buffer, from = 8): boolean {
    const { marker } = this.header!;
    for (let at = bytes.indexOf(marker, from); at >= 0; at = bytes.indexOf(marker, at + 1)) {
      if (at % 8 === 0) return true;
    }
    return false;
  }

  /** False when the next segment was trimmed and none is left to see yet. */
  private async goToNextSegment(): Promise<boolean> {
    const opened = await this.openLater();
    if (opened === undefined) return false;
    // Empty segments between may be trimmed; events may not, as long as this consumer is not done with them.
    if (this.nextFree?.some((position, p) => position !== opened.header.first[p])) {
      await opened.file.close();
      throw damaged(this.header!.number, this.at);
    }
    await this.file!.close();
    this.use(opened.file, opened.header);
    return true;
  }

  /** Goes to the end of what is durable; resolves to the next free positions. */
  async skipToEnd(): Promise<readonly number[]> {
    for (;;) {
      await this.hop();
      const window = await this.read(SKIP_BYTES);
      if (window === undefined) return this.nextFree ?? Array.from({ length: this.partitions }, () => 1);
    }
  }

  /** Passes over frames that have a successor, which are durable, by their headers alone. */
  private async hop(): Promise<void> {
    if (this.file === undefined || this.header === undefined) return;
    const { marker } = this.header;
    const header = Buffer.alloc(frameHeaderBytes(this.partitions));
    if ((await this.file.read(header, this.at)) < header.length || !hasMarker(header, 0, marker)) return;
    for (;;) {
      const after = this.at + frameLength(header);
      if ((await this.file.read(header, after)) < header.length || !hasMarker(header, 0, marker)) return;
      this.at = after;
      this.nextFree = firstPositions(header, 0, this.partitions);
    }
  }

  async close(): Promise<void> {
    await this.file?.close();
    this.file = undefined;
  }
}
