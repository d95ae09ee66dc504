import type { DuckDBConnection } from "@duckdb/node-api";
import { Feed } from "../columns/feed.js";
import { append } from "../table/append.js";
import type { CommitResult } from "../table/commit-request.js";
import type { DeltaTable } from "../table/delta-table.js";
import type { Positions } from "../table/progress.js";
import type { EventBatch } from "./event-batch.js";
import { RawRows } from "./raw-table.js";

let feeds = 0;

/** Appends batches to raw tables, one after the other, on a connection of its own. */
export class RawAppender {
  private readonly rows = new RawRows();
  private readonly feed: Feed;

  constructor(private readonly connection: DuckDBConnection) {
    this.feed = Feed.register(connection, `tributary_raw_${++feeds}`, this.rows.columns);
  }

  /**
   * All of the batch as one file, in its order or in that of `orderBy`, with the positions that it reaches from those
   * the table is at. On a conflict nothing was changed.
   */
  async append(
    table: DeltaTable,
    batch: EventBatch,
    from: Positions,
    orderBy: readonly string[] = [],
  ): Promise<CommitResult> {
    this.feed.use(this.rows.source(batch));
    const order = orderBy.length === 0 ? "" : ` ORDER BY ${orderBy.join(", ")}`;
    try {
      return await append(table, this.connection, `SELECT * FROM ${this.feed.name}()${order}`, {
        stream: batch.stream,
        from,
        to: batch.reached(),
      });
    } finally {
      this.feed.clear();
    }
  }
}
