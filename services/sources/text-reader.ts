import { stat } from "node:fs/promises";
import type { DuckDBConnection } from "@duckdb/node-api";
import { rowsOf } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import { type Batch, type FormatReader, sifted } from "./batch.js";
import { bytesOf } from "./bytes.js";
import { type CsvHeader, CsvSplitter } from "./csv-splitter.js";
import { damaged, ORDINAL, REJECT_BYTES, type Reject, type SourceColumn } from "./formats.js";
import { FrameSplitter } from "./frame-splitter.js";
import { LineSplitter, NO_OBJECT } from "./line-splitter.js";
import { RecordFeed } from "./record-feed.js";
import { type Mark, type Records, type Splitter, type SplitterOptions, without } from "./splitter.js";
import type { ReadUnit } from "./unit.js";

/** A byte order mark, with which a text may begin. */
const BOM = Buffer.from([0xef, 0xbb, 0xbf]);

const PUSH_BYTES = 64 * 1024;

/** The column of lines of JSON. */
export const RECORD = "record";
/** The column of ChangeEvents. */
export const EVENT = "event";

/** Formats whose records follow each other in a stream of bytes. */
export class TextReader implements FormatReader {
  private constructor(
    private readonly connection: DuckDBConnection,
    private readonly unit: ReadUnit,
    readonly columns: readonly SourceColumn[],
    private readonly feed: RecordFeed,
    /** Where records begin in the file: after a mark and a header. */
    private readonly head: number,
    private readonly onBytes: () => void,
  ) {}

  /** Errors: those of `bytesOf`; TRB-SOURCE-DAMAGED for a header that is none. */
  static async open(connection: DuckDBConnection, unit: ReadUnit, onBytes: () => void): Promise<TextReader> {
    const isBytes = unit.format === "events";
    let head = isBytes ? 0 : await markOf(unit);
    let names: readonly string[] = [isBytes ? EVENT : RECORD];
    if (unit.format === "csv") {
      requireDelimiter(unit);
      if (unit.csv.columns !== undefined) names = unit.csv.columns;
      else ({ names, head } = await header(unit, head));
      requireNames(unit, names);
    }
    const feed = RecordFeed.of(connection, names, isBytes ? "bytes" : "text");
    const columns =
      unit.format === "debezium"
        ? DEBEZIUM_COLUMNS
        : names.map((name) => ({ name, type: isBytes ? "BLOB" : "VARCHAR" }));
    return new TextReader(connection, unit, columns, feed, head, onBytes);
  }

  async *batches(from: Mark): AsyncGenerator<Batch> {
    const { unit, head } = this;
    const seeks = unit.compression === "none" && from.offset !== undefined && from.offset > head;
    const start = seeks ? from.offset! : head;
    const splitter = this.splitter({
      maxRecordBytes: unit.maxRecordBytes,
      from,
      start,
      startRow: seeks ? from.row : 0,
    });
    const { size } = await stat(unit.path);
    const state: Progress = { first: from.row, passed: start, ends: size };
    let unpacked = 0;
    let read = 0;
    const onRead = (bytes: number) => {
      read = bytes;
    };
    for await (const piece of this.bytesFrom(start, onRead)) {
      unpacked += piece.length;
      if (unit.compression !== "none") state.ends = (unpacked * size) / read;
      // Little by little: a byte may be a record.
      for (let at = 0; at < piece.length; at += PUSH_BYTES) {
        splitter.push(piece.subarray(at, at + PUSH_BYTES));
        // What is no record, or one without end, holds nothing: whoever reads is to be asked whether it goes on.
        const isMuch = splitter.passed - state.passed >= unit.batchBytes && splitter.mark.row >= from.row;
        if (splitter.held < unit.batchBytes && !isMuch) continue;
        yield this.batch(splitter, state);
        // Of events somebody keeps the bytes; lines and rows are the engine's by now.
        if (unit.format !== "events") splitter.giveBack();
      }
    }
    const wrong = splitter.end();
    if (splitter.mark.row > state.first) yield this.batch(splitter, state);
    if (wrong !== undefined) throw damaged(unit.shown, wrong);
  }

  private splitter(options: SplitterOptions): Splitter {
    switch (this.unit.format) {
      case "csv":
        return new CsvSplitter(this.columns.length, this.unit.csv, options);
      case "events":
        return new FrameSplitter(1, options);
      default:
        return new LineSplitter(1, options);
    }
  }

  private async *bytesFrom(start: number, onRead: (bytes: number) => void): AsyncGenerator<Buffer> {
    const seeks = this.unit.compression === "none";
    let skip = seeks ? 0 : start;
    for await (const piece of bytesOf(this.unit, start, onRead)) {
      const rest = skip === 0 ? piece : piece.subarray(Math.min(skip, piece.length));
      skip -= piece.length - rest.length;
      this.onBytes();
      if (rest.length > 0) yield rest;
    }
  }

  /** Takes what the splitter has cut. `state` is where the batch begins, and becomes where the next one does. */
  private async batch(splitter: Splitter, state: Progress): Promise<Batch> {
    const { first } = state;
    const next = splitter.mark;
    const bytes = splitter.passed - state.passed;
    const { records, rejects } = splitter.take();
    state.first = next.row;
    state.passed += bytes;
    this.feed.use(records);
    const { format, compression } = this.unit;
    const isJson = format === "ndjson" || format === "debezium";
    const batch: Batch = {
      sql: format === "debezium" ? debeziumSql(this.feed.sql) : `SELECT * FROM ${this.feed.sql}`,
      events: format === "events" ? records : undefined,
      first,
      next: compression === "none" ? next : { row: next.row },
      rows: records.count,
      bytes,
      left: Math.max(0, state.ends - state.passed),
      rejects,
      sift: isJson && records.count > 0 ? () => this.sift(records) : undefined,
    };
    // JSON that is no row of a snapshot is read like one that is.
    return format === "debezium" ? sifted(batch) : batch;
  }

