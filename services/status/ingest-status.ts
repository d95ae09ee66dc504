import { z } from "zod";
import { TributaryError } from "../base/errors.js";
import type { ObjectStore } from "../storage/object-store.js";

/**
 * How the lake's tables are doing, as each worker of ingest last wrote it: one small object a worker, replaced on every
 * change and now and then without one. Bus, query, the command line and other workers read them, on whatever machine
 * they run. They are reports, never locks: no table's contents depend on them.
 */
const FOLDER = "status/workers/";
/** A worker that has not written for so long does not run. */
const GONE_MS = 60_000;

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
  /** True once that has used up its budget (`ingest.parkedBytes`): the bus refuses further events of this entity type, retryably. */
  held: z.boolean().default(false),
});

const ingestStatus = z.object({
  /** When ingest wrote this, ISO 8601. */
  writtenAt: z.string(),
  /** Tables that are not well; a table that is not named is. */
  tables: z.array(tableStatus),
});

const workerStatus = ingestStatus.extend({
  /** Of the models that it has in force. */
  fingerprints: z.array(z.string()).default([]),
  /** Stream → the partitions that it holds. */
  holds: z.record(z.string(), z.array(z.string())).default({}),
});

export type TableStatus = z.infer<typeof tableStatus>;
export type IngestStatus = z.infer<typeof ingestStatus>;

export type WorkerStatus = z.infer<typeof workerStatus>;

/** By the worker's name. One that cannot be read is left out. Errors: TRB-STORE-FAILED. */
export async function readWorkers(store: ObjectStore): Promise<Map<string, WorkerStatus>> {
  const keys: string[] = [];
  for await (const { key } of store.list(FOLDER)) keys.push(key);
  const found = new Map<string, WorkerStatus>();
  const texts = await Promise.all(keys.map((key) => store.get(key)));
  let damaged: unknown;
  keys.forEach((key, i) => {
    const bytes = texts[i];
    if (bytes === undefined) return;
    try {
      const name = key.slice(FOLDER.length, -".json".length);
      found.set(name, workerStatus.parse(JSON.parse(bytes.toString("utf8"))));
    } catch (error) {
      damaged = error;
    }
  });
  if (found.size === 0 && damaged !== undefined) {
    throw new TributaryError("TRB-STORE-FAILED", "the status of ingest is not readable", { cause: damaged });
  }
  return found;
}

/**
 * What all workers that run have to tell; of those that do not, the last one's while there is no other. Undefined before
 * ingest has first run. Errors: TRB-STORE-FAILED.
 */
export async function readIngestStatus(
  store: ObjectStore,
  now = Date.now(),
): Promise<IngestStatus | undefined> {
  const all = [...(await readWorkers(store)).values()].sort((a, b) => (a.writtenAt < b.writtenAt ? 1 : -1));
  const [newest] = all;
  if (newest === undefined) return undefined;
  const running = all.filter(({ writtenAt }) => now - Date.parse(writtenAt) < GONE_MS);
  const told = running.length > 0 ? running : [newest];
  return { writtenAt: newest.writtenAt, tables: merged(told.flatMap(({ tables }) => tables)) };
}

/** A table is as unwell as it is with the worker that it is worst with. */
function merged(all: readonly TableStatus[]): TableStatus[] {
  const tables = new Map<string, TableStatus>();
  for (const table of all) {
    const key = `${table.kind} ${table.name}`;
    const before = tables.get(key);
    if (before === undefined) {
      tables.set(key, table);
      continue;
    }
    const isWorse = before.state !== "quarantined" && table.state === "quarantined";
    tables.set(key, {
      ...(isWorse || (before.state === table.state && table.since < before.since) ? table : before),
      parkedBytes: before.parkedBytes + table.parkedBytes,
      held: before.held || table.held,
    });
  }
  return [...tables.values()];
}

/** `worker`: printable ASCII without slashes. Errors: TRB-STORE-FAILED. */
export async function writeWorkerStatus(
  store: ObjectStore,
  worker: string,
  status: z.input<typeof workerStatus>,
): Promise<void> {
  await store.put(`${FOLDER}${worker}.json`, Buffer.from(JSON.stringify(status)));
}

/** Errors: TRB-STORE-FAILED. */
export const forgetWorker = (store: ObjectStore, worker: string): Promise<void> =>
  store.delete([`${FOLDER}${worker}.json`]);
