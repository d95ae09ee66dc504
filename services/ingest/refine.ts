import type { DuckDBConnection } from "@duckdb/node-api";
import { identifier } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import { FixedColumn, TextColumn } from "../columns/column-writers.js";
import { Feed } from "../columns/feed.js";
import { contentHash } from "../contracts/content-hash.js";
import { Envelope, OPERATION_DELETED } from "../contracts/envelope.js";
import { PayloadDecoder } from "../contracts/payload-columns.js";
import type { ProtoRegistry } from "../contracts/registry.js";
import { unpackPayload } from "../contracts/unpack.js";
import type { BoundModel } from "../models/bind.js";
import { entityHash } from "../table/entity-hash.js";
import { KeyIndex } from "../table/key-index.js";
import { tenantOrdinals } from "../table/locator.js";
import {
  CONTENT_HI,
  CONTENT_LO,
  FLAGS,
  OCCURRED_HI,
  OCCURRED_LO,
  ROW,
  TENANT,
  VERSION_HI,
  VERSION_LO,
  WORDS,
} from "../table/order.js";
import { ORDER_COLUMNS, type UpsertBatch } from "../table/upsert.js";
import { type EventBatch, OPERATIONS, occurredHalves } from "./event-batch.js";
import { putOccurred } from "./raw-table.js";

/** A model cannot digest some events of a batch; which ones is found by bisection. */
export class ModelFailure extends Error {
  constructor(
    readonly code: "TRB-MODEL-FAILED" | "TRB-EVENT-PAYLOAD-DECODE",
    readonly reason: string,
    /** Ordinals among which the failing ones are. */
    readonly suspects: readonly number[],
    /** True when every suspect is known to fail. */
    readonly certain = false,
  ) {
    super(reason);
  }
}

/** An event that a model cannot digest. */
export interface Poison {
  /** Index in the batch. */
  readonly event: number;
  readonly code: ModelFailure["code"];
  readonly reason: string;
}

let feeds = 0;
const OPERATION_NAMES = OPERATIONS.map((name) => Buffer.from(name));

/** Unpacked payloads beyond this are a fault of the event (the bus has the same limit). */
const MAX_UNPACKED_BYTES = 64 * 1024 * 1024;

/**
 * Runs one model over batches of events, on one connection: picks the winner of each entity in the batch, and gives
 * the upsert writer its keys and rows as temporary tables.
 */
export class Refiner {
  private readonly decoder: PayloadDecoder;
  private readonly keys: Feed;
  private readonly events: Feed;
  /** Columns that both feeds have; they are never read at the same time. */
  private readonly envelope = {
    tenant: new TextColumn(),
    entity: new TextColumn(),
    operation: new TextColumn(),
    version: FixedColumn.bigint(),
    occurred: FixedColumn.timestamp(),
  };
  private readonly order = {
    ord: FixedColumn.integer(),
    operation: FixedColumn.tinyint(),
    hash: FixedColumn.bigint(),
  };

  constructor(
    private readonly connection: DuckDBConnection,
    registry: ProtoRegistry,
    readonly model: BoundModel,
  ) {
    const type = registry.entityType(model.entityType);
    if (type === undefined) {
      throw new TributaryError("TRB-MODEL-INVALID", `${model.name}: no message ${model.entityType}`);
    }
    this.decoder = new PayloadDecoder(type);
    const id = ++feeds;
    const { tenant, entity, operation, version, occurred } = this.envelope;
    this.keys = Feed.register(connection, `tributary_keys_${id}`, [
      { name: "ord", writer: this.order.ord, nullable: false },
      { name: "tenant_id", writer: tenant, nullable: false },
      { name: "entity_id", writer: entity, nullable: false },
      { name: "_tributary_version", writer: version, nullable: false },
      { name: "_tributary_operation", writer: this.order.operation, nullable: false },
      { name: "_tributary_hash", writer: this.order.hash, nullable: false },
      { name: "_tributary_occurred_at", writer: occurred, nullable: true },
    ]);
    this.events = Feed.register(connection, `tributary_events_${id}`, [
      { name: "tenant_id", writer: tenant, nullable: false },
      { name: "entity_id", writer: entity, nullable: false },
      { name: "operation", writer: operation, nullable: false },
      { name: "version", writer: version, nullable: false },
      { name: "occurred_at", writer: occurred, nullable: true },
      ...this.decoder.columns.map((column) => ({ ...column, name: `payload.${column.name}` })),
    ]);
  }

  /** Makes the decoded relation that the model's source() names. Once, before the first batch. */
  async prepare(): Promise<void> {
    const fields = this.decoder.columns.map(
      ({ name }) => `${identifier(name)} := ${identifier(`payload.${name}`)}`,
    );
    await this.connection.run(
      `CREATE OR REPLACE TEMP VIEW ${identifier(this.model.entityType)} AS
       SELECT tenant_id, entity_id, operation, version, occurred_at, struct_pack(${fields.join(", ")}) AS payload
       FROM ${this.events.name}()`,
    );
  }

