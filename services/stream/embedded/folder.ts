import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { TributaryError } from "../../base/errors.js";
import {
  createDurably,
  ensureFolder,
  type FileOps,
  isAbsent,
  type OpenFile,
  readWhole,
} from "../../base/files.js";
import { decodeSegmentHeader, type SegmentHeader, segmentHeaderBytes } from "./format.js";

/*
 * On disk: FOLDER/stream.json (name and partitions, written once), FOLDER/log/000000000001.seg …,
 * FOLDER/consumers/<name>.json (low-water records), FOLDER/writer@….lock,
 * FOLDER/closed.json once it has ended for good.
 *
 * Of writers, one: who takes over renames the newest segment to 000000000007.fenced.seg before reading it. A writer
 * acknowledges only while its segment still has the name it gave it, so all it has acknowledged was there to be read.
 * What it wrote later is not counted: a segment ends where the header of the next one says.
 */
export const logFolder = (folder: string) => join(folder, "log");
export const consumersFolder = (folder: string) => join(folder, "consumers");
export const segmentName = (number: number) => `${String(number).padStart(12, "0")}.seg`;
export const fencedName = (number: number) => `${String(number).padStart(12, "0")}.fenced.seg`;

/** There once the log has ended for good. */
export const closedPath = (folder: string) => join(folder, "closed.json");

export interface StreamIdentity {
  readonly name: string;
  readonly partitions: readonly string[];
}

const MAX_PARTITIONS = 1024;

/**
 * Reads what the stream is, or settles it when this is the first process to come. `partitions` must fit an existing
 * stream: another count would send an entity's events to two partitions. Errors: TRB-CONFIG, TRB-STREAM-CORRUPT.
 */
export async function openIdentity(
  files: FileOps,
  folder: string,
  partitions: number | undefined,
): Promise<StreamIdentity> {
  const path = join(folder, "stream.json");
  let bytes = await readWhole(files, path);
  // Who only looks leaves nothing behind.
  if (bytes === undefined && partitions === undefined) {
    throw new TributaryError("TRB-CONFIG", "stream: there is none in this folder yet");
  }
  await ensureFolder(files, logFolder(folder));
  await ensureFolder(files, consumersFolder(folder));
  if (bytes === undefined) {
    if (!isCount(partitions)) {
      throw new TributaryError(
        "TRB-CONFIG",
        `stream.partitions: expected 1 to ${MAX_PARTITIONS}, found ${partitions}`,
      );
    }
    const begun = (await listSegments(files, folder)).length > 0;
    // Unless another process has settled it since we looked.
    if (begun && (await files.stat(path)) === undefined) {
      throw new TributaryError("TRB-STREAM-CORRUPT", "stream.json is gone while segments are there");
    }
    // The name is part of every table's progress. A log that starts anew in place of a lost one must get a new name,
    // or tables would take its first positions for events they already have.
    const identity = { format: 1, name: `embedded-${randomBytes(4).toString("hex")}`, partitions };
    await createDurably(files, path, Buffer.from(`${JSON.stringify(identity)}\n`));
    bytes = await readWhole(files, path);
  }
  // Whoever made it may have died before its name was durable; the name is about to be part of tables' progress.
  await files.syncFolder(folder);
  let found: unknown;
  try {
    found = JSON.parse(bytes?.toString("utf8") ?? "");
  } catch (cause) {
    throw new TributaryError("TRB-STREAM-CORRUPT", "stream.json is not readable", { cause });
  }
  if (!isIdentity(found)) throw new TributaryError("TRB-STREAM-CORRUPT", "stream.json has a wrong shape");
  if (partitions !== undefined && partitions !== found.partitions) {
    throw new TributaryError(
      "TRB-CONFIG",
      `stream.partitions: expected ${found.partitions}, as this stream was made with, found ${partitions}`,
    );
  }
  return { name: found.name, partitions: Array.from({ length: found.partitions }, (_, p) => String(p)) };
}

const isCount = (partitions: unknown): partitions is number =>
  Number.isInteger(partitions) && (partitions as number) >= 1 && (partitions as number) <= MAX_PARTITIONS;

function isIdentity(value: unknown): value is { name: string; partitions: number } {
  if (typeof value !== "object" || value === null) return false;
  const { format, name, partitions } = value as Record<string, unknown>;
  return format === 1 && typeof name === "string" && typeof partitions === "number";
}

/** Numbers of the segments that are there, ascending. */
export async function listSegments(files: FileOps, folder: string): Promise<number[]> {
  const numbers = new Set<number>();
  for (const { name } of await files.list(logFolder(folder))) {
    const match = /^(\d{12})(?:\.fenced)?\.seg$/.exec(name);
    if (match !== null) numbers.add(Number(match[1]));
  }
  return [...numbers].sort((a, b) => a - b);
}

/** What a segment is called at the moment; undefined when it is gone. */
export async function segmentPath(
  files: FileOps,
  folder: string,
  number: number,
): Promise<string | undefined> {
  // In this order: a segment may be renamed between the two looks, but never back.
  for (const name of [segmentName(number), fencedName(number)]) {
    const path = join(logFolder(folder), name);
    if ((await files.stat(path)) !== undefined) return path;
  }
  return undefined;
}

export interface OpenSegment {
  readonly file: OpenFile;
  readonly header: SegmentHeader;
}

/** Undefined when the segment is gone. Segments appear whole, so a bad header is damage: TRB-STREAM-CORRUPT. */
export async function openSegment(
  files: FileOps,
  folder: string,
  number: number,
  partitions: number,
  how: "read" | "write" = "read",
): Promise<OpenSegment | undefined> {
  let file: OpenFile | undefined;
  for (const name of [segmentName(number), fencedName(number)]) {
    try {
      file = await files.open(join(logFolder(folder), name), how);
      break;
    } catch (error) {
      if (!isAbsent(error)) throw error;
    }
  }
  if (file === undefined) return undefined;
  try {
    const bytes = Buffer.alloc(segmentHeaderBytes(partitions));
    const got = await file.read(bytes, 0);
    const header = decodeSegmentHeader(bytes.subarray(0, got), partitions);
    if (header === undefined || header.number !== number) throw damaged(number, 0);
    return { file, header };
  } catch (error) {
    await file.close();
    throw error;
  }
}

export const damaged = (segment: number, at: number): TributaryError =>
  new TributaryError(
    "TRB-STREAM-CORRUPT",
    `segment ${segment}, byte ${at}: expected the next frame of the log`,
    { details: { segment, at } },
  );
