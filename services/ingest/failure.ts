import type { Code } from "../base/codes.js";
import {
  type EngineError,
  engineErrorOf,
  isCutShort,
  isEngineGone,
  isMemoryError,
} from "../base/engine-error.js";
import { errno, hasCode, TributaryError } from "../base/errors.js";

/** What is told of a failure where others than the operator of this machine read it: no path, no value, no tenant. */
export interface Told {
  readonly code: Code;
  readonly reason: string;
}

/** Codes whose messages our own table and model code words; others may carry what a library said. */
export function tell(error: unknown): Told {
  if (error instanceof TributaryError) return { code: error.code, reason: error.message };
  const system = errno(error);
  if (system !== undefined) return { code: "TRB-STORE-FAILED", reason: `the file system says ${system}` };
  const engine = engineErrorOf(error);
  if (engine !== undefined) {
    if (DISK_FULL.test(engine.message)) {
      return { code: "TRB-STORE-FAILED", reason: "a disk is full: the lake's or the scratch folder's" };
    }
    if (isMemoryError(engine)) {
      return { code: "TRB-INGEST-MEMORY", reason: "it needs more memory than ingest.duckdbMemoryBytes" };
    }
    if (isCutShort(engine)) {
      const reason =
        "a file of the table cannot be read to its end: it is damaged, or memory does not suffice";
      return { code: "TRB-TABLE-CORRUPT", reason };
    }
    if (isFileError(engine)) {
      return { code: "TRB-TABLE-CORRUPT", reason: "a file of the table is missing or damaged" };
    }
  }
  return { code: "TRB-INTERNAL", reason: "a fault in Tributary itself; the log of ingest tells more" };
}

/** Of types IO and Out of Memory alike: spilling is how the engine gets memory. */
const DISK_FULL = /No space left on device|disk is full/i;

/** "Invalid" is what Parquet's own encoding is; "Invalid Input" is said of values as well. */
const isFileError = ({ type, message }: EngineError): boolean =>
  type === "IO" ||
  type === "Invalid" ||
  (type === "Invalid Input" && /^Failed to read file|magic bytes|Parquet file/i.test(message));

const ENDS: ReadonlySet<Code> = new Set(["TRB-STREAM-FENCED", "TRB-LAKE-CLOSED"]);

/** True of what `isFatal` says yes to because this lake has moved. */
export function isLakeClosed(error: unknown): boolean {
  if (hasCode(error, "TRB-LAKE-CLOSED")) return true;
  return error instanceof Error && isLakeClosed(error.cause);
}

/** After such an error, or what it has caused, only a new process helps. */
export function isFatal(error: unknown): boolean {
  const engine = engineErrorOf(error);
  if (engine !== undefined && isEngineGone(engine)) return true;
  // Another process does what this one did, or another lake takes what this one took.
  if (error instanceof TributaryError && ENDS.has(error.code)) return true;
  return error instanceof Error && error.cause !== undefined && isFatal(error.cause);
}
