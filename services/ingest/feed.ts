import {
  type DuckDBConnection,
  DuckDBTableFunction,
  type DuckDBType,
  type DuckDBValue,
} from "@duckdb/node-api";

export interface FeedColumn {
  readonly name: string;
  readonly type: DuckDBType;
}

/**
 * Rows that JavaScript hands to DuckDB as columns, 2,048 at a time, while a statement runs: `SELECT … FROM <name>()`.
 * `fill` writes `rows` rows from `start` into the columns asked for; the others are undefined.
 */
export interface FeedSource {
  readonly rows: number;
  fill(columns: readonly (DuckDBValue[] | undefined)[], start: number, rows: number): void;
}

const CHUNK = 2048;

/** A table function of one connection whose rows are set before each statement. */
export class Feed {
  private source: FeedSource | undefined;
  private asked: readonly number[] = [];
  private next = 0;

  private constructor(
    readonly name: string,
    private readonly columns: readonly FeedColumn[],
  ) {}

  /** `name` is unique within the database of the connection. */
  static register(connection: DuckDBConnection, name: string, columns: readonly FeedColumn[]): Feed {
    const feed = new Feed(name, columns);
    connection.registerTableFunction(
      DuckDBTableFunction.create({
        name,
        supportsProjectionPushdown: true,
        bindFunction: (info) => {
          for (const column of columns) info.addResultColumn(column.name, column.type);
        },
        initFunction: (info) => {
          feed.asked = info.getColumnIndexes();
          feed.next = 0;
        },
        mainFunction: (_, chunk) => feed.produce(chunk),
      }),
    );
    return feed;
  }

  /** The rows of every statement until the next call. */
  use(source: FeedSource): void {
    this.source = source;
  }

  /** Lets go of the rows, so that their buffers can be freed. */
  clear(): void {
    this.source = undefined;
  }

  private produce(chunk: {
    rowCount: number;
    setColumns(columns: readonly (readonly DuckDBValue[])[]): void;
  }): void {
    if (this.source === undefined) throw new Error(`assertion failed: ${this.name} has no rows to give`);
    const rows = Math.min(CHUNK, this.source.rows - this.next);
    chunk.rowCount = rows;
    if (rows === 0) return;
    const wanted: (DuckDBValue[] | undefined)[] = new Array(this.columns.length).fill(undefined);
    for (const index of this.asked) if (index < wanted.length) wanted[index] = new Array<DuckDBValue>(rows);
    this.source.fill(wanted, this.next, rows);
    this.next += rows;
    chunk.setColumns(this.asked.map((index) => wanted[index]!));
  }
}
