import { join } from "node:path";
import { packageRoot } from "../../base/paths.js";
import type { Reject } from "../../sources/formats.js";
import type { WrittenFile } from "../../table/data-file.js";
import type { NextChunk } from "./chunk-protocol.js";

/** The order that raw files are compacted into, so that a chunk needs no compaction. */
export const ORDER = ["tenant_id", "entity_id"];
/** What a chunk without rows is written as. */
export const NO_FILE: WrittenFile = { rows: 0, bytes: 0, statistics: {} };

/** The compiled worker: a child process needs JavaScript, also when the parent runs from source. */
export const CHUNK_WORKER = join(packageRoot, "dist", "services", "bulk", "chunks", "chunk-worker.js");

/**
 * About what one chunk holds; whichever is reached first. Files of so many rows are left alone by compaction, and its
 * process has memory for them.
 */
export const CHUNK: Pick<NextChunk, "rows" | "bytes"> = { rows: 120_000, bytes: 64 * 1024 * 1024 };

/** What a chunk has taken in of its files, and what of the files is left. */
export interface Taken {
  readonly rows: number;
  readonly bytes: number;
  readonly rejectedBytes: number;
  readonly left: number;
}

/** Of a whole chunk, what may be left of its files and go with it: a small file of its own would be compacted. */
const REST = 0.5;

/** Whether a chunk that should hold so much is whole. */
export function isWhole({ rows, bytes }: Pick<NextChunk, "rows" | "bytes">, taken: Taken): boolean {
  if (taken.rejectedBytes >= REJECTED_BYTES) return true;
  const full = Math.max(taken.rows / rows, taken.bytes / bytes);
  return full >= 1 + REST || (full >= 1 && taken.left > REST * taken.bytes);
}

/** Rejects wait in memory until their chunk is whole: with so many bytes of them it is. */
export const REJECTED_BYTES = 32 * 1024 * 1024;
/** What one takes beside its bytes. */
const REJECT_COST = 256;
export const costOf = (rejects: readonly Reject[]): number =>
  rejects.reduce((sum, { bytes }) => sum + bytes.length + REJECT_COST, 0);
