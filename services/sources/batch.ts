import type { Reject, SourceColumn } from "./formats.js";
import type { Mark, Records } from "./splitter.js";

/** Some consecutive records of a file. */
export interface Batch {
  /**
   * Trusted SQL: ORDINAL, then the reader's columns, rows in order of ORDINAL. Good until the next batch is asked for;
   * a statement may name it once.
   */
  readonly sql: string;
  /** The same rows where they are ChangeEvents, for whoever needs no engine to look at them. */
  readonly events?: Records | undefined;
  /** Records [first, next.row) of the file; those that are neither in `sql` nor in `rejects` have been deleted. */
  readonly first: number;
  /** Where reading goes on after this batch, now or in another process. */
  readonly next: Mark;
  /** Of the relation. Whoever streams it counts: a stream that fails midway just ends. */
  readonly rows: number;
  /** Of the file, unpacked. */
  readonly bytes: number;
  /** What is left of the file behind it, unpacked: of one that is packed, if it goes on being packed so well. */
  readonly left: number;
  /** In order. */
  readonly rejects: readonly Reject[];
  /**
   * Where records may be none though they look so: takes those out of the relation, and tells of them in order. Until
   * then the engine may fail on them. Undefined where all are known to be records.
   */
  readonly sift?: (() => Promise<readonly Reject[]>) | undefined;
}

/** The batch whose records are known to be some. */
export async function sifted({ sift, ...batch }: Batch): Promise<Batch> {
  const found = (await sift?.()) ?? [];
  if (found.length === 0) return batch;
  const rejects = [...batch.rejects, ...found].sort((a, b) => a.row - b.row);
  return { ...batch, rows: batch.rows - found.length, rejects };
}

/** One format's way to read a file. Errors of the engine come as they are. */
export interface FormatReader {
  readonly columns: readonly SourceColumn[];
  /** Of the whole file, where that is known without reading it. */
  readonly rows?: number;
  batches(from: Mark): AsyncGenerator<Batch>;
}
