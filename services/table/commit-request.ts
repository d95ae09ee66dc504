import type { Elapsed } from "../base/elapsed.js";
import type { Action } from "./actions.js";
import type { Operation } from "./commit-info.js";
import type { Slots } from "./slot-ranges.js";

/** What one commit wants to do, and what must still be true for it to be right. */
export interface CommitRequest {
  readonly operation: Operation;
  readonly actions: readonly Action[];
  /**
   * Domain → configuration that must be in force (undefined: none). Every progress domain that the actions set must
   * be named here: a commit is a compare-and-set on the prior position of each partition in it (I7).
   */
  readonly expect: ReadonlyMap<string, string | undefined>;
  /** Snapshot version the actions were made for; a later change of schema or properties is a conflict. */
  readonly basedOn: number;
  /** Then any later commit is a conflict: the actions depend on all rows of the table. */
  readonly serializable: boolean;
  /** Narrows that to commits that have put in records of entities in these slots: on no other do the actions depend. */
  readonly slots?: Slots;
  /** Since when the oldest of the files named has been staged. Beyond a limit it may have been swept away. */
  readonly staged?: Elapsed;
  /** When the newest event was received that the table has with this commit, in ms since the epoch. */
  readonly newest?: number | undefined;
  /**
   * Keys of objects made for this commit alone. They are the table's business from here on, also when it rejects: they
   * stay if the commit stands, and are removed once it is certain that it does not. After a conflict they are the
   * caller's again.
   */
  readonly files?: readonly string[];
}

export type CommitResult =
  | { readonly kind: "committed"; readonly version: number }
  /** Nothing was changed; `CommitRequest` tells what each reason means. */
  | { readonly kind: "conflict"; readonly reason: ConflictReason };

/**
 * `file`: a file to be removed, or its vector, is not live any more. `version`: a serializable commit came late.
 * `age`: files it names were staged so long ago that they must be staged anew.
 */
export type ConflictReason = "position" | "file" | "metadata" | "version" | "age";
