import type { DuckDBConnection } from "@duckdb/node-api";
import type { CommitResult } from "./commit-request.js";
import { stageFile } from "./data-file.js";
import type { DeltaTable } from "./delta-table.js";
import { advancePositions, type Positions } from "./progress.js";
import { Staging } from "./staging.js";

export interface AppendRequest {
  readonly stream: string;
  /** Positions the rows start after; must still be in force when the commit is made. */
  readonly from: Positions;
  /** Positions reached, of the partitions that moved. */
  readonly to: Positions;
}

/** Appends the rows of `sql` as one file and moves the positions, in one commit. */
export function append(
  table: DeltaTable,
  connection: DuckDBConnection,
  sql: string,
  request: AppendRequest,
): Promise<CommitResult> {
  return Staging.run(table, async (staging) => {
    const basedOn = table.snapshot.version;
    const file = await stageFile(staging, connection, sql, {});
    await staging.publish([file]);
    const { actions, expect } = advancePositions(request.stream, request.from, request.to);
    return staging.commit({
      operation: "WRITE",
      actions: [{ add: file.add }, ...actions],
      expect,
      basedOn,
      serializable: false,
    });
  });
}