  /** Lines are known to be rows once their JSON has been looked at. */
  private async sift(records: Records): Promise<Reject[]> {
    const wrong = this.unit.format === "ndjson" ? "NULL" : SNAPSHOT_FAULT;
    const found = await rowsOf(
      this.connection,
      // Errors of functions, caught by try(), cost 60 µs each.
      `SELECT ${ORDINAL}, fault FROM (
         SELECT ${ORDINAL}, CASE WHEN NOT json_valid(${RECORD}) THEN '${NO_OBJECT.code}' ELSE ${wrong} END AS fault
         FROM ${this.feed.sql}) WHERE fault IS NOT NULL`,
    );
    if (found.length === 0) return [];
    const faults = new Map(found.map(([ordinal, fault]) => [Number(ordinal), fault as Fault]));
    const places = new Set<number>();
    const lines: Reject[] = [];
    for (let at = 0; at < records.count; at++) {
      const row = records.ordinals[at]!;
      const code = faults.get(row);
      if (code === undefined) continue;
      places.add(at);
      const [start, end] = [records.fields[at * 2]!, records.fields[at * 2 + 1]!];
      const bytes = Buffer.from(records.bytes.subarray(start, Math.min(end, start + REJECT_BYTES)));
      lines.push({ row, offset: records.offsets[at], code, message: FAULTS[code], bytes });
    }
    this.feed.use(without(records, places));
    return lines;
  }
}

/** Of a file's unpacked bytes, and where they end, as far as that can be told. */
interface Progress {
  first: number;
  passed: number;
  ends: number;
}

type Fault = keyof typeof FAULTS;
const FAULTS = {
  [NO_OBJECT.code]: NO_OBJECT.message,
  "TRB-ROW-SNAPSHOT": 'line: expected op "r" and an object in after, in payload or at the top',
} as const;

/** What Debezium says is in `payload` where a schema comes with each row, else at the top. */
const PAYLOAD = `CASE WHEN json_type(${RECORD}, '$.payload') = 'OBJECT' THEN json_extract(${RECORD}, '$.payload') ELSE ${RECORD}::JSON END`;
const SNAPSHOT_FAULT = `CASE WHEN json_extract_string(${PAYLOAD}, '$.op') = 'r' AND json_type(${PAYLOAD}, '$.after') = 'OBJECT' THEN NULL ELSE 'TRB-ROW-SNAPSHOT' END`;
const DEBEZIUM_COLUMNS: readonly SourceColumn[] = [
  { name: RECORD, type: "VARCHAR" },
  { name: "source", type: "VARCHAR" },
  { name: "ts_ms", type: "BIGINT" },
];
const debeziumSql = (feed: string) =>
  `SELECT ${ORDINAL}, json_extract(payload, '$.after')::VARCHAR AS ${RECORD},
     json_extract(payload, '$.source')::VARCHAR AS source,
     TRY_CAST(json_extract_string(payload, '$.ts_ms') AS BIGINT) AS ts_ms
   FROM (SELECT ${ORDINAL}, ${PAYLOAD} AS payload FROM ${feed})`;

/** How many bytes of a mark a text begins with. */
async function markOf(unit: ReadUnit): Promise<number> {
  let begun = Buffer.alloc(0);
  for await (const piece of bytesOf(unit)) {
    begun = Buffer.concat([begun, piece.subarray(0, BOM.length)]);
    if (begun.length >= BOM.length) break;
  }
  return begun.subarray(0, BOM.length).equals(BOM) ? BOM.length : 0;
}

/** Errors: TRB-SOURCE-DAMAGED. */
async function header(unit: ReadUnit, mark: number): Promise<CsvHeader> {
  const { maxRecordBytes } = unit;
  const splitter = new CsvSplitter(undefined, unit.csv, {
    maxRecordBytes,
    from: { row: 0 },
    start: mark,
    startRow: 0,
  });
  let skip = mark;
  for await (const piece of bytesOf(unit)) {
    splitter.push(piece.subarray(Math.min(skip, piece.length)));
    skip = Math.max(0, skip - piece.length);
    if (splitter.mark.row > 0 || splitter.passed > maxRecordBytes) break;
  }
  if (splitter.mark.row === 0) splitter.end();
  if (splitter.header === undefined)
    throw damaged(unit.shown, "header: expected names of columns, found none");
  return splitter.header;
}

/** Errors: TRB-SOURCE-FORMAT. */
function requireDelimiter({ shown, csv }: ReadUnit): void {
  if (/^[\t\x20-\x7e]$/.test(csv.delimiter) && csv.delimiter !== '"') return;
  throw new TributaryError(
    "TRB-SOURCE-FORMAT",
    `${shown}: delimiter: expected one ASCII character that is no quote`,
  );
}

/** Errors: TRB-SOURCE-FORMAT. */
function requireNames({ shown }: ReadUnit, names: readonly string[]): void {
  // The engine tells no cases apart.
  const distinct = new Set([ORDINAL, ...names.map((name) => name.toLowerCase())]);
  if (distinct.size === names.length + 1 && !distinct.has("")) return;
  const message = `${shown}: header: expected names that differ in more than case, none empty and none ${ORDINAL}`;
  throw new TributaryError("TRB-SOURCE-FORMAT", message);
}
