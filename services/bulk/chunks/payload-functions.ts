import { BIGINT, BLOB, type DuckDBConnection, DuckDBScalarFunction, type DuckDBType } from "@duckdb/node-api";
import duckdb from "@duckdb/node-bindings";
import { assertTextLayout } from "../../columns/column-layout.js";
import { FixedReader } from "../../columns/column-readers.js";
import { type ColumnWriter, FixedColumn, TextColumn, type Vector } from "../../columns/column-writers.js";
import { contentHashOf } from "../../contracts/content-hash.js";
import type { PayloadEncoder } from "../../contracts/payload-encoder.js";
import { PayloadRows } from "../../contracts/payload-rows.js";
import type { Refusal } from "../../contracts/payload-values.js";

export const PAYLOAD = "tributary_payload";
export const HASH = "tributary_hash";

type Input = Parameters<typeof duckdb.data_chunk_get_vector>[0];

/**
 * What SQL cannot say of a row: its payload's bytes, and their hash in the order of writes. Functions of a connection,
 * for rows of one table: `tributary_payload(rowid, <the encoder's columns>)`, and `tributary_hash(rowid)` of rows that
 * have gone through it.
 */
export class PayloadFunctions {
  /** Of the rows that are no payloads, by their ids; what they were given as is empty. */
  readonly refused = new Map<number, Refusal>();
  /** Bytes of those that are too large for a row, by the ids of their rows, which are given as NULL. */
  readonly large = new Map<number, number>();
  /** Takes these, while it is there. */
  takeLarge: ((id: number, payload: Buffer) => void) | undefined;
  /** Bytes of the payloads so far. */
  bytes = 0;
  private readonly ids = new FixedReader(8);
  private readonly encoded: PayloadRows;
  private readonly payloads = new TextColumn(BLOB);
  private readonly told = FixedColumn.bigint();
  /** Two words a row. */
  private hashes = new Uint32Array(0);

  constructor(
    private readonly encoder: PayloadEncoder,
    url: Buffer,
    private readonly mostBytes: number,
    /** Called now and then while rows go through. */
    private readonly getsOn: () => void,
  ) {
    this.encoded = new PayloadRows(url);
  }

  /** `types` are those of the encoder's columns. */
  register(connection: DuckDBConnection, types: readonly DuckDBType[]): void {
    assertTextLayout();
    define(connection, PAYLOAD, BLOB, [BIGINT, ...types], (chunk, rows, out) =>
      this.encode(chunk, rows, out),
    );
    define(connection, HASH, BIGINT, [BIGINT], (chunk, rows, out) => this.hash(chunk, rows, out));
  }

  /** For a table whose rows have ids below `rows`. */
  begin(rows: number): void {
    this.refused.clear();
    this.large.clear();
    this.bytes = 0;
    if (this.hashes.length < rows * 2) this.hashes = new Uint32Array(rows * 2);
  }

  hashOf(row: number): readonly [low: number, high: number] {
    return [this.hashes[row * 2]!, this.hashes[row * 2 + 1]!];
  }

  private encode(chunk: Input, rows: number, out: Vector): void {
    const { encoder, ids, encoded, payloads, hashes } = this;
    const wide = new BigInt64Array(1);
    const halves = new Uint32Array(wide.buffer);
    ids.take(duckdb.data_chunk_get_vector(chunk, 0), rows);
    encoder.takeVectors(chunk, rows, 1);
    payloads.begin(rows);
    for (let first = 0; first < rows; first = encoded.end) {
      encoder.encode(first, encoded);
      for (let row = first; row < encoded.end; row++) {
        const id = ids.words[row * 2]!;
        const refusal = encoded.refusal(row);
        if (refusal !== undefined) {
          this.refused.set(id, refusal);
          continue;
        }
        const start = encoded.from(row);
        const end = encoded.ends[row]!;
        if (end - start > this.mostBytes) {
          this.large.set(id, end - start);
          this.takeLarge?.(id, encoded.bytes.subarray(start, end));
          payloads.setNull(row);
        } else payloads.set(row, encoded.bytes, start, end);
        this.bytes += end - start;
        wide[0] = contentHashOf(encoded.whole(row));
        hashes[id * 2] = halves[0]!;
        hashes[id * 2 + 1] = halves[1]!;
      }
    }
    encoder.release();
    payloads.flush(out, rows);
    this.getsOn();
  }

  private hash(chunk: Input, rows: number, out: Vector): void {
    const { ids, told, hashes } = this;
    ids.take(duckdb.data_chunk_get_vector(chunk, 0), rows);
    told.begin(rows);
    for (let row = 0; row < rows; row++) {
      const at = ids.words[row * 2]! * 2;
      told.set64(row, hashes[at]!, hashes[at + 1]!);
    }
    told.flush(out, rows);
    this.getsOn();
  }
}

function define(
  connection: DuckDBConnection,
  name: string,
  returns: ColumnWriter["type"],
  takes: readonly DuckDBType[],
  run: (chunk: Input, rows: number, out: Vector) => void,
): void {
  // It sees NULL too; and what it says of a row holds for that run alone.
  const made = DuckDBScalarFunction.create({
    name,
    returnType: returns,
    parameterTypes: takes,
    specialHandling: true,
    volatile: true,
    mainFunction: () => undefined,
  });
  duckdb.scalar_function_set_function(made.scalar_function, (_, chunk, out) =>
    run(chunk, duckdb.data_chunk_get_size(chunk), out),
  );
  connection.registerScalarFunction(made);
}
