import { createHash, randomUUID } from "node:crypto";
import { createReadStream } from "node:fs";
import { copyFile } from "node:fs/promises";
import { join } from "node:path";
import type { Duck } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import { isAbsent } from "../base/files.js";
import type { ObjectStore } from "../storage/object-store.js";
import { commitKey } from "../table/actions.js";
import { closeTable, isMarkedClosed, lastVersion, markClosed } from "../table/closing.js";
import { locateVector } from "../table/deletion-vector.js";
import { listLog } from "../table/delta-log.js";
import { DeltaTable } from "../table/delta-table.js";
import { hintKey } from "../table/log-checkpoint.js";

/**
 * Copies a lake from one store to another while its writers and readers go on, as often as one likes: what is there is
 * not copied again. The last copy closes the lake first, so that nothing is committed behind its back, and reads back
 * what it has copied.
 */

export interface LakeCopyOptions {
  readonly source: ObjectStore;
  readonly target: ObjectStore;
  readonly duck: Duck;
  /** Closes the source, copies the rest and verifies all of it. */
  readonly close: boolean;
  readonly progress?: (done: LakeCopyProgress) => void;
  readonly signal?: AbortSignal;
}

export interface LakeCopyProgress {
  readonly step: "copy" | "verify";
  readonly bytes: number;
  readonly ofBytes: number;
}

export interface LakeCopied {
  readonly tables: readonly CopiedTable[];
  /** Of this run. */
  readonly objects: number;
  readonly bytes: number;
  /** The source takes nothing any more, and every live file of the target was read back. */
  readonly closed: boolean;
}

export interface CopiedTable {
  readonly root: string;
  /** Version up to which the target has the table. */
  readonly version: number;
  /** Live files that were read back. */
  readonly verified: number;
}

const PARALLEL = 8;
const LOG = "/_delta_log/";
/** How a lake is doing, and who works on it: of no meaning elsewhere. */
const LEFT_BEHIND = ["status/", "leases/", "closed.json"];
/** What is written anew under its name: bulk jobs go on in the copy, where their ids are taken by raw's positions, too. */
const isMutable = (key: string): boolean => key.startsWith("jobs/") && key.endsWith(".json");
const OPEN = { checkpointEvery: Number.MAX_SAFE_INTEGER };

/** Errors: TRB-LAKE-DIVERGED, TRB-STORE-FAILED, TRB-TABLE-CORRUPT; the signal's. */
export async function copyLake(options: LakeCopyOptions): Promise<LakeCopied> {
  const { source, target, close } = options;
  await requireApart(source, target);
  if (await isMarkedClosed(target)) {
    throw new TributaryError("TRB-LAKE-DIVERGED", "the lake to be copied to is itself closed");
  }
  const ends = await lastVersions(options);
  const copied = await copyObjects(options);
  for (const [root, end] of ends) await copyLog(options, root, end);
  await copyMutable(options);
  const tables: CopiedTable[] = [];
  for (const [root, version] of ends) {
    tables.push({ root, version, verified: close ? await verifyTable(options, root, version) : 0 });
  }
  return { tables, ...copied, closed: close };
}

/** A copy onto itself would look complete. */
async function requireApart(source: ObjectStore, target: ObjectStore): Promise<void> {
  const probe = `status/probe-${randomUUID()}`;
  await target.put(probe, Buffer.from("?"));
  try {
    if ((await source.get(probe)) === undefined) return;
  } finally {
    await target.delete([probe]);
  }
  throw new TributaryError("TRB-LAKE-DIVERGED", "the lake to be copied to is the one to be copied");
}

/** Roots of all tables, side tables of a rebuild left out: they are made anew. */
async function tableRoots(store: ObjectStore): Promise<string[]> {
  const roots = new Set<string>();
  for await (const { key } of store.list("")) {
    const at = key.indexOf(LOG);
    if (at > 0) roots.add(key.slice(0, at));
  }
  const all = [...roots].sort();
  return all.filter((root) => !all.some((other) => root.startsWith(`${other}/`)));
}

/** Root → last version that is to be copied; when closing, the one before the table's closing commit. */
async function lastVersions({ source, duck, close }: LakeCopyOptions): Promise<Map<string, number>> {
  // Whoever makes a table looks for the marker afterwards, so one listing that begins now finds them all.
  if (close) await markClosed(source);
  const ends = new Map<string, number>();
  for (const root of await tableRoots(source)) {
    const table = await DeltaTable.open(source, root, duck, OPEN);
    if (table !== undefined) ends.set(root, close ? await closeTable(table) : lastVersion(table.snapshot));
  }
  return ends;
}

/** All that is no log: named once, and never changed. */
async function copyObjects(options: LakeCopyOptions): Promise<{ objects: number; bytes: number }> {
  const { source, target, progress, signal } = options;
  const there = new Map<string, number>();
  for await (const { key, bytes } of target.list("")) there.set(key, bytes);
  const missing: { key: string; bytes: number }[] = [];
  for await (const { key, bytes } of source.list("")) {
    if (key.includes(LOG) || LEFT_BEHIND.some((prefix) => key.startsWith(prefix)) || isMutable(key)) continue;
    if (there.get(key) !== bytes) missing.push({ key, bytes });
  }
  const ofBytes = missing.reduce((sum, { bytes }) => sum + bytes, 0);
  let bytes = 0;
  for (const some of groups(missing)) {
    signal?.throwIfAborted();
    await copyFiles(
      options,
      some.map(({ key }) => key),
    );
    bytes += some.reduce((sum, each) => sum + each.bytes, 0);
    progress?.({ step: "copy", bytes, ofBytes });
  }
  return { objects: missing.length, bytes };
}

