import { Turns } from "../base/turns.js";
import type { ObjectStore } from "../storage/object-store.js";
import { type Action, commitKey, encodeCommit } from "./actions.js";
import { readCommit } from "./delta-log.js";

/** A commit on its way; in doubt once an answer was lost: it may come to be, at once or late. */
export interface Attempt {
  readonly txnId: string;
  /** As last offered: some depend on the version. */
  actions: readonly Action[];
  /** Keys of objects made for it alone. */
  readonly files: readonly string[];
  /** Version it was last offered as; with every other one it has lost for good. */
  offered?: number;
  /** Version as which it was seen to stand. */
  stands?: number;
}

const known = new WeakMap<ObjectStore, Map<string, Leftovers>>();

/**
 * What failures have left of one table, as far as this process knows: commits in doubt, files to be removed. It outlives
 * the objects of the table, which are made anew after a failure.
 */
export class Leftovers {
  /** Keys published for a commit that is still to be made (staging.ts). */
  readonly inFlight = new Set<string>();
  /** Keys that no commit names and that could not be deleted yet. */
  private readonly litter = new Set<string>();
  private readonly doubts = new Set<Attempt>();
  private readonly turns = new Turns();

  private constructor(
    private readonly store: ObjectStore,
    private readonly root: string,
  ) {}

  static of(store: ObjectStore, root: string): Leftovers {
    let tables = known.get(store);
    if (tables === undefined) {
      tables = new Map();
      known.set(store, tables);
    }
    let leftovers = tables.get(root);
    if (leftovers === undefined) {
      leftovers = new Leftovers(store, root);
      tables.set(root, leftovers);
    }
    return leftovers;
  }

  /** Keeps the files of an attempt whose answer was lost until it is known what became of it. */
  doubt(attempt: Attempt): void {
    this.doubts.add(attempt);
  }

  /** Keys that a commit under way or in doubt may name. */
  held(): string[] {
    return [...this.inFlight, ...[...this.doubts].flatMap(({ files }) => files)];
  }

  /**
   * Finds out for good what became of commits in doubt; files of those that are lost are removed. Comes before new
   * files are made: while the store fails, retries do not pile them up. Errors: TRB-STORE-FAILED.
   */
  settle(): Promise<void> {
    if (this.doubts.size === 0) return Promise.resolve();
    return this.turns.run(async () => {
      for (const attempt of [...this.doubts]) {
        const stands = await this.standing(attempt);
        this.doubts.delete(attempt);
        if (!stands) await this.discard(attempt.files);
      }
    });
  }

  /** Whether the attempt stands; offers it again while its version is free: then nobody has changed what it builds on. */
  private async standing({ txnId, offered, actions }: Attempt): Promise<boolean> {
    const version = offered!;
    for (;;) {
      const there = await readCommit(this.store, this.root, version);
      if (there !== undefined) return there.some(({ commitInfo }) => commitInfo?.txnId === txnId);
      // Cleared away since: its files are kept rather than judged.
      if ((await readCommit(this.store, this.root, version + 1)) !== undefined) return true;
      const key = commitKey(this.root, version);
      if ((await this.store.putIfAbsent(key, encodeCommit(actions))) === "created") return true;
    }
  }

  /** Removes objects that no commit names; those that do not go are tried again the next time. */
  async discard(keys: readonly string[]): Promise<void> {
    for (const key of keys) this.litter.add(key);
    const all = [...this.litter];
    if (all.length === 0) return;
    try {
      await this.store.delete(all);
      for (const key of all) this.litter.delete(key);
    } catch {
      // They harm nobody but the disk.
    }
  }
}
