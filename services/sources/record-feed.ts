import { BLOB, type DuckDBConnection, VARCHAR } from "@duckdb/node-api";
import { CHUNK_ROWS, FixedColumn, TextColumn } from "../columns/column-writers.js";
import { Feed, type FeedSource } from "../columns/feed.js";
import { ORDINAL } from "./formats.js";
import type { Records } from "./splitter.js";

/** What goes to the engine at once, beside one record. */
const CHUNK_BYTES = 4 * 1024 * 1024;
const WORD = 0x1_0000_0000;

let feeds = 0;
/** What an engine can call it keeps, columns and all: files that follow each other have one for those they share. */
const FEEDS = new WeakMap<DuckDBConnection, Map<string, RecordFeed>>();

/** Records as a relation of an engine: ORDINAL and their columns. A statement may read it once, and any number of statements. */
export class RecordFeed implements FeedSource {
  /** What stands in FROM. */
  readonly sql: string;
  private readonly feed: Feed;
  private readonly ordinals = FixedColumn.bigint();
  private readonly writers: readonly TextColumn[];
  private records: Records = {
    bytes: Buffer.alloc(0),
    count: 0,
    ordinals: [],
    offsets: [],
    fields: [],
    columns: 1,
  };

  private constructor(connection: DuckDBConnection, columns: readonly string[], type: "text" | "bytes") {
    this.writers = columns.map(() => new TextColumn(type === "text" ? VARCHAR : BLOB));
    const name = `source_records_${feeds++}`;
    this.sql = `${name}()`;
    this.feed = Feed.register(connection, name, [
      { name: ORDINAL, writer: this.ordinals, nullable: false },
      ...columns.map((column, at) => ({ name: column, writer: this.writers[at]!, nullable: true })),
    ]);
    this.feed.use(this);
  }

  /** The connection's, for columns of these names. */
  static of(connection: DuckDBConnection, columns: readonly string[], type: "text" | "bytes"): RecordFeed {
    const own = FEEDS.get(connection) ?? new Map<string, RecordFeed>();
    FEEDS.set(connection, own);
    const key = JSON.stringify([type, columns]);
    const feed = own.get(key) ?? new RecordFeed(connection, columns, type);
    own.set(key, feed);
    return feed;
  }

  /** What every statement reads from now on. */
  use(records: Records): void {
    this.records = records;
    this.feed.use(this);
  }

  get rows(): number {
    return this.records.count;
  }

  chunk(start: number): number {
    const { fields, columns, count } = this.records;
    const most = Math.min(count, start + CHUNK_ROWS);
    let bytes = 0;
    let end = start;
    for (let i = start * columns * 2; end < most && (bytes < CHUNK_BYTES || end === start); end++) {
      for (const next = (end + 1) * columns * 2; i < next; i += 2) bytes += fields[i + 1]! - fields[i]!;
    }
    return end - start;
  }

  fill(start: number, rows: number): void {
    const { bytes, ordinals, fields, columns } = this.records;
    for (let row = 0, at = start; row < rows; row++, at++) {
      const ordinal = ordinals[at]!;
      this.ordinals.set64(row, ordinal % WORD, Math.floor(ordinal / WORD));
      for (let column = 0, i = at * columns * 2; column < columns; column++, i += 2) {
        const from = fields[i]!;
        if (from >= 0) this.writers[column]!.set(row, bytes, from, fields[i + 1]!);
      }
    }
  }
}
