import type { DuckDBConnection } from "@duckdb/node-api";
import { identifier, literal } from "../base/duckdb.js";
import { engineErrorOf, isMemoryError } from "../base/engine-error.js";
import { TributaryError } from "../base/errors.js";
import { type Batch, type FormatReader, sifted } from "./batch.js";
import { damaged, ORDINAL, type SourceColumn } from "./formats.js";
import type { HeldFile } from "./held-file.js";
import { ParquetReader } from "./parquet-reader.js";
import type { Mark } from "./splitter.js";
import { TextReader } from "./text-reader.js";
import { type ReadUnit, requireUnchanged } from "./unit.js";

export const START: Mark = { row: 0 };

/**
 * Reads one file of a source over a connection of an engine whose only file it is, where it may be killed: see
 * SourceProcess. Rows come as a relation, for the same engine to map; records that are no rows come beside it.
 */
export class SourceReader {
  private constructor(
    private readonly unit: ReadUnit,
    private readonly reader: FormatReader,
    /** Columns that the path has and the file has not. */
    readonly partition: readonly SourceColumn[],
  ) {}

  /**
   * `onBytes` is told whenever a text has been read further: it gets on, though no batch comes of a record that is
   * gigabytes long. Errors: TRB-SOURCE-CHANGED, TRB-SOURCE-DAMAGED, TRB-SOURCE-FORMAT, TRB-SOURCE-MEMORY, TRB-SOURCE-UNREADABLE.
   */
  static async open(
    connection: DuckDBConnection,
    { unit, path }: HeldFile,
    onBytes: () => void = () => undefined,
  ): Promise<SourceReader> {
    try {
      const held = { ...unit, path };
      const isParquet = unit.format === "parquet" || unit.format === "delta";
      const reader = await (isParquet
        ? ParquetReader.open(connection, held)
        : TextReader.open(connection, held, onBytes));
      const own = new Set(reader.columns.map(({ name }) => name.toLowerCase()));
      const names = Object.keys(unit.partition).filter((name) => !own.has(name.toLowerCase()));
      if (new Set([ORDINAL, ...names.map((name) => name.toLowerCase())]).size !== names.length + 1) {
        const message = `${unit.shown}: expected columns in its path that differ in more than case, none ${ORDINAL}`;
        throw new TributaryError("TRB-SOURCE-FORMAT", message);
      }
      return new SourceReader(
        unit,
        reader,
        names.map((name) => ({ name, type: "VARCHAR" })),
      );
    } catch (error) {
      throw await failureOf(unit, error);
    }
  }

  /** Of the relations, beside ORDINAL: the file's own, then those of its path. */
  get columns(): readonly SourceColumn[] {
    return [...this.reader.columns, ...this.partition];
  }

  /** Of the whole file, where that is known without reading it. */
  get rows(): number | undefined {
    return this.reader.rows;
  }

  /**
   * The file's records from `from` on, a batch at a time, unless told otherwise sifted. A file that changes ends it before
   * the next batch is given. Errors: as `open`. What goes wrong while a batch's relation is read is told by `failure`.
   */
  async *batches(from: Mark = START, sifts = true): AsyncGenerator<Batch> {
    try {
      for await (const given of this.reader.batches(from)) {
        const batch = sifts ? await sifted(given) : given;
        await requireUnchanged(this.unit);
        yield { ...batch, sql: this.withPartition(batch.sql) };
        await requireUnchanged(this.unit);
      }
      await requireUnchanged(this.unit);
    } catch (error) {
      throw await failureOf(this.unit, error);
    }
  }

  private withPartition(sql: string): string {
    if (this.partition.length === 0) return sql;
    const values = this.partition.map(({ name }) => {
      const value = this.unit.partition[name];
      return `${value === null || value === undefined ? "NULL::VARCHAR" : literal(value)} AS ${identifier(name)}`;
    });
    return `SELECT *, ${values.join(", ")} FROM (${sql})`;
  }

  /** Whoever is about to keep what came of a batch asks this first. Errors: TRB-SOURCE-CHANGED. */
  requireUnchanged(): Promise<void> {
    return requireUnchanged(this.unit);
  }

  /** What an error of the engine's, met while a relation was read, means for the file. */
  failure(error: unknown): Promise<TributaryError> {
    return failureOf(this.unit, error);
  }
}

async function failureOf(unit: ReadUnit, error: unknown): Promise<TributaryError> {
  if (error instanceof TributaryError && error.code !== "TRB-SOURCE-DAMAGED") return error;
  try {
    await requireUnchanged(unit);
  } catch (changed) {
    return changed as TributaryError;
  }
  if (error instanceof TributaryError) return error;
  const told = engineErrorOf(error);
  if (told !== undefined && isMemoryError(told)) {
    const message = `${unit.shown}: its reader ran out of memory`;
    return new TributaryError("TRB-SOURCE-MEMORY", message, { cause: error });
  }
  // The engine's words can hold values and paths.
  return damaged(unit.shown, `it is not readable as ${unit.format}, or not to its end`, error);
}
