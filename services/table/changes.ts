import type { Operation } from "./commit-info.js";
import { overlaps, type Slots } from "./slot-ranges.js";
import type { TableFile } from "./types.js";

/** What one commit did to a table's files. A vector that was replaced is not in it: masks are read when they are needed. */
export interface Change {
  readonly version: number;
  /** Files that were not there before. */
  readonly added: readonly TableFile[];
  /** Paths of files that are gone. */
  readonly removed: readonly string[];
  /** Some rows of the added files were nowhere in the table before. */
  readonly fresh: boolean;
  /** Rows of the removed files are gone that nothing has replaced. */
  readonly drops: boolean;
  /** The table is another one, or a tenant of it: nothing that was known of where rows stand holds. */
  readonly replaced: boolean;
}

/** Of operations that remove files only when what was in them stands elsewhere, or has been superseded. */
const KEEPING: ReadonlySet<string | undefined> = new Set<Operation>(["MERGE", "OPTIMIZE"]);

/** Of the operation that takes rows away which nothing greater has replaced. */
const TENANT_REPLACED: Operation = "REPLACE TENANT";

export function changeOf(commit: {
  readonly version: number;
  readonly operation: string | undefined;
  readonly redefined: boolean;
  readonly adds: readonly TableFile[];
  readonly removes: readonly string[];
}): Change {
  const { version, adds, operation } = commit;
  const removes = new Set(commit.removes);
  const added = adds.filter(({ path }) => !removes.delete(path));
  return {
    version,
    added,
    removed: [...removes],
    fresh: added.some(({ add }) => add.dataChange),
    drops: removes.size > 0 && !KEEPING.has(operation),
    replaced: (removes.size > 0 && commit.redefined) || operation === TENANT_REPLACED,
  };
}

/** Whether records of entities in `slots` may stand otherwise than before the change, other than by having moved. */
export const concerns = ({ added, fresh, drops, replaced }: Change, slots: Slots): boolean =>
  drops || replaced || (fresh && added.some((file) => overlaps(file.slots, slots)));

/** Files that changes in memory may name, in all. */
const MOST_FILES = 20_000;

/** The newest changes of a table, as far as they are kept. */
export class RecentChanges {
  private changes: Change[] = [];
  private files = 0;

  push(change: Change): void {
    const newest = this.changes.at(-1);
    if (newest !== undefined && newest.version + 1 !== change.version) {
      this.changes = [];
      this.files = 0;
    }
    this.changes.push(change);
    this.files += sizeOf(change);
    let dropped = 0;
    // In one go now and then: what is shifted out one by one moves all the others.
    if (this.files > MOST_FILES) {
      while (this.files > MOST_FILES / 2 && dropped < this.changes.length - 1)
        this.files -= sizeOf(this.changes[dropped++]!);
      this.changes = this.changes.slice(dropped);
    }
  }

  /** Those after `version` up to `current`, oldest first; undefined when some of them are not known. */
  between(version: number, current: number): readonly Change[] | undefined {
    if (version >= current) return [];
    const first = this.changes[0]?.version;
    const last = this.changes.at(-1)?.version;
    if (first === undefined || last === undefined || version + 1 < first || last < current) return undefined;
    return this.changes.slice(version + 1 - first, current + 1 - first);
  }

  /** Newest first. */
  *newest(): Generator<Change> {
    for (let i = this.changes.length - 1; i >= 0; i--) yield this.changes[i]!;
  }
}

const sizeOf = ({ added, removed }: Change): number => 1 + added.length + removed.length;
