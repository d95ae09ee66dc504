import { join } from "node:path";
import { TributaryError } from "../../base/errors.js";
import { type FileOps, isAbsent, temporarySuffix, writeFully } from "../../base/files.js";
import {
  damaged,
  fencedName,
  listSegments,
  logFolder,
  openSegment,
  type StreamIdentity,
  segmentName,
  segmentPath,
} from "./folder.js";
import { alignedBuffer, hasMarker, readFrame, type SegmentHeader, segmentHeaderBytes } from "./format.js";
import { readAllLowWater } from "./low-water.js";

/** A segment as the writer keeps it in mind. */
export interface SegmentSummary {
  readonly number: number;
  readonly base: number;
  readonly first: readonly number[];
}

export interface Recovered {
  /** Ascending. */
  readonly segments: SegmentSummary[];
  /** Frame bytes of the whole log, and first free position per partition. */
  readonly bytes: number;
  readonly next: readonly number[];
}

const SCAN_BYTES = 8 * 1024 * 1024;

/**
 * Keeps whoever writes the log from acknowledging anything more. Resolves to the number of the newest segment, which
 * holds the last of what was acknowledged; undefined when there is none.
 *
 * A segment gets its name by a link from its temporary file: without that, one begun meanwhile never appears. They are
 * removed twice. After the renaming, for the writer that had the newest segment and is about to begin the next. Before
 * it, for another that takes over as we do and is about to begin this very segment: renaming frees its name, and there
 * would be two of one number. Whoever makes a temporary file later than we look finds the newest segment (`endsBefore`).
 */
async function fence(files: FileOps, folder: string): Promise<number | undefined> {
  for (;;) {
    const newest = (await listSegments(files, folder)).at(-1);
    await removeTemporary(files, folder);
    if (newest !== undefined) {
      const path = (name: string) => join(logFolder(folder), name);
      await unlessAbsent(files.rename(path(segmentName(newest)), path(fencedName(newest))));
      await removeTemporary(files, folder);
    }
    if ((await listSegments(files, folder)).at(-1) === newest) return newest;
  }
}

async function removeTemporary(files: FileOps, folder: string): Promise<void> {
  for (const { name } of await files.list(logFolder(folder))) {
    if (name.endsWith(temporarySuffix)) await unlessAbsent(files.unlink(join(logFolder(folder), name)));
  }
}

/**
 * Whether segment `number` is still the next one: no other writer has begun it, under whichever name it has now. Asked
 * with the temporary file of ours in place, so that whoever begins it later, and fences it, has removed that file.
 */
export async function endsBefore(files: FileOps, folder: string, number: number): Promise<boolean> {
  if ((await segmentPath(files, folder, number)) !== undefined) return false;
  // Begun, consumed and deleted: then the one before it was deleted earlier. In this order, therefore.
  if (number > 1) return (await segmentPath(files, folder, number - 1)) !== undefined;
  return (await listSegments(files, folder)).length === 0;
}

async function unlessAbsent(step: Promise<void>): Promise<void> {
  try {
    await step;
  } catch (error) {
    if (!isAbsent(error)) throw error;
  }
}

/**
 * Takes the log over and finds where a writer goes on: at the end of the last whole frame; all up to there is durable
 * when this resolves. Bytes behind it, of a frame that was torn or that a fenced writer is still at, stay and are not
 * counted. Never leaves out an acknowledged frame: what it cannot explain as a torn tail is TRB-STREAM-CORRUPT.
 * Undefined when another writer has gone on meanwhile and the newest segment is no longer there.
 */
