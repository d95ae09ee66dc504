import { rm } from "node:fs/promises";
import { join } from "node:path";
import type { Action, AddAction } from "./actions.js";
import type { CommitRequest, CommitResult, DeltaTable } from "./delta-table.js";

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
  /** Published for the commit, each with the path an `add` names it by; undefined: named by vectors. */
  private readonly published = new Map<string, string | undefined>();
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

  /** Runs `write` with the path of a local file to be made; the clean-up waits for it. */
  async write<T>(name: string, write: (localPath: string) => Promise<T>): Promise<T> {
    const localPath = join(this.table.store.staging, name);
    this.local.add(localPath);
    const running = write(localPath);
    this.running.add(running);
    try {
      return await running;
    } finally {
      this.running.delete(running);
    }
  }

  /** Makes staged files durable objects of the store, in one go. */
  async publish(files: readonly StagedFile[]): Promise<void> {
    for (const { key, add } of files) this.remember(key, add.path);
    await this.table.store.adopt(files);
    for (const { localPath } of files) this.local.delete(localPath);
  }

  /** A durable object that an action names by something else than its path: a file of vectors. */
  async put(key: string, bytes: Uint8Array): Promise<void> {
    this.remember(key, undefined);
    await this.table.store.put(key, bytes);
  }

  private remember(key: string, path: string | undefined): void {
    this.published.set(key, path);
    this.table.inFlight.add(key);
  }

  /** Commits; published files that the actions name are the commit's from here on. Conflicts as `DeltaTable.commit`. */
  async commit(request: Omit<CommitRequest, "files">): Promise<CommitResult> {
    const named = new Set(request.actions.map(({ add }: Action) => add?.path));
    const files = [...this.published].flatMap(([key, path]) =>
      path === undefined || named.has(path) ? [key] : [],
    );
    for (const key of files) this.published.delete(key);
    try {
      return await this.table.commit({ ...request, files });
    } finally {
      for (const key of files) this.table.inFlight.delete(key);
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
