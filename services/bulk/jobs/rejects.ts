import { BLOB, type DuckDBBlobValue, type DuckDBTimestampTZValue } from "@duckdb/node-api";
import { literal, rowsOf } from "../../base/duckdb.js";
import { FixedColumn, TextColumn } from "../../columns/column-writers.js";
import { Feed, type FeedColumn, type FeedSource } from "../../columns/feed.js";
import type { IngestContext } from "../../ingest/context.js";
import type { Reject } from "../../sources/formats.js";
import { append } from "../../table/append.js";
import { BOUNDED, writeParquet } from "../../table/data-file.js";
import type { TableSpec } from "../../table/definition.js";
import { DeltaTable } from "../../table/delta-table.js";
import { positionsOf } from "../../table/progress.js";
import { withFilesScan } from "../../table/scan.js";
import { deltaTypeOf } from "../../table/schema.js";
import { COMMIT_TIMES } from "../../table/state.js";
import { positionIn } from "../chunks/row-events.js";
import { streamOf } from "./job-tracks.js";

/** Rows of a source that are no events: one Delta table a job, for whatever reads Delta. */

const rejectsRoot = (job: string): string => `bulk/${job}/rejects`;

type Context = Pick<IngestContext, "store" | "duck" | "tableOptions">;

/** Where rejects come of. */
export interface RejectedFile {
  /** In the manifest. */
  readonly number: number;
  /** What messages call it. */
  readonly shown: string;
  /** A source that is gone through several times has a part for each: of each, rejects are told in their order. */
  readonly part?: string;
}

let feeds = 0;

class RejectRows {
  private readonly texts = {
    part: new TextColumn(),
    position: new TextColumn(),
    source: new TextColumn(),
    code: new TextColumn(),
    reason: new TextColumn(),
  };
  private readonly row = FixedColumn.bigint();
  private readonly offset = FixedColumn.bigint();
  private readonly at = FixedColumn.timestamp();
  private readonly bytes = new TextColumn(BLOB);

  readonly columns: readonly FeedColumn[] = [
    { name: "part", writer: this.texts.part, nullable: false },
    { name: "position", writer: this.texts.position, nullable: false },
    { name: "source", writer: this.texts.source, nullable: false },
    { name: "row", writer: this.row, nullable: false },
    { name: "byte_offset", writer: this.offset, nullable: true },
    { name: "code", writer: this.texts.code, nullable: false },
    { name: "reason", writer: this.texts.reason, nullable: false },
    { name: "bytes", writer: this.bytes, nullable: false },
    { name: "rejected_at", writer: this.at, nullable: false },
  ];

  source({ number, shown, part = WHOLE }: RejectedFile, rejects: readonly Reject[]): FeedSource {
    const now = Date.now() * 1000;
    return {
      rows: rejects.length,
      fill: (start, rows) => {
        for (let row = 0; row < rows; row++) {
          const reject = rejects[start + row]!;
          this.texts.part.setString(row, part);
          this.texts.position.setString(row, positionIn(number, reject.row + 1));
          this.texts.source.setString(row, shown);
          this.texts.code.setString(row, reject.code);
          this.texts.reason.setString(row, reject.message.toWellFormed());
          put(this.row, row, reject.row);
          if (reject.offset !== undefined) put(this.offset, row, reject.offset);
          this.bytes.set(row, Buffer.from(reject.bytes), 0, reject.bytes.length);
          this.at.setMicros(row, 0, now);
        }
      },
    };
  }
}

const WHOLE = "0";
const put = (column: FixedColumn, row: number, value: number) =>
  column.set64(row, value >>> 0, Math.floor(value / 2 ** 32));

const DESCRIPTIONS: Readonly<Record<string, string>> = {
  part: "Of a source that is gone through several times: which time.",
  position: "The file's number and the record's, from 1, ordered as text.",
  source: "The file.",
  row: "The record's number in the file, from 0.",
  byte_offset: "Where it begins in the file, unpacked; NULL where formats have no such place.",
  code: "Why, as docs/errors.md has it.",
  reason: "What was expected.",
  bytes: "The record, or the beginning of a long one; of a row of columns the row as JSON.",
  rejected_at: "When.",
};

