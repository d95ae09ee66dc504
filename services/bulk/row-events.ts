import type { DescMessage, FileRegistry } from "@bufbuild/protobuf";
import type { DuckDBBlobValue, DuckDBConnection, DuckDBDataChunk } from "@duckdb/node-api";
import { literal } from "../base/duckdb.js";
import { OPERATION_CREATED } from "../contracts/envelope.js";
import { PayloadEncoder } from "../contracts/payload-encoder.js";
import { WireWriter } from "../contracts/wire-writer.js";
import type { EventBatch } from "../ingest/event-batch.js";
import { EventWriter, FRAME_BYTES } from "../ingest/event-writer.js";
import type { BoundMapping } from "../sources/mapping.js";
import { formatPosition } from "../stream/positions.js";

/** Why a row is no event: a code of base/codes.ts and words that name the field and what was expected, never a value. */
export interface RowFault {
  readonly code: string;
  readonly reason: string;
}

const fault = (code: string, reason: string): RowFault => ({ code, reason });
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
const HEAD = 10;

export interface RowOrder {
  readonly type: DescMessage;
  readonly types: FileRegistry;
  /** Rows of others are rejected. */
  readonly tenant?: string | undefined;
}

/**
 * Rows of a relation, whose columns are a source's and `ordinal`, as the events that a producer would have sent of them:
 * entities that were created with what the row says.
 */
export class RowEvents {
  private readonly writer: EventWriter;
  private readonly url: Buffer;
  private readonly payload = new WireWriter(64 * 1024);

  private constructor(
    /** To be run; `read` takes its chunks. */
    readonly sql: string,
    private readonly encoder: PayloadEncoder,
    type: DescMessage,
  ) {
    this.writer = new EventWriter(type.typeName);
    this.url = Buffer.from(`type.googleapis.com/${type.typeName}`);
  }

  /** Errors: TRB-BULK-MAPPING; the engine's own, for a relation that it does not bind. */
  static async bind(
    connection: DuckDBConnection,
    relation: string,
    mapping: BoundMapping,
    { type, types, tenant }: RowOrder,
  ): Promise<RowEvents> {
    const encoder = await PayloadEncoder.bind(connection, relation, type, types, mapping.payload);
    const foreign = tenant === undefined ? "false" : `_tenant <> ${literal(tenant)}`;
    // A time without a zone is one of UTC, as the connection's is.
    const sql = `SELECT ordinal::DOUBLE,
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
        strlen(_id)::INTEGER,
        ${encoder.columns.join(",\n        ")}
      FROM (SELECT *, ((_micros % 1000000 + 1000000) % 1000000) AS _fraction FROM (SELECT *,
        TRY_CAST(${mapping.tenant} AS VARCHAR) AS _tenant,
        TRY_CAST(${mapping.entityId} AS VARCHAR) AS _id,
        TRY_CAST(${mapping.version} AS BIGINT) AS _version,
        (${mapping.occurredAt}) IS NOT NULL AS _told,
        epoch_us(TRY_CAST(${mapping.occurredAt} AS TIMESTAMPTZ)) AS _micros
        FROM ${relation}))`;
    return new RowEvents(sql, encoder, type);
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

/** Of a file, by its number in the manifest, and a row of it: they order as text, file by file. */
export const positionIn = (file: number, ordinal: number): string =>
  `${String(file).padStart(8, "0")}.${formatPosition(ordinal)}`;