export async function recover(
  files: FileOps,
  folder: string,
  identity: StreamIdentity,
): Promise<Recovered | undefined> {
  const last = await fence(files, folder);
  const partitions = identity.partitions.length;
  const numbers = (await listSegments(files, folder)).filter((number) => number <= (last ?? 0));
  const segments: SegmentSummary[] = [];
  let most: number | undefined;
  for (const [i, number] of numbers.entries()) {
    if (i > 0 && number !== numbers[i - 1]! + 1) throw damaged(numbers[i - 1]! + 1, 0);
    const opened = await openSegment(files, folder, number, partitions);
    if (opened === undefined) {
      // Deleted since the listing by whoever writes now, and so is all before it.
      segments.length = 0;
      most = undefined;
      continue;
    }
    const size = await opened.file.size().finally(() => opened.file.close());
    const { base, first } = opened.header;
    if (most !== undefined && base > most) throw damaged(number - 1, 0);
    most = base + size - segmentHeaderBytes(partitions);
    segments.push({ number, base, first });
  }
  const start = { bytes: 0, next: identity.partitions.map(() => 1) };
  // Only the last segment can have a torn tail: a segment is begun when the one before is whole and durable.
  const end = last === undefined ? start : await recoverSegment(files, folder, identity, last);
  return end && { segments, ...end };
}

async function recoverSegment(
  files: FileOps,
  folder: string,
  identity: StreamIdentity,
  number: number,
): Promise<{ bytes: number; next: readonly number[] } | undefined> {
  const partitions = identity.partitions.length;
  const opened = await openSegment(files, folder, number, partitions, "write");
  if (opened === undefined) return undefined;
  const { file, header } = opened;
  try {
    const size = await file.size();
    let end = segmentHeaderBytes(partitions);
    let next = header.first;
    let lastFrame: { at: number; bytes: Buffer } | undefined;
    let scan = SCAN_BYTES;
    while (end < size) {
      const chunk = alignedBuffer(Math.min(scan, size - end));
      const bytes = chunk.subarray(0, await file.read(chunk, end));
      let at = 0;
      let frame = readFrame(bytes, at, header.marker, partitions);
      while (!("kind" in frame)) {
        if (frame.first.some((position, p) => position !== next[p])) throw damaged(number, end + at);
        lastFrame = { at: end + at, bytes: bytes.subarray(at, at + frame.length) };
        next = frame.next;
        at += frame.length;
        frame = readFrame(bytes, at, header.marker, partitions);
      }
      end += at;
      scan = SCAN_BYTES;
      if (at > 0) continue;
      if (frame.kind === "partial" && frame.needs <= size - end && frame.needs > bytes.length) {
        scan = frame.needs;
        continue;
      }
      break;
    }
    if (end < size) await assertTornTail(file, header, end, size);
    await assertCoversLowWater(files, folder, identity, next);
    // The frame that was last may never have reached the disk although reading shows it: after a failed sync the
    // system can keep its pages and call them clean. Written once more, its bytes are synced for certain.
    if (lastFrame !== undefined) await writeFully(file, lastFrame.bytes, lastFrame.at);
    await file.dataSync();
    return { bytes: header.base + end - segmentHeaderBytes(partitions), next };
  } finally {
    await file.close();
  }
}

/**
 * A frame is begun only when the one before it is durable. So a marker behind an unreadable frame proves that this
 * frame was acknowledged, and that it is damaged rather than torn.
 */
async function assertTornTail(
  file: { read(into: Uint8Array, at: number): Promise<number> },
  header: SegmentHeader,
  end: number,
  size: number,
): Promise<void> {
  let from = end + 8;
  while (from < size) {
    const chunk = alignedBuffer(Math.min(SCAN_BYTES, size - from));
    const bytes = chunk.subarray(0, await file.read(chunk, from));
    for (let at = bytes.indexOf(header.marker); at >= 0; at = bytes.indexOf(header.marker, at + 1)) {
      if ((from + at) % 8 === 0 && hasMarker(bytes, at, header.marker)) throw damaged(header.number, end);
    }
    if (bytes.length < SCAN_BYTES) break;
    from += bytes.length; // frames stand at multiples of 8, as do chunks: no marker straddles two
  }
}

/** What a consumer is done with was acknowledged; a log that ends before it has lost frames. */
async function assertCoversLowWater(
  files: FileOps,
  folder: string,
  identity: StreamIdentity,
  next: readonly number[],
): Promise<void> {
  for (const record of await readAllLowWater(files, folder, identity.partitions)) {
    if (record.done.some((position, p) => position >= next[p]!)) {
      throw new TributaryError("TRB-STREAM-CORRUPT", "the log ends before what a consumer has read from it");
    }
  }
}