const SPEC: TableSpec = {
  columns: new RejectRows().columns.map(({ name, writer }) => ({
    name,
    type: deltaTypeOf(writer.type)!,
    nullable: true,
    description: DESCRIPTIONS[name]!,
  })),
  partitionColumns: [],
  properties: { [COMMIT_TIMES]: "true", [BOUNDED]: "part,position" },
  protocol: {
    minReaderVersion: 1,
    minWriterVersion: 7,
    writerFeatures: ["domainMetadata", "inCommitTimestamp", "tributary.upsert"],
  },
  description: "Rows of a source that a bulk job has rejected.",
};

/** Where a job keeps its rejects. */
export class JobRejects {
  private table: DeltaTable | undefined;

  private constructor(
    private readonly context: Context,
    private readonly job: string,
  ) {}

  /** There is no table before there are rejects. Errors: what opening a table throws. */
  static async open(context: Context, job: string): Promise<JobRejects> {
    const rejects = new JobRejects(context, job);
    const { store, duck, tableOptions } = context;
    rejects.table = await DeltaTable.open(store, rejectsRoot(job), duck, tableOptions);
    return rejects;
  }

  get count(): number {
    return this.table?.snapshot.files.reduce((sum, { rows }) => sum + rows, 0) ?? 0;
  }

  /**
   * Keeps rejects of a file, all of its next records that are none, however ordered. Durable when resolved; those that
   * were told before are kept once, and what is one only now, of a chunk that is made again, is kept too: what is no
   * event depends on descriptors, limits and payloads as they are at the time. Errors: TRB-STORE-FAILED and others of
   * tables.
   */
  async keep(file: RejectedFile, rejects: readonly Reject[]): Promise<void> {
    const { duck, store, tableOptions } = this.context;
    this.table ??= await DeltaTable.openOrCreate(store, rejectsRoot(this.job), duck, tableOptions, SPEC);
    const { table } = this;
    const stream = streamOf(this.job);
    const { part = WHOLE, number } = file;
    const sorted = [...rejects].sort((a, b) => a.row - b.row);
    for (;;) {
      const before = positionsOf(table.snapshot, stream);
      const reached = before.get(part) ?? "";
      const of = ({ row }: Reject) => positionIn(number, row + 1);
      const told = sorted.map(of).filter((position) => position <= reached);
      const kept = await this.keptOf(table, part, told);
      const fresh = sorted.filter((one) => !kept.has(of(one)));
      if (fresh.length === 0) return;
      const last = of(fresh.at(-1)!);
      // Behind what it is put to, and before all that is greater: of two runs that tell late ones, one keeps them.
      const to = new Map([[part, last > reached ? last : `${reached}~`]]);
      const rows = new RejectRows();
      const result = await append(table, stream, before, (localPath) =>
        duck.with(async (connection) => {
          const feed = Feed.register(connection, `tributary_rejects_${++feeds}`, rows.columns);
          feed.use(rows.source(file, fresh));
          try {
            return { file: await writeParquet(connection, `SELECT * FROM ${feed.name}()`, localPath), to };
          } finally {
            feed.clear();
          }
        }),
      );
      if (result.kind === "committed") return;
      await table.refresh();
    }
  }

  /** Those of the positions, in their order, of which there are rejects. */
  private async keptOf(table: DeltaTable, part: string, positions: readonly string[]): Promise<Set<string>> {
    const [first] = positions;
    const last = positions.at(-1);
    if (first === undefined || last === undefined) return new Set();
    const { snapshot } = table;
    const files = snapshot.files.filter(
      ({ min, max }) => (min.position ?? first) <= last && (max.position ?? last) >= first,
    );
    const where = `part = ${literal(part)} AND position BETWEEN ${literal(first)} AND ${literal(last)}`;
    const columns = ["part", "position"];
    const rows = await withFilesScan(table, snapshot, files, { columns, where }, (sql) =>
      this.context.duck.with((connection) => rowsOf(connection, `SELECT position FROM (${sql})`)),
    );
    return new Set(rows.map(([position]) => String(position)));
  }

