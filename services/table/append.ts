import { isDeepStrictEqual } from "node:util";
import type { CommitResult } from "./commit-request.js";
import { stageWritten, type WrittenFile } from "./data-file.js";
import type { DeltaTable } from "./delta-table.js";
import { advancePositions, type Positions } from "./progress.js";
import { Staging } from "./staging.js";

export interface Appended {
  /** Without rows it is left out: positions move alone. */
  readonly file: WrittenFile;
  /** Positions reached, of the partitions that moved. */
  readonly to: Positions;
}

/**
 * Appends one file, which `write` makes at the path that it is given, and moves the positions, in one commit. The rows
 * start after the positions `from`, which must still be in force when the commit is made.
 */
export function append(
  table: DeltaTable,
  stream: string,
  from: Positions,
  write: (localPath: string) => Promise<Appended>,
): Promise<CommitResult> {
  return Staging.run(table, async (staging) => {
    const { id, snapshot } = table;
    let to: Positions = new Map();
    const file = await stageWritten(staging, {}, async (localPath) => {
      const appended = await write(localPath);
      to = appended.to;
      return appended.file;
    });
    const files = file.rows === 0 ? [] : [file];
    await staging.publish(files);
    const { actions, expect } = advancePositions(stream, from, to);
    for (let basedOn = snapshot.version; ; basedOn = table.snapshot.version) {
      const result = await staging.commit({
        operation: "WRITE",
        actions: [...files.map(({ add }) => ({ add })), ...actions],
        expect,
        basedOn,
        serializable: false,
      });
      // An upgrade by another process, say: the rows are what they were.
      const isRedefined = result.kind === "conflict" && result.reason === "metadata";
      if (!isRedefined || table.id !== id || !isDeepStrictEqual(table.snapshot.columns, snapshot.columns))
        return result;
    }
  });
}
