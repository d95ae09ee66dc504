import type { DuckDBConnection } from "@duckdb/node-api";
import { identifier, rowsOf } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import { FixedColumn, TextColumn } from "../columns/column-writers.js";
import { Feed, type FeedSource } from "../columns/feed.js";
import { Envelope, OPERATION_DELETED } from "../contracts/envelope.js";
import { PayloadDecoder } from "../contracts/payload-columns.js";
import type { ProtoRegistry } from "../contracts/registry.js";
import type { BoundModel } from "../models/bind.js";
import { type PayloadFault, UNDECODABLE } from "../offload/payload-of.js";
import { CONTENT_HI, CONTENT_LO, FLAGS, WORDS } from "../table/order.js";
import type { RowSource, SourceRows } from "../table/row-source.js";
import { ORDER_COLUMNS } from "../table/upsert.js";
import { OPERATIONS } from "./event-batch.js";
import { ModelFailure, modelFailureOf, type Poison } from "./model-failure.js";
import type { Slice } from "./payloads.js";
import { putOccurred } from "./raw-table.js";
import type { Winners } from "./winners.js";

let feeds = 0;
const OPERATION_NAMES = OPERATIONS.map((name) => Buffer.from(name));

/** Payloads that go to the engine in one chunk: their columns may take many times as much. */
const CHUNK_BYTES = 4 * 1024 * 1024;
/** As much as a payload may unpack to: a reader of the table has to hold some rows at once. */
const MAX_ROW_BYTES = 64 * 1024 * 1024;
const LARGE_ROW = "the model makes more than 64 MiB of the event";

