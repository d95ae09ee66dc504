import { readFile } from "node:fs/promises";
import type { DuckDBConnection } from "@duckdb/node-api";
import { identifier, literal, rowsOf } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import { decodeVector, locateVector, unframeVector } from "../table/deletion-vector.js";
import { Mask } from "../table/mask.js";
import type { Batch, FormatReader } from "./batch.js";
import { damaged, ORDINAL, type SourceColumn } from "./formats.js";
import type { Mark } from "./splitter.js";
import type { ReadUnit } from "./unit.js";

const ROW = "file_row_number";

/** Rows of one batch, at most; what repeats in a row group takes more memory than it tells. */
const BATCH_ROWS = 125_000;
/** A row group of so many batches' bytes is still read at once: in two parts it would be unpacked twice. */
const WHOLE_BATCHES = 2;

interface RowGroup {
  readonly rows: number;
  /** Unpacked. */
  readonly bytes: number;
}

/** A Parquet file, by itself or as one of a Delta table's. */
export class ParquetReader implements FormatReader {
  private constructor(
    private readonly unit: ReadUnit,
    readonly columns: readonly SourceColumn[],
    /** Expressions for them. */
    private readonly selected: readonly string[],
    private readonly groups: readonly RowGroup[],
    private readonly mask: Mask | undefined,
  ) {}

  /** Errors: TRB-SOURCE-FORMAT, TRB-SOURCE-DAMAGED; the engine's. */
  static async open(connection: DuckDBConnection, unit: ReadUnit): Promise<ParquetReader> {
    const path = literal(unit.path);
    const described = await rowsOf(
      connection,
      `DESCRIBE SELECT * FROM read_parquet(${path}, hive_partitioning=false)`,
    );
    const own = described.map(([name, type]) => ({ name: String(name), type: String(type) }));
    if (own.some(({ name }) => [ORDINAL, ROW].includes(name.toLowerCase()))) {
      throw new TributaryError("TRB-SOURCE-FORMAT", `${unit.shown}: expected no column ${ORDINAL} or ${ROW}`);
    }
    const groups = await rowsOf(
      connection,
      `SELECT any_value(row_group_num_rows), sum(total_uncompressed_size)::DOUBLE FROM parquet_metadata(${path})
       GROUP BY row_group_id ORDER BY row_group_id`,
    );
    const sizes = groups.map(([rows, bytes]) => ({ rows: Number(rows), bytes: Number(bytes) }));
    const columns = unit.delta?.columns.map(({ name, type }) => ({ name, type })) ?? own;
    const selected = unit.delta === undefined ? own.map(({ name }) => identifier(name)) : ofTable(unit, own);
    const rows = sizes.reduce((sum, group) => sum + group.rows, 0);
    return new ParquetReader(unit, columns, selected, sizes, await maskOf(unit, rows));
  }

  get rows(): number {
    return this.groups.reduce((sum, group) => sum + group.rows, 0) - (this.mask?.count ?? 0);
  }

  async *batches(from: Mark): AsyncGenerator<Batch> {
    const { unit, mask } = this;
    const parts = [...this.ranges(from.row)];
    let left = parts.reduce((sum, { bytes }) => sum + bytes, 0);
    for (const { start, end, bytes } of parts) {
      left -= bytes;
      let where = `${ROW} >= ${start} AND ${ROW} < ${end}`;
      let rows = end - start;
      if (mask !== undefined && mask.count > 0) {
        for (let row = start; row < end; row++) if (mask.has(row)) rows--;
        where += ` AND ${unmasked(mask, start, end)}`;
      }
      const columns = [`${ROW} AS ${ORDINAL}`, ...this.selected].join(", ");
      const sql = `SELECT ${columns} FROM read_parquet(${literal(unit.path)}, file_row_number=true, hive_partitioning=false) WHERE ${where}`;
      yield { sql, first: start, next: { row: end }, rows, bytes, left, rejects: [] };
    }
  }

  /**
   * Rows [start, end) of the batches: row groups that are small go together, large ones are read in parts, each of
   * which costs the reading of all of the group.
   */
  private *ranges(
    from: number,
  ): Generator<{ readonly start: number; readonly end: number; readonly bytes: number }> {
    const { batchBytes } = this.unit;
    let start = 0;
    let end = 0;
    let bytes = 0;
    const parts: { start: number; end: number; bytes: number }[] = [];
    const close = () => {
      if (end > start) parts.push({ start, end, bytes });
      start = end;
      bytes = 0;
    };
    for (const group of this.groups) {
      const full = bytes + group.bytes > batchBytes || end - start + group.rows > BATCH_ROWS;
      if (end > start && full) close();
      const mostBytes = WHOLE_BATCHES * batchBytes;
      const wanted = Math.max(Math.ceil(group.bytes / mostBytes), Math.ceil(group.rows / BATCH_ROWS));
      const pieces = Math.max(1, Math.min(group.rows, wanted));
      const above = end;
      for (let piece = 1; piece <= pieces; piece++) {
        end = above + Math.floor((group.rows * piece) / pieces);
        bytes += group.bytes / pieces;
        if (piece < pieces) close();
      }
    }
    close();
    for (const part of parts) {
      if (part.end <= from) continue;
      yield part.start >= from ? part : { ...part, start: from };
    }
  }
}

/** The table's columns: as the file has them, as the log does, or NULL in files from before there was one. */
function ofTable({ delta, shown }: ReadUnit, own: readonly SourceColumn[]): string[] {
  const { columns, partition } = delta!;
  const names = new Map(own.map(({ name }) => [name.toLowerCase(), name]));
  return columns.map(({ name, type }) => {
    const as = `AS ${identifier(name)}`;
    if (Object.hasOwn(partition, name)) {
      if (type === "BLOB") {
        throw new TributaryError(
          "TRB-SOURCE-FORMAT",
          `${shown}: expected no partition column of binary values`,
        );
      }
      const value = partition[name];
      // The protocol writes NULL as an empty text, too.
      return value === null || value === undefined || value === ""
        ? `NULL::${type} ${as}`
        : `CAST(${literal(value)} AS ${type}) ${as}`;
    }
    const found = names.get(name.toLowerCase());
    return found === undefined ? `NULL::${type} ${as}` : `${identifier(found)}::${type} ${as}`;
  });
}

/** The rows that the table has deleted. Errors: TRB-SOURCE-DAMAGED. */
async function maskOf({ delta, vectorPath, shown }: ReadUnit, rows: number): Promise<Mask | undefined> {
  if (delta?.vector === undefined) return undefined;
  try {
    const { vector } = delta;
    const at = locateVector(vector);
    let payload: Buffer;
    if ("inline" in at) payload = at.inline;
    else {
      const start = vector.offset ?? 1;
      const whole = await readFile(vectorPath!);
      payload = unframeVector(whole.subarray(start, start + vector.sizeInBytes + 8), vector.sizeInBytes);
    }
    const masked = decodeVector(payload);
    if (masked.length !== vector.cardinality)
      throw damaged(shown, "its deletion vector has other rows than the log says");
    return Mask.of(rows, masked);
  } catch (error) {
    throw damaged(shown, "its deletion vector is damaged, or of another file", error);
  }
}

/** A condition for the rows [start, end) that are not masked; only their bits go into the statement. */
function unmasked({ bits }: Mask, start: number, end: number): string {
  const first = start >> 3;
  const part = Buffer.from(bits.subarray(first, (end + 7) >> 3)).toString("base64");
  return `get_bit(from_base64('${part}')::BIT, (${ROW} - ${first * 8})::INTEGER) = 0`;
}
