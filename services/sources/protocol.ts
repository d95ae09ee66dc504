import type { Code } from "../base/codes.js";
import type { DeltaListing } from "./delta-log.js";
import type { Reject, SourceColumn } from "./formats.js";
import type { Mark } from "./splitter.js";
import type { ReadUnit } from "./unit.js";

/** What a process that reads sources is started with. */
export interface ReaderOptions {
  readonly memoryBytes: number;
}

/** The first rows of a file. */
export interface Sample {
  /** What a mapping may name: columns, or, of lines of JSON, fields of the records seen. */
  readonly columns: readonly SourceColumn[];
  /** Each as the text of a JSON object, cut after SAMPLE_CHARACTERS; a ChangeEvent as {"event": base64}. */
  readonly rows: readonly string[];
  readonly rejects: readonly Reject[];
}
export const SAMPLE_CHARACTERS = 64 * 1024;

/** What a whole file comes to. */
export interface Counted {
  readonly rows: number;
  readonly rejects: number;
  /** Of the file, unpacked. */
  readonly bytes: number;
}

/** Messages to the process, one at a time. */
export type Request =
  | { readonly type: "sample"; readonly unit: ReadUnit; readonly rows: number }
  /** Reads all of it, and tells the rejects as they come. */
  | { readonly type: "count"; readonly unit: ReadUnit; readonly from: Mark }
  | { readonly type: "delta"; readonly shown: string; readonly log: readonly (readonly [string, string])[] };

export interface Results {
  readonly sample: Sample;
  readonly count: Counted;
  readonly delta: DeltaListing;
}

/** Messages from the process. Others may come before "done" or "failed". Each is a sign that it gets on. */
export type Reply =
  | { readonly type: "progress" }
  | { readonly type: "rejects"; readonly rejects: readonly Reject[] }
  | { readonly type: "done"; readonly result: unknown }
  | { readonly type: "failed"; readonly code: Code; readonly message: string };
