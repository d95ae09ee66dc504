import type { BoundModel } from "../../models/bind.js";
import type { Reject } from "../../sources/formats.js";
import type { Mapping } from "../../sources/mapping.js";
import type { Mark } from "../../sources/splitter.js";
import type { ReadUnit } from "../../sources/unit.js";
import type { WrittenFile } from "../../table/data-file.js";
import type { TenantRange } from "../../table/key-ranges.js";
import type { Leaves } from "./event-types.js";
import type { Aside, PayloadOrder } from "./payloads-aside.js";
import type { EventDigest } from "./row-digests.js";
import type { SourcePlace } from "./row-events.js";

/** What a process that makes chunks of files is told, one call at a time. Plain, as messages between processes are. */

/** A file that is to be read. */
export interface FileToRead {
  readonly unit: ReadUnit;
  /** Its number in the manifest. */
  readonly file: number;
  /** As it was listed. */
  readonly bytes: number;
}

/** A record that is no event, and the number of its file. */
export interface FileReject extends Reject {
  readonly file: number;
}

/** Begins files, at least one: chunks go on from each into the next. */
export interface OpenFiles {
  readonly type: "open";
  /** In the order of their numbers. */
  readonly files: readonly FileToRead[];
  /** In the first one. */
  readonly from: Mark;
  /** None for whole events. */
  readonly mapping: Mapping | undefined;
  readonly payloads: PayloadOrder;
  /** Of whole events, what others of the same job land. */
  readonly leaves: Leaves | undefined;
  /** A FileDescriptorSet. */
  readonly descriptors: Uint8Array;
  readonly entityType: string;
  /** Rows of others are rejected. */
  readonly tenant: string | undefined;
  readonly stream: string;
  readonly partition: string;
  /** Where each chunk is written: a path at which nothing is, when one is asked for. */
  readonly out: string;
  /** What is to be made of it beside. */
  readonly models: readonly ChunkModel[];
  /** Of mapped files: digests instead of a raw file, and hashes of what models make instead of it (row-digests.ts). */
  readonly asDigests?: boolean;
}

/** A model, and where what it makes of a chunk is written. */
export interface ChunkModel extends Pick<BoundModel, "name" | "sql" | "columns"> {
  readonly out: string;
  readonly tombstones: string;
}

/** What a model makes of a chunk: files of its table, in the order of keys. */
export interface ModelChunk {
  readonly name: string;
  readonly rows: WrittenFile;
  /** Undefined without tombstones. */
  readonly tombstones: WrittenFile | undefined;
}

/** What models make of a chunk. Those that could not be given its rows are not among them: they have to read raw. */
export interface RefinedChunk {
  readonly models: readonly ModelChunk[];
  /** Of the keys that these are about. */
  readonly ranges: readonly TenantRange[];
  /** When its rows were received, in ms since the epoch. */
  readonly receivedAt: number;
}

/** Tells what types of events a file holds. */
export interface ListTypes {
  readonly type: "types";
  readonly unit: ReadUnit;
  /** A FileDescriptorSet. */
  readonly descriptors: Uint8Array;
}

/** What is known of files that were opened. */
export interface Opened {
  /** Of the whole first one, where that is known without reading it. */
  readonly rows: number | undefined;
}

/** The next chunk of the files that are open: about so much of them. */
export interface NextChunk {
  readonly type: "next";
  readonly rows: number;
  readonly bytes: number;
}

/** The last chunk once more, at the same place, without the records of these positions: what they refer to is not there. */
export interface LeaveOut {
  readonly type: "leave";
  readonly positions: readonly string[];
}

export type ChunkRequest = OpenFiles | NextChunk | LeaveOut | ListTypes;

export interface Chunk {
  /** Without rows there is no file. */
  readonly file: WrittenFile;
  /** Where the next one begins. */
  readonly next: SourcePlace;
  /** Nothing of the files comes after it. */
  readonly end: boolean;
  readonly rejects: number;
  /** Of the source, unpacked. */
  readonly bytes: number;
  /** Payloads that do not lie in the file: to be seen to before it is committed. */
  readonly aside?: Aside | undefined;
  readonly refined?: RefinedChunk | undefined;
  /** By tenant; then there is no file, but `file` has the number of its rows. */
  readonly digests?: readonly (readonly [tenant: string, EventDigest])[] | undefined;
}
