import { removeOf } from "./actions.js";
import type { CommitRequest, CommitResult } from "./commit-request.js";
import { definition, type TableSpec } from "./definition.js";
import type { DeltaTable } from "./delta-table.js";
import { newestReceived, progressOf, receivedAt, setProgress, withoutTracks } from "./progress.js";
import { rebased } from "./rebase.js";

/**
 * Takes over schema, properties, files and progress of `side`, a table in `folder` inside the table's own folder, in
 * one commit: readers see the old table or the new one, never a mixture. `also` is committed with it, as a
 * compare-and-set on other domains. On a conflict nothing has changed; refresh, and look again whether it is right.
 */
export function replaceTable(
  table: DeltaTable,
  side: DeltaTable,
  folder: string,
  spec: TableSpec,
  also: Pick<CommitRequest, "actions" | "expect">,
): Promise<CommitResult> {
  const old = table.snapshot;
  const built = side.snapshot;
  const now = Date.now();
  const before = progressOf(old);
  const after = progressOf(built);
  const moved = new Map([...after].filter(([track, position]) => before.get(track) !== position));
  const progress = setProgress(before, moved);
  // The new rows may be of another raw table: what is left of the old positions would pass for events taken in.
  const left = withoutTracks([...before.keys()].filter((track) => !after.has(track)));
  // What the table has meanwhile taken in must be what was looked at.
  const standing = setProgress(before, before).expect;
  return table.commit({
    operation: "REPLACE TABLE",
    actions: [
      ...definition(spec, table.id),
      ...old.files.map((file) => ({ remove: removeOf(file.add, now, true) })),
      ...built.files.map((file) => ({ add: rebased(file.add, folder) })),
      ...progress.actions,
      ...left,
      ...newestReceived(old, receivedAt(built)),
      ...also.actions,
    ],
    expect: new Map([...progress.expect, ...standing, ...also.expect]),
    basedOn: old.version,
    serializable: true,
  });
}
