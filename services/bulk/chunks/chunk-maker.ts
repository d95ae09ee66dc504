import type { DuckDBConnection } from "@duckdb/node-api";
import type { Duck } from "../../base/duckdb.js";
import { TributaryError } from "../../base/errors.js";
import { ProtoRegistry } from "../../contracts/registry.js";
import type { HeldFile } from "../../sources/held-file.js";
import { type WrittenFile, writeParquet } from "../../table/data-file.js";
import { costOf, isWhole, NO_FILE, REJECTED_BYTES } from "./chunk-file.js";
import { ChunkModels, type WriteModel } from "./chunk-models.js";
import type { Chunk, FileReject, NextChunk, Opened, OpenFiles } from "./chunk-protocol.js";
import { ChunkTable } from "./chunk-table.js";
import { type FileBatch, FilesReader } from "./files-reader.js";
import { type MappedRelation, mappedRelation } from "./mapped-relation.js";
import { PayloadsAside } from "./payloads-aside.js";
import { type EventDigest, eventDigests, writeMade } from "./row-digests.js";
import { RowEvents, type RowFault, type RowOrder, type SourcePlace } from "./row-events.js";
import { rowsAsJson } from "./rows-as-json.js";

/**
 * Makes chunks of files of a source, in their order: files of a raw table and of its models' tables. Where it runs it
 * may be killed.
 */
export class ChunkMaker {
  private table: ChunkTable | undefined;
  private models: ChunkModels | undefined;
  /** What a mapping says of rows can hang on their file's path. */
  private bound: { readonly file: number; readonly rows: RowEvents } | undefined;
  private readonly batches: AsyncGenerator<FileBatch>;
  private readonly aside: PayloadsAside;

  private constructor(
    private readonly order: OpenFiles,
    private readonly rowOrder: RowOrder,
    private readonly reader: FilesReader,
    private readonly mapped: MappedRelation,
    private readonly connection: DuckDBConnection,
    private readonly onRejects: (rejects: readonly FileReject[]) => void,
    private readonly getsOn: () => void,
  ) {
    this.aside = new PayloadsAside(order.payloads.aside);
    // What fails where it meets a record that is none needs no look at all of them before.
    this.batches = reader.batches(!mapped.isSure);
  }

  /** `duck` reaches `held`, the order's files, and its `out`s. Errors: TRB-BULK-MAPPING, those of SourceReader. */
  static async open(
    duck: Duck,
    held: readonly HeldFile[],
    order: OpenFiles,
    onRejects: (rejects: readonly FileReject[]) => void,
    getsOn: () => void,
  ): Promise<ChunkMaker> {
    const registry = ProtoRegistry.of(order.descriptors);
    const type = registry.entityType(order.entityType);
    if (type === undefined) throw new TributaryError("TRB-BULK-MAPPING", `no message ${order.entityType}`);
    if (order.mapping === undefined) {
      throw new TributaryError("TRB-BULK-MAPPING", "expected a mapping, as the source holds no whole events");
    }
    const connection = await duck.connect();
    const reader = await FilesReader.open(connection, held, order, getsOn);
    const mapped = mappedRelation(order.files[0]!.unit.format, reader.columns, order.mapping, type);
    const rowOrder = { type, types: registry.types, tenant: order.tenant };
    return new ChunkMaker(order, rowOrder, reader, mapped, connection, onRejects, getsOn);
  }

  get opened(): Opened {
    return { rows: this.reader.rows };
  }

  /** After the last call: the engine keeps its memory for as long as somebody is connected. */
  close(): void {
    this.connection.closeSync();
  }

  /** Errors: those of SourceReader. */
  async next(size: NextChunk): Promise<Chunk> {
    const rejects: FileReject[] = [];
    const { rejected, read, end } = await this.fill(size);
    const receivedAt = Date.now();
    const made = await this.made(receivedAt, rejects);
    this.onRejects(rejects);
    await this.reader.requireUnchanged();
    const aside = this.aside.end();
    return { ...made, aside, next: this.reader.at, end, rejects: rejected + rejects.length, bytes: read };
  }

