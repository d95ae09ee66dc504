import { type DuckDBConnection, DuckDBTableFunction } from "@duckdb/node-api";
import duckdb from "@duckdb/node-bindings";
import { assert } from "../base/errors.js";
import { assertTextLayout } from "./column-layout.js";
import type { ColumnWriter } from "./column-writers.js";

export interface FeedColumn {
  readonly name: string;
  readonly writer: ColumnWriter;
  /** A row that `fill` writes nothing to is NULL; else the type's zero. */
  readonly nullable: boolean;
}

/**
 * Rows that go to DuckDB as columns, 2,048 at a time, while a statement runs: `SELECT … FROM <name>()`.
 * `fill` writes rows [start, start + rows) into rows [0, rows) of the feed's writers, where a chunk was begun.
 */
export interface FeedSource {
  readonly rows: number;
  fill(start: number, rows: number): void;
  /** How many rows from `start` may go at once, at least one; large ones would fill memory. */
  chunk?(start: number): number;
}

const CHUNK = 2048;

/** A table function of one connection whose rows are set before each statement. */
export class Feed {
  private source: FeedSource | undefined;
  private asked: readonly number[] = [];
  private next = 0;
  private produced: { readonly start: number; readonly rows: number } | undefined;

  private constructor(
    readonly name: string,
    private readonly columns: readonly FeedColumn[],
  ) {}

  /** `name` is unique within the database of the connection. */
  static register(connection: DuckDBConnection, name: string, columns: readonly FeedColumn[]): Feed {
    assertTextLayout();
    const feed = new Feed(name, columns);
    connection.registerTableFunction(
      DuckDBTableFunction.create({
        name,
        supportsProjectionPushdown: true,
        bindFunction: (info) => {
          for (const { name: column, writer } of columns) info.addResultColumn(column, writer.type);
        },
        initFunction: (info) => {
          feed.asked = info.getColumnIndexes();
          feed.next = 0;
          feed.produced = undefined;
        },
        mainFunction: (_, chunk) => {
          chunk.rowCount = feed.produce(chunk.chunk);
        },
      }),
    );
    return feed;
  }

  /** The rows of every statement until the next call. */
  use(source: FeedSource): void {
    this.source = source;
    this.produced = undefined;
  }

  /** Lets go of the rows, so that their buffers can be freed. */
  clear(): void {
    this.source = undefined;
  }

  /** The rows that were asked for last; undefined when none were, or when the engine has found that there are no more. */
  get last(): { readonly start: number; readonly rows: number } | undefined {
    return this.produced;
  }

  private produce(chunk: Parameters<typeof duckdb.data_chunk_get_vector>[0]): number {
    const { source } = this;
    assert(source !== undefined, `${this.name} has no rows to give`);
    const left = source.rows - this.next;
    this.produced = undefined;
    if (left === 0) return 0;
    const rows = Math.min(CHUNK, left, source.chunk?.(this.next) ?? CHUNK);
    for (const { writer, nullable } of this.columns) writer.begin(rows, nullable);
    source.fill(this.next, rows);
    this.produced = { start: this.next, rows };
    this.next += rows;
    for (const [at, index] of this.asked.entries()) {
      // A scan that wants no column at all (count(*)) asks for one that is not there.
      const column = this.columns[index];
      if (column !== undefined) column.writer.flush(duckdb.data_chunk_get_vector(chunk, at), rows);
    }
    return rows;
  }
}