/** Runs one model over the winners of slices, on one connection: the upsert writer's source of keys and rows. */
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

  /** SQL for whether nobody has the memory to read a row: a fault of its event. */
  private readonly isLarge: string;

  constructor(
    private readonly connection: DuckDBConnection,
    registry: ProtoRegistry,
    readonly model: BoundModel,
    /** After so many milliseconds a statement of the model is interrupted. */
    private readonly timeoutMs: number,
  ) {
    const type = registry.entityType(model.entityType);
    if (type === undefined) {
      throw new TributaryError("TRB-MODEL-INVALID", `${model.name}: no message ${model.entityType}`);
    }
    this.decoder = new PayloadDecoder(type);
    const sizes = model.columns.flatMap(({ name, type: sqlType }) =>
      sqlType === "VARCHAR" || sqlType === "BLOB"
        ? [`coalesce(${sqlType === "BLOB" ? "octet_length" : "strlen"}(${identifier(name)}), 0)`]
        : [],
    );
    this.isLarge = `${sizes.join(" + ")} > ${MAX_ROW_BYTES}`;
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
    await this.connection.run("SET errors_as_json=true");
    const fields = this.decoder.columns.map(
      ({ name }) => `${identifier(name)} := ${identifier(`payload.${name}`)}`,
    );
    await this.connection.run(
      `CREATE OR REPLACE TEMP VIEW ${identifier(this.model.entityType)} AS
       SELECT tenant_id, entity_id, operation, version, occurred_at, struct_pack(${fields.join(", ")}) AS payload
       FROM ${this.events.name}()`,
    );
  }

  /** `apart`: each event is run in a chunk of its own, so that the one that fails is known. */
  source(winners: Winners, apart = false): RowSource {
    return {
      records: winners.records,
      connection: this.connection,
      keys: () => this.writeKeys(winners),
      rows: (survivors) => this.writeRows(winners, survivors, apart),
      release: () => this.release(winners.slice),
    };
  }

  /** Large rows do not wait in memory for the next batch. */
  private async release(slice: Slice): Promise<void> {
    slice.release();
    if (slice.unpacked.size > 0) await this.connection.run("DROP TABLE IF EXISTS batch_rows");
  }

  private async writeKeys({ slice: { events: batch }, events, records }: Winners): Promise<string> {
    const envelope = new Envelope();
    const { ord: ords, operation, hash } = this.order;
    const rows: FeedSource = {
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
    };
    await this.run(
      `CREATE OR REPLACE TEMP TABLE batch_keys AS SELECT * FROM ${this.keys.name}()`,
      this.keys,
      rows,
    );
    return "batch_keys";
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

  private async writeRows(
    winners: Winners,
    survivors: readonly number[],
    apart: boolean,
  ): Promise<SourceRows> {
    const { events, records } = winners;
    const upserts = survivors.filter((ord) => (records[ord * WORDS + FLAGS]! & 3) !== OPERATION_DELETED);
    const names = this.model.columns.map(({ name }) => `m.${identifier(name)}`);
    const suspects = upserts.map((ord) => events[ord]!);
    await this.runModel(
      winners.slice,
      suspects,
      `CREATE OR REPLACE TEMP TABLE batch_rows AS
      SELECT k.ord, ${names.join(", ")}, ${ORDER_COLUMNS.map((name) => `k.${name}`).join(", ")}
      FROM (\n${this.model.sql}\n) m
      LEFT JOIN batch_keys k ON m.entity_id = k.entity_id AND m.tenant_id = k.tenant_id`,
      apart,
    );
    const made = await this.connection.runAndReadAll(`SELECT ord, ${this.isLarge} FROM batch_rows`);
    const [ords = [], large = []] = made.getColumns() as [(number | null)[]?, boolean[]?];
    const seen = new Uint8Array(events.length);
    for (const ord of ords) {
      const fault = ord === null ? FOREIGN_ROW : seen[ord] === 1 ? SEVERAL_ROWS : undefined;
      if (fault !== undefined) throw new ModelFailure("TRB-MODEL-FAILED", fault, suspects);
      seen[ord!] = 1;
    }
    const tooLarge = (ords as number[]).filter((_, row) => large[row]).map((ord) => events[ord]!);
    if (tooLarge.length > 0) {
      throw new ModelFailure("TRB-INGEST-MEMORY", LARGE_ROW, tooLarge, { certain: true });
    }
    return {
      relation: "batch_rows",
      ords: ords as number[],
      failure: (error) => modelFailureOf(error, suspects),
    };
  }

  /** Runs a statement that reads the model over some events of the slice. Errors: ModelFailure for what is theirs. */
  private async runModel(slice: Slice, events: readonly number[], sql: string, apart = false): Promise<void> {
    const envelope = new Envelope();
    const faults = new Map<PayloadFault, number[]>();
    const bytesOf = (i: number): number => {
      const event = events[i]!;
      const unpacked = slice.unpacked.get(event);
      return Buffer.isBuffer(unpacked)
        ? unpacked.length
        : slice.events.ends[event]! - slice.events.starts[event]!;
    };
    const rows: FeedSource = {
      rows: events.length,
      chunk: (start) => {
        if (apart) return 1;
        let end = start + 1;
        for (let bytes = bytesOf(start); end < events.length && bytes < CHUNK_BYTES; end++)
          bytes += bytesOf(end);
        return end - start;
      },
      fill: (start, rows) => {
        for (let row = 0; row < rows; row++) {
          const event = events[start + row]!;
          slice.events.read(event, envelope);
          this.putEnvelope(row, envelope);
          const fault = this.decode(slice, event, envelope, row);
          if (fault !== undefined) faults.set(fault, [...(faults.get(fault) ?? []), event]);
        }
      },
    };
    let failure: ModelFailure | undefined;
    const overdue = setTimeout(() => this.connection.interrupt(), this.timeoutMs);
    try {
      await this.run(sql, this.events, rows);
    } catch (error) {
      const last = this.events.last;
      const at = last && events.slice(last.start, last.start + last.rows);
      failure = modelFailureOf(error, events, at);
      if (failure === undefined) throw error;
    } finally {
      clearTimeout(overdue);
    }
    // First: what the model says of rows that are half read is nothing to go by.
    const [fault] = faults;
    if (fault !== undefined) {
      const [{ code, reason }, without] = fault;
      throw new ModelFailure(code, reason, without, { certain: true });
    }
    if (failure !== undefined) throw failure;
  }

  /** The events behind a failure, found by halving: one bad event must not stop the others (I8). */
  async findPoison(slice: Slice, failure: ModelFailure): Promise<Poison[]> {
    const { suspects, code, reason } = failure;
    if (failure.certain || suspects.length === 1) {
      return suspects.map((event) => ({ event, code, reason }));
    }
    const middle = suspects.length >> 1;
    const left = suspects.slice(0, middle);
    const right = suspects.slice(middle);
    const first = await this.attempt(slice, left);
    // Where the left half is well, what is known of both is known of the right one.
    const second =
      first === undefined ? new ModelFailure(code, reason, right) : await this.attempt(slice, right);
    const found: Poison[] = [];
    for (const half of [first, second]) {
      if (half !== undefined) found.push(...(await this.findPoison(slice, half)));
    }
    return found;
  }

  /** Runs the model over some events for what it says alone: of each at most one row, of that entity. */
  private async attempt(slice: Slice, events: readonly number[]): Promise<ModelFailure | undefined> {
    try {
      await this.runModel(slice, events, `CREATE OR REPLACE TEMP TABLE attempt AS\n${this.model.sql}`);
    } catch (error) {
      if (error instanceof ModelFailure) return error;
      throw error;
    }
    const due = new Set<string>();
    const envelope = new Envelope();
    for (const event of events) {
      slice.events.read(event, envelope);
      const { bytes, tenantStart, tenantEnd, idStart, idEnd } = envelope;
      due.add(`${bytes.toString("utf8", tenantStart, tenantEnd)}\n${bytes.toString("utf8", idStart, idEnd)}`);
    }
    const seen = new Set<string>();
    for (const [tenant, id] of await rowsOf(this.connection, "SELECT tenant_id, entity_id FROM attempt")) {
      const key = `${tenant}\n${id}`;
      const fault = !due.has(key) ? FOREIGN_ROW : seen.has(key) ? SEVERAL_ROWS : undefined;
      if (fault !== undefined) return new ModelFailure("TRB-MODEL-FAILED", fault, events);
      seen.add(key);
    }
    return undefined;
  }

  private decode(slice: Slice, event: number, envelope: Envelope, row: number): PayloadFault | undefined {
    const { bytes, payloadStart, payloadEnd } = envelope;
    const unpacked = slice.unpacked.size === 0 ? undefined : slice.unpacked.get(event);
    if (unpacked !== undefined && !Buffer.isBuffer(unpacked)) return unpacked;
    const decoded =
      unpacked === undefined
        ? payloadStart >= 0 && this.decoder.decode(bytes, payloadStart, payloadEnd, row)
        : this.decoder.decode(unpacked, 0, unpacked.length, row);
    return decoded ? undefined : UNDECODABLE;
  }

  /** Errors of our own while rows are fed are thrown as they are, not as what the engine makes of them. */
  private async run(sql: string, feed: Feed, source: FeedSource): Promise<void> {
    let own: { readonly error: unknown } | undefined;
    feed.use({
      ...source,
      fill: (start, rows) => {
        try {
          source.fill(start, rows);
        } catch (error) {
          own = { error };
          throw error;
        }
      },
    });
    try {
      await this.connection.run(sql);
    } catch (error) {
      throw own === undefined ? error : own.error;
    } finally {
      feed.clear();
    }
  }
}

const FOREIGN_ROW = "the model yields a row of another entity";
const SEVERAL_ROWS = "the model yields several rows of one entity";
