import type { DescMessage, FileRegistry } from "@bufbuild/protobuf";
import type { DuckDBBlobValue, DuckDBConnection, DuckDBDataChunk } from "@duckdb/node-api";
import type { Code } from "../base/codes.js";
import { literal } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import { OPERATION_CREATED } from "../contracts/envelope.js";
import { convert } from "../contracts/payload-conversions.js";
import { PayloadEncoder } from "../contracts/payload-encoder.js";
import { WireWriter } from "../contracts/wire-writer.js";
import type { EventBatch } from "../ingest/event-batch.js";
import { EventWriter, FRAME_BYTES } from "../ingest/event-writer.js";
import { ORDINAL } from "../sources/formats.js";
import type { BoundMapping } from "../sources/mapping.js";
import { formatPosition } from "../stream/positions.js";

/** Why a row is no event: a code of base/codes.ts and words that name the field and what was expected, never a value. */
export interface RowFault {
  readonly code: Code;
  readonly reason: string;
}

const fault = (code: Code, reason: string): RowFault => ({ code, reason });
/** By the number that the engine gives. */
const FAULTS: readonly RowFault[] = [
  fault("TRB-EVENT-TENANT", "tenant: expected 1 to 128 of A-Z a-z 0-9 . _ : -, a letter or digit first"),
  fault("TRB-BULK-TENANT", "tenant: expected the one that the job is for"),
  fault("TRB-EVENT-ENTITY-ID", "entityId: expected 1 to 1024 bytes"),
  fault("TRB-EVENT-VERSION", "version: expected a whole number from 0 to 2^63-1"),
  fault("TRB-EVENT-TIME", "occurredAt: expected a time of the years 1 to 9999"),
];
/** Of the first and the one after the last instant that a Timestamp can tell, in seconds. */
const YEARS = [-62_135_596_800, 253_402_300_800] as const;
/** Columns before those of the payload. */
const HEAD = 9;

const HEAD_TYPES = {
  tenant: "VARCHAR",
  entityId: "VARCHAR",
  version: "BIGINT",
  occurredAt: "TIMESTAMPTZ",
} as const;
type HeadField = keyof typeof HEAD_TYPES;
const WORDS = { VARCHAR: "text or numbers", BIGINT: "whole numbers", TIMESTAMPTZ: "times" } as const;

export interface RowOrder {
  readonly type: DescMessage;
  readonly types: FileRegistry;
  /** Rows of others are rejected. */
  readonly tenant?: string | undefined;
}

/**
 * Rows of a relation, whose columns are ORDINAL and a source's, as the events that a producer would have sent of them:
 * entities that were created with what the row says.
 */
export class RowEvents {
  private readonly writer: EventWriter;
  private readonly url: Buffer;
  private readonly payload = new WireWriter(64 * 1024);

  private constructor(
    private readonly head: Readonly<Record<HeadField, string>>,
    /** Whether a row says when it was. */
    private readonly told: string,
    private readonly encoder: PayloadEncoder,
    private readonly order: RowOrder,
  ) {
    const { typeName } = order.type;
    this.writer = new EventWriter(typeName);
    this.url = Buffer.from(`type.googleapis.com/${typeName}`);
  }

  /**
   * Of a relation, or of others with the same columns. Errors: TRB-BULK-MAPPING; TRB-MODEL-INVALID for a field of the
   * payload that its column cannot give; the engine's own, for a relation that it does not bind.
   */
  static async bind(
    connection: DuckDBConnection,
    relation: string,
    mapping: BoundMapping,
    order: RowOrder,
  ): Promise<RowEvents> {
    const { type, types } = order;
    const encoder = await PayloadEncoder.bind(connection, relation, type, types, mapping.payload);
    const fields = Object.keys(HEAD_TYPES) as HeadField[];
    const given = fields.map((field) => `(${mapping[field]})`);
    const found = await connection.run(`SELECT ${given.join(", ")} FROM ${relation} LIMIT 0`);
    const head = fields.map((field, at): [HeadField, string] => {
      const sql = given[at]!;
      if (sql === "(NULL)") return [field, `NULL::${HEAD_TYPES[field]}`];
      const conversion = convert({ sql, type: found.columnType(at) }, HEAD_TYPES[field]);
      if (conversion !== undefined) return [field, conversion.sql];
      const expected = `${field}: expected a column of ${WORDS[HEAD_TYPES[field]]}, not of type ${found.columnType(at)}`;
      throw new TributaryError("TRB-BULK-MAPPING", expected);
    });
    const told = `(${mapping.occurredAt}) IS NOT NULL`;
    return new RowEvents(Object.fromEntries(head) as Record<HeadField, string>, told, encoder, order);
  }

