import type { Mapping } from "../sources/mapping.js";
import type { Mark } from "../sources/splitter.js";
import type { ReadUnit } from "../sources/unit.js";
import type { WrittenFile } from "../table/data-file.js";

/** What a process that makes chunks of files is told, one call at a time. Plain, as messages between processes are. */

/** Begins a file. */
export interface OpenFile {
  readonly type: "open";
  readonly unit: ReadUnit;
  /** Its number in the manifest. */
  readonly file: number;
  readonly from: Mark;
  readonly mapping: Mapping;
  /** A FileDescriptorSet. */
  readonly descriptors: Uint8Array;
  readonly entityType: string;
  /** Rows of others are rejected. */
  readonly tenant: string | undefined;
  readonly stream: string;
  readonly partition: string;
  /** Where each chunk is written: a path at which nothing is, when one is asked for. */
  readonly out: string;
}

/** The next chunk of the file that is open: about so much of it. */
export interface NextChunk {
  readonly type: "next";
  readonly rows: number;
  readonly bytes: number;
}

export type ChunkRequest = OpenFile | NextChunk;

export interface Chunk {
  /** Without rows there is no file. */
  readonly file: WrittenFile;
  /** Where the next one begins. */
  readonly next: Mark;
  /** Nothing comes after it. */
  readonly end: boolean;
  readonly rejects: number;
  /** Of the source, unpacked. */
  readonly bytes: number;
}