/** As it is now. A job that is none in the copy when its rows are there would be begun anew behind them. */
async function copyMutable({ source, target, signal }: LakeCopyOptions): Promise<void> {
  for await (const { key } of source.list("jobs/")) {
    signal?.throwIfAborted();
    const bytes = isMutable(key) && !key.includes(LOG) ? await source.get(key) : undefined;
    if (bytes !== undefined) await target.put(key, bytes);
  }
}

async function copyFiles({ source, target }: LakeCopyOptions, keys: readonly string[]): Promise<void> {
  await source.withLocal(
    keys,
    async (paths) => {
      const files: { localPath: string; key: string }[] = [];
      for (const [i, path] of paths.entries()) {
        const localPath = join(target.staging, randomUUID());
        try {
          await copyFile(path, localPath);
          files.push({ localPath, key: keys[i]! });
        } catch (error) {
          // Swept since the listing: no version that is copied names it.
          if (!isAbsent(error)) throw error;
        }
      }
      await target.adopt(files);
    },
    { fresh: true },
  );
}

/** The commits up to `end`, in order, then the newest log checkpoint that is no later. */
async function copyLog(options: LakeCopyOptions, root: string, end: number): Promise<void> {
  const { source, target, duck, signal } = options;
  const listed = await listLog({ store: source, root, duck });
  const versions = listed.commits.filter((version) => version <= end);
  if ((await target.get(commitKey(root, end + 1))) !== undefined) throw diverged(root);
  for (const some of groups(versions)) {
    signal?.throwIfAborted();
    const commits = await Promise.all(some.map((version) => source.get(commitKey(root, version))));
    for (const [j, version] of some.entries()) {
      const bytes = commits[j];
      if (bytes === undefined)
        throw new TributaryError("TRB-STORE-FAILED", "a commit went while it was copied");
      const key = commitKey(root, version);
      if ((await target.putIfAbsent(key, bytes)) === "created") continue;
      if ((await target.get(key))?.equals(bytes) !== true) throw diverged(root);
    }
  }
  const checkpoint = listed.checkpoints.find(({ version }) => version <= end);
  if (checkpoint === undefined) return;
  const missing: string[] = [];
  for (const key of checkpoint.keys) if ((await target.get(key)) === undefined) missing.push(key);
  await copyFiles(options, missing);
  // One of several parts, as other engines write them, is found by listing.
  if (checkpoint.keys.length > 1) return;
  await target.put(hintKey(root), Buffer.from(JSON.stringify({ version: checkpoint.version })));
}

/** What is done at once. */
function* groups<T>(all: readonly T[]): Generator<readonly T[]> {
  for (let i = 0; i < all.length; i += PARALLEL) yield all.slice(i, i + PARALLEL);
}

const diverged = (root: string): TributaryError =>
  new TributaryError("TRB-LAKE-DIVERGED", `${root}: the lake to be copied to has other commits`);

/** Opens the copy as a writer would, and compares every live file and vector with its original. Resolves to how many. */
async function verifyTable(options: LakeCopyOptions, root: string, version: number): Promise<number> {
  const { source, target, duck, progress, signal } = options;
  const copy = await DeltaTable.open(target, root, duck, OPEN);
  if (copy?.snapshot.version !== version) throw diverged(root);
  const keys = new Set<string>();
  let ofBytes = 0;
  for (const { path, add, bytes } of copy.snapshot.files) {
    keys.add(`${root}/${path}`);
    ofBytes += bytes;
    const at = add.deletionVector === undefined ? undefined : locateVector(add.deletionVector);
    if (at !== undefined && "path" in at) keys.add(`${root}/${at.path}`);
  }
  let bytes = 0;
  for (const some of groups([...keys])) {
    signal?.throwIfAborted();
    const [original, copied] = await Promise.all([digests(source, some), digests(target, some)]);
    for (const [j, key] of some.entries()) {
      if (original[j]!.digest !== copied[j]!.digest) {
        throw new TributaryError("TRB-STORE-FAILED", `${key}: the copy differs from its original`);
      }
      bytes += copied[j]!.bytes;
    }
    progress?.({ step: "verify", bytes, ofBytes });
  }
  return keys.size;
}

/** Of the objects themselves: a local copy of what was just uploaded would prove nothing. */
const digests = (store: ObjectStore, keys: readonly string[]) =>
  store.withLocal(keys, (paths) => Promise.all(paths.map(digestOf)), { fresh: true });

async function digestOf(path: string): Promise<{ digest: string; bytes: number }> {
  const hash = createHash("sha256");
  let bytes = 0;
  for await (const piece of createReadStream(path)) {
    hash.update(piece as Buffer);
    bytes += (piece as Buffer).length;
  }
  return { digest: hash.digest("hex"), bytes };
}
