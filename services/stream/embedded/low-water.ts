import { join } from "node:path";
import { TributaryError } from "../../base/errors.js";
import { type FileOps, readWhole, replaceDurably, temporarySuffix } from "../../base/files.js";
import { formatPosition, parsePosition } from "../positions.js";
import { consumersFolder } from "./folder.js";

/** A consumer's durable record: all it is done with, and where in the log reading resumes. */
export interface LowWater {
  /** Last position done per partition; 0 = none. */
  readonly done: readonly number[];
  /** First frame with an event that may not be done: segment number and offset in its file. */
  readonly segment: number;
  readonly at: number;
  /** The same place counted in frame bytes from the beginning of the whole log. */
  readonly bytes: number;
}

const SUFFIX = ".json";

export async function readLowWater(
  files: FileOps,
  folder: string,
  consumer: string,
  partitions: readonly string[],
): Promise<LowWater | undefined> {
  const bytes = await readWhole(files, join(consumersFolder(folder), consumer + SUFFIX));
  if (bytes === undefined) return undefined;
  const bad = (cause?: unknown) =>
    new TributaryError("TRB-STREAM-CORRUPT", "a consumer's low-water record is damaged", { cause });
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString("utf8"));
  } catch (cause) {
    throw bad(cause);
  }
  if (typeof value !== "object" || value === null) throw bad();
  const { format, checkpoint, segment, at, bytes: offset } = value as Record<string, unknown>;
  const isCount = (n: unknown): n is number => typeof n === "number" && Number.isSafeInteger(n) && n >= 0;
  if (format !== 1 || !isCount(segment) || !isCount(at) || !isCount(offset)) throw bad();
  if (typeof checkpoint !== "object" || checkpoint === null) throw bad();
  const done = partitions.map((name) => {
    const position: unknown = (checkpoint as Record<string, unknown>)[name];
    if (position === undefined) return 0;
    if (typeof position !== "string") throw bad();
    return parsePosition(position);
  });
  return { done, segment, at, bytes: offset };
}

export async function writeLowWater(
  files: FileOps,
  folder: string,
  consumer: string,
  partitions: readonly string[],
  record: LowWater,
): Promise<void> {
  const checkpoint: Record<string, string> = {};
  partitions.forEach((name, p) => {
    if (record.done[p]! > 0) checkpoint[name] = formatPosition(record.done[p]!);
  });
  const { segment, at, bytes } = record;
  const text = JSON.stringify({ format: 1, checkpoint, segment, at, bytes });
  await replaceDurably(files, join(consumersFolder(folder), consumer + SUFFIX), Buffer.from(`${text}\n`));
}

export async function readAllLowWater(
  files: FileOps,
  folder: string,
  partitions: readonly string[],
): Promise<LowWater[]> {
  const records: LowWater[] = [];
  for (const { name } of await files.list(consumersFolder(folder))) {
    if (!name.endsWith(SUFFIX) || name.endsWith(temporarySuffix)) continue;
    const record = await readLowWater(files, folder, name.slice(0, -SUFFIX.length), partitions);
    if (record !== undefined) records.push(record);
  }
  return records;
}