  /** Reads about so much into the table. */
  private async fill(size: NextChunk) {
    let [rows, read, rejected, rejectedBytes, left] = [0, 0, 0, 0, 0];
    await this.table?.clear();
    while (!isWhole(size, { rows, bytes: read, rejectedBytes, left })) {
      const { value: batch, done } = await this.batches.next();
      if (done === true) return { rejected, read, end: true };
      const rejects = [...batch.rejects, ...(await this.take(batch))];
      this.onRejects(rejects);
      rejected += rejects.length;
      rejectedBytes += costOf(rejects);
      rows += batch.rows;
      read += batch.bytes;
      left = batch.left;
    }
    return { rejected, read, end: false };
  }

  /** Takes the rows that are events, as far as the engine can tell; returns the others. */
  private async take(batch: FileBatch): Promise<readonly FileReject[]> {
    try {
      return await this.taken(batch);
    } catch (error) {
      const isDamaged = error instanceof TributaryError && error.code === "TRB-SOURCE-DAMAGED";
      const found = isDamaged ? await batch.sift?.() : undefined;
      if (found === undefined || found.length === 0) throw error;
      return [...found, ...(await this.taken(batch))];
    }
  }

  private async taken(batch: FileBatch): Promise<FileReject[]> {
    if (batch.rows === 0) return [];
    const { connection, order } = this;
    const { file, unit } = batch.of;
    const relation = this.mapped.of(batch.sql);
    return this.reading(async () => {
      if (this.bound?.file !== file) {
        const mapping = this.mapped.mapping.of(unit.shown);
        this.bound = { file, rows: await RowEvents.bind(connection, relation, mapping, this.rowOrder) };
      }
      const { rows } = this.bound;
      const { sizes } = order.payloads;
      this.table ??= new ChunkTable(connection, rows, order, sizes, this.aside, this.getsOn);
      await this.table.add(relation, rows, file);
      const faults = new Map<number, RowFault>();
      await this.table.sift({ file, row: batch.first }, (row, fault) => faults.set(row, fault));
      if (faults.size === 0) return [];
      const { columns } = this.reader;
      const texts = await rowsAsJson(connection, batch.sql, columns, [...faults.keys()], REJECTED_BYTES);
      return [...faults].map(([row, fault]) => rejectOf({ file, row }, fault, texts.get(row)));
    });
  }

  private async made(
    receivedAt: number,
    rejects: FileReject[],
  ): Promise<Pick<Chunk, "file" | "refined" | "digests">> {
    const { table, order, connection } = this;
    const none = { file: NO_FILE };
    if (table === undefined) return none;
    // The batch that it was in is gone by now.
    const reject = (at: SourcePlace, fault: RowFault, key: string) =>
      rejects.push(rejectOf(at, fault, Buffer.from(key)));
    return this.reading(async () => {
      const { asDigests = false } = order;
      let digests: (readonly [string, EventDigest])[] | undefined;
      let file: WrittenFile | undefined;
      if (asDigests) {
        const found = await table.withRaw(receivedAt, reject, (sql) => eventDigests(connection, `(${sql})`));
        digests = [...(found ?? [])];
        file = { ...NO_FILE, rows: digests.reduce((sum, [, { rows }]) => sum + rows, 0) };
      } else file = await table.writeRaw(order.out, receivedAt, reject);
      if (file === undefined || file.rows === 0) return none;
      if (order.models.length === 0) return { file, digests };
      const write: WriteModel = asDigests ? writeMade : writeParquet;
      this.models ??= await ChunkModels.bind(connection, order.entityType, table, order.models, write);
      const ranges = await table.keepWinners();
      return { file, digests, refined: { models: await this.models.write(), ranges, receivedAt } };
    });
  }

  private async reading<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      if (error instanceof TributaryError) throw error;
      throw await this.reader.failure(error);
    }
  }
}

const rejectOf = (
  at: SourcePlace,
  { code, reason }: RowFault,
  bytes: Buffer = Buffer.alloc(0),
): FileReject => ({
  ...at,
  offset: undefined,
  code,
  message: reason,
  bytes,
});