  /** What the upsert writer needs of a batch, but for positions and the gate before the commit. */
  winners(batch: EventBatch): Winners {
    const order = orderRecords(batch);
    const best = new KeyIndex(Math.min(batch.count, 65_536));
    for (let i = 0; i < batch.count; i++) best.putIfGreater(order, i * WORDS);
    const events: number[] = [];
    const { records: slots } = best;
    for (let at = 0; at < slots.length; at += WORDS) {
      if (slots[at + TENANT] !== 0xffffffff) events.push(slots[at + ROW]!);
    }
    events.sort((a, b) => a - b);
    const records = new Uint32Array(events.length * WORDS);
    for (const [ord, event] of events.entries()) {
      records.set(order.subarray(event * WORDS, (event + 1) * WORDS), ord * WORDS);
      records[ord * WORDS + ROW] = ord;
    }
    return { batch, events, records };
  }

  upsertBatch(
    winners: Winners,
    progress: Pick<UpsertBatch, "stream" | "from" | "to" | "ready" | "newest">,
  ): UpsertBatch {
    return {
      ...progress,
      records: winners.records,
      connection: this.connection,
      writeKeys: () => this.writeKeys(winners),
      writeRows: (survivors) => this.writeRows(winners, survivors),
    };
  }

  private async writeKeys({ batch, events, records }: Winners): Promise<void> {
    const envelope = new Envelope();
    const { ord: ords, operation, hash } = this.order;
    this.keys.use({
      rows: events.length,
      fill: (start, rows) => {
        for (let row = 0; row < rows; row++) {
          const ord = start + row;
          batch.read(events[ord]!, envelope);
          this.putEnvelope(row, envelope);
          ords.int32[row] = ord;
          operation.bytes[row] = envelope.operation;
          hash.set64(row, records[ord * WORDS + CONTENT_LO]!, records[ord * WORDS + CONTENT_HI]!);
        }
      },
    });
    await this.run(`CREATE OR REPLACE TEMP TABLE batch_keys AS SELECT * FROM ${this.keys.name}()`, this.keys);
  }

  private putEnvelope(row: number, envelope: Envelope): void {
    const { tenant, entity, operation, version, occurred } = this.envelope;
    const { bytes } = envelope;
    tenant.set(row, bytes, envelope.tenantStart, envelope.tenantEnd);
    entity.set(row, bytes, envelope.idStart, envelope.idEnd);
    const name = OPERATION_NAMES[envelope.operation]!;
    operation.set(row, name, 0, name.length);
    version.set64(row, envelope.versionLo, envelope.versionHi);
    putOccurred(occurred, row, envelope);
  }

  private async writeRows(winners: Winners, survivors: readonly number[]): Promise<readonly number[]> {
    const { batch, events, records } = winners;
    const upserts = survivors.filter((ord) => (records[ord * WORDS + FLAGS]! & 3) !== OPERATION_DELETED);
    const envelope = new Envelope();
    const undecodable: number[] = [];
    this.events.use({
      rows: upserts.length,
      fill: (start, rows) => {
        for (let row = 0; row < rows; row++) {
          const ord = upserts[start + row]!;
          batch.read(events[ord]!, envelope);
          this.putEnvelope(row, envelope);
          if (!this.decode(envelope, row)) undecodable.push(ord);
        }
      },
    });
    const names = this.model.columns.map(({ name }) => `m.${identifier(name)}`);
    const sql = `CREATE OR REPLACE TEMP TABLE batch_rows AS
      SELECT k.ord, ${names.join(", ")}, ${ORDER_COLUMNS.map((name) => `k.${name}`).join(", ")}
      FROM (\n${this.model.sql}\n) m
      LEFT JOIN batch_keys k ON m.entity_id = k.entity_id AND m.tenant_id = k.tenant_id`;
    let failure: unknown;
    try {
      await this.run(sql, this.events);
    } catch (error) {
      failure = asModelFailure(error, upserts);
      if (!(failure instanceof ModelFailure)) throw error;
    }
    // First: what the model says of rows that are half read is nothing to go by.
    if (undecodable.length > 0) {
      throw new ModelFailure("TRB-EVENT-PAYLOAD-DECODE", "the payload does not decode", undecodable, true);
    }
    if (failure !== undefined) throw failure;
    const [column] = (await this.connection.runAndReadAll("SELECT ord FROM batch_rows")).getColumns();
    const ords = (column ?? []) as (number | null)[];
    const seen = new Uint8Array(events.length);
    for (const ord of ords) {
      const fault =
        ord === null
          ? "the model yields a row of another entity"
          : seen[ord] === 1
            ? "the model yields several rows of one entity"
            : undefined;
      if (fault !== undefined) throw new ModelFailure("TRB-MODEL-FAILED", fault, upserts);
      seen[ord!] = 1;
    }
    return ords as number[];
  }

