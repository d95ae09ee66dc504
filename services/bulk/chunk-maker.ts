import type { DuckDBConnection } from "@duckdb/node-api";
import { chunksOf, type Duck } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import { ProtoRegistry } from "../contracts/registry.js";
import { EventBatch } from "../ingest/event-batch.js";
import { RawWriter } from "../ingest/raw-writer.js";
import type { Reject } from "../sources/formats.js";
import { type Batch, SourceReader } from "../sources/reader.js";
import type { Mark } from "../sources/splitter.js";
import { NO_FILE, ORDER } from "./chunk-file.js";
import type { Chunk, NextChunk, OpenFile } from "./chunk-protocol.js";
import { type MappedRelation, mappedRelation } from "./mapped-relation.js";
import { positionIn, RowEvents, type RowOrder } from "./row-events.js";

/** Makes chunks of one file of a source, in its order: files of a raw table. Where it runs it may be killed. */
export class ChunkMaker {
  private rows: RowEvents | undefined;
  private readonly batches: AsyncGenerator<Batch>;
  private at: Mark;

  private constructor(
    private readonly order: OpenFile,
    private readonly rowOrder: RowOrder,
    private readonly reader: SourceReader,
    private readonly mapped: MappedRelation,
    private readonly connection: DuckDBConnection,
    private readonly writer: RawWriter,
    private readonly onRejects: (rejects: readonly Reject[]) => void,
  ) {
    this.at = order.from;
    this.batches = reader.batches(order.from);
  }

  /** `duck` reaches the unit's file and `order.out`. Errors: TRB-BULK-MAPPING, those of SourceReader. */
  static async open(
    duck: Duck,
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
    const reader = await SourceReader.open(connection, order.unit, getsOn);
    const mapped = mappedRelation(order.unit.format, reader.columns, order.mapping, type);
    const rowOrder = { type, types: registry.types, tenant: order.tenant };
    const writer = new RawWriter(await duck.connect());
    return new ChunkMaker(order, rowOrder, reader, mapped, connection, writer, onRejects);
  }

  /** Errors: those of SourceReader. */
  async next({ rows, bytes }: NextChunk): Promise<Chunk> {
    const { order } = this;
    const events = new EventBatch(order.entityType, order.stream);
    let [rejected, read] = [0, 0];
    let end = false;
    while (events.count < rows && events.byteCount < bytes) {
      const { value: batch, done } = await this.batches.next();
      if (done === true) {
        end = true;
        break;
      }
      const rejects = [...batch.rejects, ...(await this.take(batch, events))];
      this.onRejects(rejects);
      rejected += rejects.length;
      read += batch.bytes;
      this.at = batch.next;
    }
    const file = events.count === 0 ? NO_FILE : await this.writer.write(events, order.out, ORDER);
    await this.reader.requireUnchanged();
    return { file, next: this.at, end, rejects: rejected, bytes: read };
  }

  /** Adds the batch's rows; returns those that are no events. */
  private async take(batch: Batch, events: EventBatch): Promise<Reject[]> {
    if (batch.rows === 0) return [];
    const { connection, order } = this;
    const relation = this.mapped.of(batch.sql);
    const mapping = this.mapped.mapping.of(order.unit.shown);
    const rejects: Reject[] = [];
    try {
      this.rows ??= await RowEvents.bind(connection, relation, mapping, this.rowOrder);
      const place = { partition: order.partition, receivedAt: Date.now() };
      for await (const chunk of chunksOf(connection, this.rows.sql(relation))) {
        this.rows.read(
          chunk,
          events,
          place,
          (ordinal) => positionIn(order.file, ordinal + 1),
          (row, { code, reason }) =>
            rejects.push({ row, offset: undefined, code, message: reason, bytes: new Uint8Array() }),
        );
      }
    } catch (error) {
      if (error instanceof TributaryError) throw error;
      throw await this.reader.failure(error);
    }
    return rejects;
  }
}
