import type { DuckDBConnection } from "@duckdb/node-api";
import type { Duck } from "../../base/duckdb.js";
import { TributaryError } from "../../base/errors.js";
import { ProtoRegistry } from "../../contracts/registry.js";
import type { Reject } from "../../sources/formats.js";
import type { HeldFile } from "../../sources/held-file.js";
import { type Batch, SourceReader } from "../../sources/reader.js";
import type { Mark } from "../../sources/splitter.js";
import { type WrittenFile, writeParquet } from "../../table/data-file.js";
import { costOf, isWhole, NO_FILE, REJECTED_BYTES } from "./chunk-file.js";
import { ChunkModels, type WriteModel } from "./chunk-models.js";
import type { Chunk, NextChunk, Opened, OpenFile } from "./chunk-protocol.js";
import { ChunkTable } from "./chunk-table.js";
import { type MappedRelation, mappedRelation } from "./mapped-relation.js";
import { PayloadsAside } from "./payloads-aside.js";
import { type EventDigest, eventDigests, writeMade } from "./row-digests.js";
import { RowEvents, type RowFault, type RowOrder } from "./row-events.js";
import { rowsAsJson } from "./rows-as-json.js";

/**
 * Makes chunks of one file of a source, in its order: files of a raw table and of its models' tables. Where it runs it
 * may be killed.
 */
export class ChunkMaker {
  private table: ChunkTable | undefined;
  private models: ChunkModels | undefined;
  private readonly batches: AsyncGenerator<Batch>;
  private readonly aside: PayloadsAside;
  private at: Mark;

  private constructor(
    private readonly order: OpenFile,
    private readonly rowOrder: RowOrder,
    private readonly reader: SourceReader,
    private readonly mapped: MappedRelation,
    private readonly connection: DuckDBConnection,
    private readonly onRejects: (rejects: readonly Reject[]) => void,
    private readonly getsOn: () => void,
  ) {
    this.at = order.from;
    this.aside = new PayloadsAside(order.payloads.aside);
    this.batches = reader.batches(order.from);
  }

  /** `duck` reaches `file`, the order's unit, and the order's `out`s. Errors: TRB-BULK-MAPPING, those of SourceReader. */
  static async open(
    duck: Duck,
    file: HeldFile,
    order: OpenFile,
    onRejects: (rejects: readonly Reject[]) => void,
    getsOn: () => void,
  ): Promise<ChunkMaker> {
    const registry = ProtoRegistry.of(order.descriptors);
    const type = registry.entityType(order.entityType);
    if (type === undefined) throw new TributaryError("TRB-BULK-MAPPING", `no message ${order.entityType}`);
    if (order.mapping === undefined) {
      throw new TributaryError("TRB-BULK-MAPPING", "expected a mapping, as the source holds no whole events");
    }
    const connection = await duck.connect();
    const reader = await SourceReader.open(connection, file, getsOn);
    const mapped = mappedRelation(order.unit.format, reader.columns, order.mapping, type);
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
    const rejects: Reject[] = [];
    const { rejected, read, end } = await this.fill(size);
    const receivedAt = Date.now();
    const made = await this.made(receivedAt, rejects);
    this.onRejects(rejects);
    await this.reader.requireUnchanged();
    const aside = this.aside.end();
    return { ...made, aside, next: this.at, end, rejects: rejected + rejects.length, bytes: read };
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
      this.at = batch.next;
    }
    return { rejected, read, end: false };
  }

  /** Takes the rows that are events, as far as the engine can tell; returns the others. */
  private async take(batch: Batch): Promise<Reject[]> {
    if (batch.rows === 0) return [];
    const { connection, order } = this;
    const relation = this.mapped.of(batch.sql);
    return this.reading(async () => {
      if (this.table === undefined) {
        const mapping = this.mapped.mapping.of(order.unit.shown);
        const rows = await RowEvents.bind(connection, relation, mapping, this.rowOrder);
        this.table = new ChunkTable(connection, rows, order, order.payloads.sizes, this.aside, this.getsOn);
      }
      await this.table.add(relation);
      const faults = new Map<number, RowFault>();
      await this.table.sift(batch.first, (row, fault) => faults.set(row, fault));
      if (faults.size === 0) return [];
      const { columns } = this.reader;
      const texts = await rowsAsJson(connection, batch.sql, columns, [...faults.keys()], REJECTED_BYTES);
      return [...faults].map(([row, fault]) => rejectOf(row, fault, texts.get(row)));
    });
  }

  private async made(
    receivedAt: number,
    rejects: Reject[],
  ): Promise<Pick<Chunk, "file" | "refined" | "digests">> {
    const { table, order, connection } = this;
    const none = { file: NO_FILE };
    if (table === undefined) return none;
    // The batch that it was in is gone by now.
    const reject = (row: number, fault: RowFault, key: string) =>
      rejects.push(rejectOf(row, fault, Buffer.from(key)));
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

const rejectOf = (row: number, { code, reason }: RowFault, bytes: Buffer = Buffer.alloc(0)): Reject => ({
  row,
  offset: undefined,
  code,
  message: reason,
  bytes,
});
