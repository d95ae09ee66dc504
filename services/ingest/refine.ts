import {
  BIGINT,
  type DuckDBConnection,
  type DuckDBValue,
  INTEGER,
  TIMESTAMPTZ,
  TINYINT,
  VARCHAR,
} from "@duckdb/node-api";
import { identifier } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
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
import { type EventBatch, OPERATIONS, occurredMicros, timestamp, versionOf } from "./event-batch.js";
import { Feed } from "./feed.js";

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
    this.keys = Feed.register(connection, `tributary_keys_${id}`, [
      { name: "ord", type: INTEGER },
      { name: "tenant_id", type: VARCHAR },
      { name: "entity_id", type: VARCHAR },
      { name: "_tributary_version", type: BIGINT },
      { name: "_tributary_operation", type: TINYINT },
      { name: "_tributary_hash", type: BIGINT },
      { name: "_tributary_occurred_at", type: TIMESTAMPTZ },
    ]);
    this.events = Feed.register(connection, `tributary_events_${id}`, [
      { name: "tenant_id", type: VARCHAR },
      { name: "entity_id", type: VARCHAR },
      { name: "operation", type: VARCHAR },
      { name: "version", type: BIGINT },
      { name: "occurred_at", type: TIMESTAMPTZ },
      ...this.decoder.columns.map((column) => ({ name: `payload.${column.name}`, type: column.type })),
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
    progress: Pick<UpsertBatch, "stream" | "from" | "to" | "ready">,
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
    const halves = new Uint32Array(2);
    const signed = new BigInt64Array(halves.buffer);
    this.keys.use({
      rows: events.length,
      fill: (columns, start, rows) => {
        for (let row = 0; row < rows; row++) {
          const ord = start + row;
          batch.read(events[ord]!, envelope);
          halves[0] = records[ord * WORDS + CONTENT_LO]!;
          halves[1] = records[ord * WORDS + CONTENT_HI]!;
          put(columns[0], row, ord);
          put(columns[1], row, envelope.tenantId());
          put(columns[2], row, envelope.entityId());
          put(columns[3], row, versionOf(envelope));
          put(columns[4], row, envelope.operation);
          put(columns[5], row, signed[0]!);
          put(columns[6], row, timestamp(occurredMicros(envelope)));
        }
      },
    });
    await this.run(`CREATE OR REPLACE TEMP TABLE batch_keys AS SELECT * FROM ${this.keys.name}()`, this.keys);
  }

  private async writeRows(winners: Winners, survivors: readonly number[]): Promise<void> {
    const { batch, events, records } = winners;
    const upserts = survivors.filter((ord) => (records[ord * WORDS + FLAGS]! & 3) !== OPERATION_DELETED);
    const envelope = new Envelope();
    const undecodable: number[] = [];
    this.events.use({
      rows: upserts.length,
      fill: (columns, start, rows) => {
        const payload = columns.slice(5);
        for (let row = 0; row < rows; row++) {
          const ord = upserts[start + row]!;
          batch.read(events[ord]!, envelope);
          put(columns[0], row, envelope.tenantId());
          put(columns[1], row, envelope.entityId());
          put(columns[2], row, OPERATIONS[envelope.operation]!);
          put(columns[3], row, versionOf(envelope));
          put(columns[4], row, timestamp(occurredMicros(envelope)));
          if (this.decode(envelope, payload, row)) continue;
          undecodable.push(ord);
          for (const column of payload) put(column, row, null);
        }
      },
    });
    const names = this.model.columns.map(({ name }) => `m.${identifier(name)}`);
    const sql = `CREATE OR REPLACE TEMP TABLE batch_rows AS
      SELECT k.ord, ${names.join(", ")}, ${ORDER_COLUMNS.map((name) => `k.${name}`).join(", ")}
      FROM (${this.model.sql}) m
      LEFT JOIN batch_keys k ON m.entity_id = k.entity_id AND m.tenant_id = k.tenant_id`;
    try {
      await this.run(sql, this.events);
    } catch (error) {
      throw asModelFailure(error, upserts);
    }
    if (undecodable.length > 0) {
      throw new ModelFailure("TRB-EVENT-PAYLOAD-DECODE", "the payload does not decode", undecodable, true);
    }
    const [counts] = (
      await this.connection.runAndReadAll("SELECT count(*), count(ord), count(DISTINCT ord) FROM batch_rows")
    ).getRows();
    const [all, known, distinct] = counts!;
    if (all !== known)
      throw new ModelFailure("TRB-MODEL-FAILED", "the model yields a row of another entity", upserts);
    if (all !== distinct) {
      throw new ModelFailure("TRB-MODEL-FAILED", "the model yields several rows of one entity", upserts);
    }
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

  private decode(envelope: Envelope, columns: readonly (DuckDBValue[] | undefined)[], row: number): boolean {
    const { bytes, payloadStart, payloadEnd, compression } = envelope;
    if (payloadStart < 0) return false;
    if (compression === 0) return this.decoder.decode(bytes, payloadStart, payloadEnd, columns, row);
    const unpacked = unpack(envelope);
    return unpacked !== undefined && this.decoder.decode(unpacked, 0, unpacked.length, columns, row);
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
    const occurred = occurredMicros(envelope);
    if (occurred !== null) {
      wide[0] = occurred;
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

const put = (column: DuckDBValue[] | undefined, row: number, value: DuckDBValue): void => {
  if (column !== undefined) column[row] = value;
};

/** What DuckDB says when a value does not fit an expression; anything else is not the event's fault. */
const DATA_ERRORS =
  /^(Conversion|Invalid Input|Out of Range|Constraint|Mismatch Type|Invalid type|Parameter Not Allowed|Dependency)/i;

function asModelFailure(error: unknown, suspects: readonly number[]): unknown {
  const message = error instanceof Error ? error.message : String(error);
  return DATA_ERRORS.test(message)
    ? new ModelFailure("TRB-MODEL-FAILED", message.split("\n")[0]!, suspects)
    : error;
}
