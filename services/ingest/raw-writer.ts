import type { DuckDBConnection } from "@duckdb/node-api";
import { Feed } from "../columns/feed.js";
import { type WrittenFile, writeParquet } from "../table/data-file.js";
import type { EventBatch } from "./event-batch.js";
import { RawRows } from "./raw-table.js";

let feeds = 0;

/** Writes batches as files of raw tables, one after the other, over a connection that is for nothing else meanwhile. */
export class RawWriter {
  private readonly rows = new RawRows();
  private readonly feed: Feed;

  constructor(private readonly connection: DuckDBConnection) {
    this.feed = Feed.register(connection, `tributary_raw_${++feeds}`, this.rows.columns);
  }

  /** All of the batch, in its order or in that of `orderBy`, at a path where no file is. */
  async write(batch: EventBatch, localPath: string, orderBy: readonly string[] = []): Promise<WrittenFile> {
    this.feed.use(this.rows.source(batch));
    const order = orderBy.length === 0 ? "" : ` ORDER BY ${orderBy.join(", ")}`;
    try {
      return await writeParquet(this.connection, `SELECT * FROM ${this.feed.name}()${order}`, localPath);
    } finally {
      this.feed.clear();
    }
  }
}
