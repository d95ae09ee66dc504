import { randomBytes } from "node:crypto";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import {
  type DuckDBConnection,
  type DuckDBDataChunk,
  DuckDBInstance,
  type DuckDBValue,
} from "@duckdb/node-api";
import { shut, strangersEngine } from "./sealed-engine.js";

const MiB = 1024 * 1024;
/** What may lie on disk of what does not fit into memory, in times the memory. */
const SPILLED = 4;

/**
 * One in-memory DuckDB for trusted SQL: it scans and writes Parquet files, holds nothing between calls.
 * Each connection runs on one thread (two threads a connection cost a quarter more CPU for the same work);
 * parallelism comes from several connections at once.
 */
export class Duck {
  private constructor(
    private readonly instance: DuckDBInstance,
    private readonly sealed = false,
  ) {}

  /** For files of strangers: it reads the files of `paths` and nothing else, and does not spill. */
  static async sealed(memoryBytes: number, paths: readonly string[]): Promise<Duck> {
    const instance = await strangersEngine(memoryBytes);
    const connection = await instance.connect();
    // For all connections to come: the engine takes no settings any more once it is closed.
    await connection.run("SET GLOBAL TimeZone='UTC'; SET GLOBAL Calendar='gregorian'");
    await shut(connection, paths);
    connection.closeSync();
    return new Duck(instance, true);
  }

  /** It spills into a folder of its own below `tempFolder`; without one it does not spill. */
  static async create(options: { memoryBytes: number; tempFolder?: string }): Promise<Duck> {
    const { tempFolder } = options;
    // A disk that is full or gone stops only what has to spill.
    if (tempFolder !== undefined) await mkdir(tempFolder, { recursive: true }).catch(() => undefined);
    // Engines that spill into one folder take each other's files for their own: one beside a running ingest, as of
    // `deadletter redrive`, ended both, or gave wrong rows.
    const own = tempFolder === undefined ? "" : join(tempFolder, randomBytes(8).toString("hex"));
    const instance = await DuckDBInstance.create(":memory:", {
      threads: "1",
      memory_limit: `${Math.ceil(options.memoryBytes / MiB)}MiB`,
      temp_directory: own,
      // One statement gone wild must not fill the disk that others spill to.
      ...(tempFolder === undefined
        ? {}
        : { max_temp_directory_size: `${Math.ceil((SPILLED * options.memoryBytes) / MiB)}MiB` }),
      autoinstall_known_extensions: "false",
      autoload_known_extensions: "false",
      preserve_insertion_order: "true",
    });
    return new Duck(instance);
  }

  async connect(): Promise<DuckDBConnection> {
    const connection = await this.instance.connect();
    if (!this.sealed) await connection.run("SET TimeZone='UTC'");
    return connection;
  }

  /** A connection for the length of one call. */
  async with<T>(use: (connection: DuckDBConnection) => Promise<T>): Promise<T> {
    const connection = await this.connect();
    try {
      return await use(connection);
    } finally {
      connection.closeSync();
    }
  }

  close(): void {
    this.instance.closeSync();
  }
}

/** All rows of a query, as arrays of DuckDB values. */
export async function rowsOf(
  connection: DuckDBConnection,
  sql: string,
  values?: DuckDBValue[],
): Promise<DuckDBValue[][]> {
  return (await connection.runAndReadAll(sql, values)).getRows();
}

/**
 * The chunks of a query's rows, one at a time; a chunk is read before the next is asked for. The connection is for
 * nothing else until it ends. Errors: the engine's; of rows that could not be read to the end one that `isOutOfMemory` knows.
 */
export async function* chunksOf(connection: DuckDBConnection, sql: string): AsyncGenerator<DuckDBDataChunk> {
  // A stream of rows that fails midway just ends, but it leaves its transaction aborted, which then refuses even this.
  await connection.run("BEGIN TRANSACTION READ ONLY");
  try {
    const result = await connection.stream(sql);
    for (;;) {
      const chunk = await result.fetchChunk();
      if (chunk === null || chunk.rowCount === 0) break;
      yield chunk;
    }
    await connection.run("SELECT 1");
  } finally {
    await connection.run("ROLLBACK");
  }
}

/** 'it''s' — a string literal for trusted SQL. */
export const literal = (text: string): string => `'${text.replaceAll("'", "''")}'`;

/** "a""b" — an identifier for trusted SQL. */
export const identifier = (name: string): string => `"${name.replaceAll('"', '""')}"`;
