import { z } from "zod";
import { TributaryError } from "../base/errors.js";
import type { ObjectStore } from "../storage/object-store.js";

/**
 * How the lake's tables are doing, as ingest last wrote it: one small object in the lake, replaced on every change and
 * now and then without one. Bus, query and the command line read it, on whatever machine they run. It is a report,
 * never a lock: nothing is decided by it but what a producer or an operator is told.
 */
const KEY = "status/ingest.json";

const tableStatus = z.object({
  /** "raw" holds an entity type's events, "model" a refined table, "dead-letters" what could not be taken in. */
  kind: z.enum(["raw", "model", "dead-letters"]),
  /** The entity type of a raw table, the name of a model (`scm.files`), or `dead_letters`. */
  name: z.string(),
  entityType: z.string(),
  /**
   * `quarantined`: it cannot go on and is tried again with growing pauses. `catching-up`: it reads raw to get in step, or
   * is slow to take in its events, or takes in those that were parked.
   */
  state: z.enum(["quarantined", "catching-up"]),
  /** When it came to this, ISO 8601. */
  since: z.string(),
  /** A code of base/codes.ts and what happened; holds no path, no value and no tenant's name. */
  code: z.string(),
  reason: z.string(),
  /** What to do about it, in words; a command where there is one. */
  remedy: z.string(),
  attempts: z.number().int(),
  /** ISO 8601; absent while a try runs. */
  nextTryAt: z.string().optional(),
  /** Bytes of accepted events kept aside until a raw table lands again. */
  parkedBytes: z.number().default(0),
  /** True once that has used up its disk budget: the bus refuses further events of this entity type, retryably. */
  held: z.boolean().default(false),
});

const ingestStatus = z.object({
  /** When ingest wrote this, ISO 8601. */
  writtenAt: z.string(),
  /** Tables that are not well; a table that is not named is. */
  tables: z.array(tableStatus),
});

export type TableStatus = z.infer<typeof tableStatus>;
export type IngestStatus = z.infer<typeof ingestStatus>;

/** Undefined before ingest has first run. Errors: TRB-STORE-FAILED. */
export async function readIngestStatus(store: ObjectStore): Promise<IngestStatus | undefined> {
  const bytes = await store.get(KEY);
  if (bytes === undefined) return undefined;
  try {
    return ingestStatus.parse(JSON.parse(bytes.toString("utf8")));
  } catch (cause) {
    throw new TributaryError("TRB-STORE-FAILED", "the status of ingest is not readable", { cause });
  }
}

export async function writeIngestStatus(store: ObjectStore, status: IngestStatus): Promise<void> {
  await store.put(KEY, Buffer.from(JSON.stringify(status)));
}