  /** To be run over a relation; `read` takes its chunks. */
  sql(relation: string): string {
    const { tenant, entityId, version, occurredAt } = this.head;
    const foreign = this.order.tenant === undefined ? "false" : `_tenant <> ${literal(this.order.tenant)}`;
    return `SELECT ${ORDINAL}::DOUBLE,
        CASE WHEN NOT coalesce(regexp_full_match(_tenant, '[A-Za-z0-9][A-Za-z0-9._:-]{0,127}'), false) THEN 1
          WHEN ${foreign} THEN 2
          WHEN NOT coalesce(strlen(_id) BETWEEN 1 AND 1024, false) THEN 3
          WHEN NOT coalesce(_version >= 0, false) THEN 4
          WHEN _told AND NOT coalesce(_micros >= ${YEARS[0]}000000 AND _micros < ${YEARS[1]}000000, false) THEN 5
          ELSE 0 END::INTEGER,
        coalesce(encode(_tenant) || encode(_id), ''::BLOB),
        coalesce(strlen(_tenant), 0)::INTEGER,
        (coalesce(_version, 0) & 4294967295)::UINTEGER,
        ((coalesce(_version, 0) >> 32) & 4294967295)::UINTEGER,
        ((_micros - _fraction) // 1000000)::DOUBLE,
        (_fraction * 1000)::INTEGER,
        _told,
        ${this.encoder.columns.join(",\n        ")}
      FROM (SELECT *, ((_micros % 1000000 + 1000000) % 1000000) AS _fraction FROM (SELECT *,
        ${tenant} AS _tenant,
        ${entityId} AS _id,
        ${version} AS _version,
        ${this.told} AS _told,
        epoch_us(${occurredAt}) AS _micros
        FROM ${relation}))`;
  }

  /**
   * Adds each row of a chunk to the batch, at the position that `positionOf` its ordinal is; one that is no event is
   * told of instead.
   */
  read(
    chunk: DuckDBDataChunk,
    batch: EventBatch,
    place: { readonly partition: string; readonly receivedAt: number },
    positionOf: (ordinal: number) => string,
    reject: (ordinal: number, fault: RowFault) => void,
  ): void {
    const column = <T>(index: number) => chunk.getColumnValues(index) as T[];
    const ordinals = column<number>(0);
    const faults = column<number>(1);
    const texts = column<DuckDBBlobValue>(2);
    const tenants = column<number>(3);
    const lows = column<number>(4);
    const highs = column<number>(5);
    const seconds = column<number | null>(6);
    const nanos = column<number | null>(7);
    const told = column<boolean>(8);
    const { encoder, payload, writer, url } = this;
    encoder.take(chunk, HEAD);
    try {
      for (let row = 0; row < chunk.rowCount; row++) {
        const ordinal = ordinals[row]!;
        const wrong = faults[row] === 0 ? undefined : FAULTS[faults[row]! - 1]!;
        payload.reset();
        const refusal = wrong === undefined ? encoder.encode(row, payload) : undefined;
        const refused = wrong ?? (refusal && fault("TRB-EVENT-PAYLOAD-DECODE", refusal.message));
        if (refused !== undefined) {
          reject(ordinal, refused);
          continue;
        }
        const text = texts[row]!.bytes;
        const room = text.length + payload.length + writer.type.length + url.length + FRAME_BYTES;
        const out = new WireWriter(room);
        writer.begin(out, {
          text,
          tenantEnd: tenants[row]!,
          idEnd: text.length,
          operation: OPERATION_CREATED,
          versionLo: lows[row]!,
          versionHi: highs[row]!,
          occurredSeconds: told[row] ? seconds[row]! : Number.NaN,
          occurredNanos: told[row] ? nanos[row]! : 0,
        });
        writer.payload(out, url, 0, url.length, payload.buffer, 0, payload.length);
        const { start } = writer.envelope;
        batch.add(
          out.buffer,
          start,
          out.length,
          place.partition,
          positionOf(ordinal),
          place.receivedAt,
          writer.envelope,
        );
      }
    } finally {
      encoder.release();
    }
  }
}

/** Behind so many records of a file, which is told by its number in the manifest: they order as text, file by file. */
export const positionIn = (file: number, records: number): string =>
  `${String(file).padStart(8, "0")}.${formatPosition(records)}`;