  /** Resolves when no log checkpoint is being written any more. */
  async close(): Promise<void> {
    await this.table?.settled();
  }
}

/** One of a page. */
export interface KeptReject extends Omit<Reject, "code"> {
  readonly code: string;
  /** Of the source. */
  readonly source: string;
  /** ISO 8601. */
  readonly rejectedAt: string;
}

/** As it is answered: plain JSON, bytes in base64. */
export const rejectJson = ({ bytes, message, offset, ...rest }: KeptReject) => ({
  ...rest,
  offset: offset ?? null,
  reason: message,
  bytes: Buffer.from(bytes).toString("base64"),
});

export interface RejectPage {
  readonly rejects: readonly KeptReject[];
  /** For the next page; undefined after the last one. */
  readonly next: string | undefined;
}

const CURSOR = /^([\w-]{1,64})\/(\d{8}\.[\d.]{1,32})$/;

/**
 * A job's rejects, in their order, so many at a time: from the first one, or behind the cursor of the last page. There
 * are none of a job that has rejected nothing. Errors: those of reading a table.
 */
export async function readRejects(
  { store, duck, tableOptions }: Context,
  job: string,
  { limit, after = "" }: { readonly limit: number; readonly after?: string },
): Promise<RejectPage> {
  const table = await DeltaTable.open(store, rejectsRoot(job), duck, tableOptions);
  if (table === undefined) return { rejects: [], next: undefined };
  const [, part = "", position = ""] = CURSOR.exec(after) ?? [];
  const where = `(part, position) > (${literal(part)}, ${literal(position)})`;
  const { snapshot } = table;
  const files = snapshot.files.filter(
    ({ max }) =>
      max.part === undefined || max.position === undefined || max.part > part || max.position > position,
  );
  const names = "part, position, source, row, byte_offset, code, reason, bytes, rejected_at";
  const rows = await withFilesScan(table, snapshot, files, { columns: names.split(", "), where }, (sql) =>
    duck.with((connection) =>
      rowsOf(connection, `SELECT ${names} FROM (${sql}) ORDER BY part, position LIMIT ${limit}`),
    ),
  );
  const last = rows.at(-1);
  return {
    rejects: rows.map(([, , source, row, offset, code, message, bytes, at]) => ({
      source: source as string,
      row: Number(row),
      offset: offset === null ? undefined : Number(offset),
      code: code as string,
      message: message as string,
      bytes: (bytes as DuckDBBlobValue).bytes,
      rejectedAt: new Date(Number((at as DuckDBTimestampTZValue).micros) / 1000).toISOString(),
    })),
    next: last === undefined || rows.length < limit ? undefined : `${last[0]}/${last[1]}`,
  };
}

/** Rejects for one reason. */
export interface RejectReason {
  readonly code: string;
  readonly reason: string;
  readonly rows: number;
  /** Where the first of them lies. */
  readonly source: string;
  readonly row: number;
}

const MOST_REASONS = 50;

/** Why a job's rows were rejected, the most frequent reason first, so many of them at most. Errors: those of reading a table. */
export async function rejectReasons(
  { store, duck, tableOptions }: Context,
  job: string,
): Promise<RejectReason[]> {
  const table = await DeltaTable.open(store, rejectsRoot(job), duck, tableOptions);
  if (table === undefined) return [];
  const { snapshot } = table;
  const columns = ["part", "position", "source", "row", "code", "reason"];
  const rows = await withFilesScan(table, snapshot, snapshot.files, { columns }, (sql) =>
    duck.with((connection) =>
      rowsOf(
        connection,
        `SELECT code, reason, count(*), arg_min(source, (part, position)), arg_min(row, (part, position))
         FROM (${sql}) GROUP BY ALL ORDER BY 3 DESC, 1, 2 LIMIT ${MOST_REASONS}`,
      ),
    ),
  );
  return rows.map(([code, reason, count, source, row]) => ({
    code: String(code),
    reason: String(reason),
    rows: Number(count),
    source: String(source),
    row: Number(row),
  }));
}
