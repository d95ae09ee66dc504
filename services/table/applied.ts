import type { TableFile } from "./types.js";

/** What a writer tells its locator of its own commits, so that nothing of them is read back. */

/** Records of the rows of one file, to be put in the index once the file is part of the table. */
export interface Relocation {
  readonly path: string;
  readonly records: Uint32Array;
}

/** What a commit of this process did to where entities stand. */
export interface Applied {
  readonly version: number;
  /** Files in which no entity stands any more. */
  readonly gone?: readonly string[];
  /** Records of an upsert that now stand in a new file, by ordinal, in the file's order. */
  readonly placed?: readonly Placement[];
  /** A compaction: entities that stood in one of `sources` stand where `relocations` say; none for tombstones. */
  readonly moved?: {
    readonly relocations: readonly (Relocation | undefined)[];
    readonly sources: readonly TableFile[];
  };
}

export interface Placement {
  readonly records: Uint32Array;
  /** By row of the file; undefined for a row that is masked. */
  readonly ords: readonly (number | undefined)[];
  /** Path of the file, as in its add. */
  readonly path: string;
  readonly tombstones: boolean;
}
