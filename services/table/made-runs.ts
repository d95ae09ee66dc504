import type { EntityKeys } from "./entity-keys.js";
import { KeyRun, type MadeRun } from "./key-run.js";

/** Runs that nobody has asked for are kept up to so many: each is a file of some megabytes. */
const MOST = 16;

/** A run of the keys of a file that whoever made both is about to put into a table. */
export interface FileRun extends MadeRun {
  /** Of the table. */
  readonly root: string;
  /** In the table. */
  readonly file: string;
}

/**
 * Runs that other processes have made of files, from before these are in their tables. That one is offered says nothing
 * of its file: it may never come to be part of the table. A file's name is never given twice, so that a run can be
 * of no other file.
 */
export class MadeRuns {
  private readonly offered = new Map<string, FileRun>();

  offer(run: FileRun): void {
    this.offered.set(`${run.root}/${run.file}`, run);
    for (const [name, { path }] of this.offered) {
      if (this.offered.size <= MOST) break;
      this.offered.delete(name);
      KeyRun.discard(path);
    }
  }

  /** The run of a table's file, from now on the caller's. Undefined where there is none, or it is of no use. */
  take(root: string, file: string, keys: EntityKeys): KeyRun | undefined {
    const name = `${root}/${file}`;
    const run = this.offered.get(name);
    if (run === undefined) return undefined;
    this.offered.delete(name);
    try {
      return KeyRun.open(run, (tenant) => keys.tenantOf(tenant));
    } catch {
      // The file is read instead.
      KeyRun.discard(run.path);
      return undefined;
    }
  }

  /** Drops what has not been asked for. */
  clear(): void {
    for (const { path } of this.offered.values()) KeyRun.discard(path);
    this.offered.clear();
  }
}