  /** The events behind a failure, found by halving: one bad event must not stop the others (I8). */
  async findPoison(winners: Winners, failure: ModelFailure): Promise<Poison[]> {
    const { suspects } = failure;
    if (failure.certain || suspects.length === 1) {
      const { code, reason } = failure;
      return suspects.map((ord) => ({ event: winners.events[ord]!, code, reason }));
    }
    await this.writeKeys(winners);
    const found: Poison[] = [];
    const middle = suspects.length >> 1;
    for (const half of [suspects.slice(0, middle), suspects.slice(middle)]) {
      try {
        await this.writeRows(winners, half);
      } catch (error) {
        if (!(error instanceof ModelFailure)) throw error;
        found.push(...(await this.findPoison(winners, error)));
      }
    }
    return found;
  }

  private decode(envelope: Envelope, row: number): boolean {
    const { bytes, payloadStart, payloadEnd, compression } = envelope;
    if (payloadStart < 0) return false;
    if (compression === 0) return this.decoder.decode(bytes, payloadStart, payloadEnd, row);
    const unpacked = unpack(envelope);
    return unpacked !== undefined && this.decoder.decode(unpacked, 0, unpacked.length, row);
  }

  private async run(sql: string, feed: Feed): Promise<void> {
    try {
      await this.connection.run(sql);
    } finally {
      feed.clear();
    }
  }
}

/** The winners of a batch: `events[ord]` is the event of record `ord`. */
export interface Winners {
  readonly batch: EventBatch;
  readonly events: readonly number[];
  readonly records: Uint32Array;
}

/** One record an event, ROW = its index in the batch. */
function orderRecords(batch: EventBatch): Uint32Array {
  const records = new Uint32Array(batch.count * WORDS);
  const envelope = new Envelope();
  const wide = new BigInt64Array(1);
  const halves = new Uint32Array(wide.buffer);
  for (let i = 0; i < batch.count; i++) {
    const at = i * WORDS;
    batch.read(i, envelope);
    const { bytes } = envelope;
    entityHash(bytes, envelope.idStart, envelope.idEnd, records, at);
    records[at + TENANT] = tenantOrdinals.of(bytes, envelope.tenantStart, envelope.tenantEnd);
    records[at + VERSION_LO] = envelope.versionLo;
    records[at + VERSION_HI] = envelope.versionHi;
    wide[0] = hashOf(envelope);
    records[at + CONTENT_LO] = halves[0]!;
    records[at + CONTENT_HI] = halves[1]!;
    if (occurredHalves(envelope, halves)) {
      records[at + OCCURRED_LO] = halves[0]!;
      records[at + OCCURRED_HI] = halves[1]! ^ 0x80000000;
    }
    records[at + FLAGS] = envelope.operation;
    records[at + ROW] = i;
  }
  return records;
}

function hashOf(envelope: Envelope): bigint {
  const { bytes, typeUrlStart, typeUrlEnd, payloadStart, payloadEnd } = envelope;
  if (payloadStart < 0) return contentHash(bytes, 0, 0, bytes, 0, 0);
  if (envelope.compression !== 0) {
    const unpacked = unpack(envelope);
    if (unpacked !== undefined)
      return contentHash(bytes, typeUrlStart, typeUrlEnd, unpacked, 0, unpacked.length);
  }
  return contentHash(bytes, typeUrlStart, typeUrlEnd, bytes, payloadStart, payloadEnd);
}

function unpack(envelope: Envelope): Buffer | undefined {
  const packed = envelope.bytes.subarray(envelope.payloadStart, envelope.payloadEnd);
  const unpacked = unpackPayload(envelope.compression, packed, MAX_UNPACKED_BYTES);
  if (typeof unpacked === "string") return undefined;
  return Buffer.from(unpacked.buffer, unpacked.byteOffset, unpacked.byteLength);
}

/** What DuckDB says when a value does not fit an expression; anything else is not the event's fault. */
const DATA_ERRORS =
  /^(Conversion|Invalid Input|Out of Range|Constraint|Mismatch Type|Invalid type|Parameter Not Allowed|Dependency)/i;

function asModelFailure(error: unknown, suspects: readonly number[]): unknown {
  const message = error instanceof Error ? error.message : String(error);
  return DATA_ERRORS.test(message)
    ? new ModelFailure("TRB-MODEL-FAILED", message.split("\n")[0]!, suspects)
    : error;
}
