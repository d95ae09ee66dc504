import { rm } from "node:fs/promises";
import { join } from "node:path";
import { Elapsed } from "../base/elapsed.js";
import type { AddAction } from "./actions.js";
import type { CommitRequest, CommitResult } from "./commit-request.js";
import { locateVector } from "./deletion-vector.js";
import type { DeltaTable } from "./delta-table.js";

/** A finished data file that no commit names yet. */
export interface StagedFile {
  readonly localPath: string;
  readonly key: string;
  readonly rows: number;
  /** Without a deletion vector; one may be laid over it before the commit. */
  readonly add: AddAction;
}

/**
 * The files made for one commit. Those that no commit names when the work ends, however it ends, are removed; those
 * of a commit whose answer was lost stay until it is known whether it stands.
 */
export class Staging {
  private readonly local = new Set<string>();
  /** Keys published for the commit, each with the time since. */
  private readonly published = new Map<string, Elapsed>();
  private readonly running = new Set<Promise<unknown>>();

  private constructor(readonly table: DeltaTable) {}

  static async run<T>(table: DeltaTable, work: (staging: Staging) => Promise<T>): Promise<T> {
    // While an earlier commit is in doubt, its files stand in the way of new ones (a failing store, a full disk).
    await table.settle();
    const staging = new Staging(table);
    try {
      return await work(staging);
    } finally {
      await staging.clean();
    }
  }

  /** Runs `write` with the path of a local file to be made. */
  async write<T>(name: string, write: (localPath: string) => Promise<T>): Promise<T> {
    const localPath = join(this.table.store.staging, name);
    this.local.add(localPath);
    return this.awaited(write(localPath));
  }

  /** Makes staged files durable objects of the store, in one go. */
  async publish(files: readonly StagedFile[]): Promise<void> {
    if (files.length === 0) return;
    for (const { key } of files) this.remember(key);
    await this.awaited(this.table.store.adopt(files));
    for (const { localPath } of files) this.local.delete(localPath);
  }

  /** A durable object that is no data file: vectors. */
  async put(key: string, bytes: Uint8Array): Promise<void> {
    this.remember(key);
    await this.awaited(this.table.store.put(key, bytes));
  }

  /** The clean-up waits for it: of several side by side one may fail while the others still write. */
  private async awaited<T>(work: Promise<T>): Promise<T> {
    this.running.add(work);
    try {
      return await work;
    } finally {
      this.running.delete(work);
    }
  }

  private remember(key: string): void {
    this.published.set(key, new Elapsed());
    this.table.inFlight.add(key);
  }

  /**
   * Commits; published files that the actions name are the commit's from here on, and nobody's any more when it rejects.
   * After a conflict another commit may name them. Conflicts as `DeltaTable.commit`.
   */
  async commit(request: Omit<CommitRequest, "files" | "staged">): Promise<CommitResult> {
    const { root } = this.table;
    const named = new Set(
      request.actions
        .flatMap(({ add }) => (add === undefined ? [] : namedBy(add)))
        .map((path) => `${root}/${path}`),
    );
    // The oldest comes first.
    const files = [...this.published].filter(([key]) => named.has(key));
    const [oldest] = files;
    for (const [key] of files) this.published.delete(key);
    let result: CommitResult | undefined;
    try {
      result = await this.table.commit({
        ...request,
        files: files.map(([key]) => key),
        ...(oldest === undefined ? {} : { staged: oldest[1] }),
      });
      return result;
    } finally {
      if (result?.kind === "conflict") for (const [key, since] of files) this.published.set(key, since);
      else for (const [key] of files) this.table.inFlight.delete(key);
    }
  }

  private async clean(): Promise<void> {
    await Promise.allSettled(this.running);
    for (const path of this.local) await rm(path, { force: true }).catch(() => undefined);
    const keys = [...this.published.keys()];
    if (keys.length > 0) await this.table.discard(keys);
    for (const key of keys) this.table.inFlight.delete(key);
  }
}

/** Paths below the table's folder of the objects that an add stands for. */
function namedBy({ path, deletionVector }: AddAction): string[] {
  const vectors = deletionVector === undefined ? undefined : locateVector(deletionVector);
  const data = decodeURIComponent(path);
  return vectors !== undefined && "path" in vectors ? [data, vectors.path] : [data];
}
