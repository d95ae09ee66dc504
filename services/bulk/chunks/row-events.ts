import type { DescMessage, FileRegistry } from "@bufbuild/protobuf";
import type { DuckDBConnection } from "@duckdb/node-api";
import type { Code } from "../../base/codes.js";
import { literal } from "../../base/duckdb.js";
import { TributaryError } from "../../base/errors.js";
import { convert } from "../../contracts/payload-conversions.js";
import { PayloadEncoder } from "../../contracts/payload-encoder.js";
import type { Refusal } from "../../contracts/payload-values.js";
import { ORDINAL } from "../../sources/formats.js";
import type { BoundMapping } from "../../sources/mapping.js";
import { formatPosition } from "../../stream/positions.js";

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

/** Of the relation that rows become, before the columns of the payload. */
export const ROW = {
  /** Of the record in its file. */
  ordinal: "_ordinal",
  /** Its file's number. */
  file: "_file",
  /** Number of what is wrong with the envelope; 0 for nothing. */
  fault: "_fault",
} as const;
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
 * Rows of a relation, whose columns are ORDINAL and a source's, as what the events hold that a producer would have sent
 * of them: entities that were created with what the row says.
 */
export class RowEvents {
  /** Names of the columns that `encoder` takes. */
  readonly payload: readonly string[];

  private constructor(
    private readonly head: Readonly<Record<HeadField, string>>,
    /** Whether a row says when it was. */
    private readonly told: string,
    readonly encoder: PayloadEncoder,
    private readonly order: RowOrder,
  ) {
    this.payload = encoder.columns.map((_, at) => `_p${at}`);
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

  /**
   * The relation's rows, which are of that file, with the columns of ROW, tenant_id, entity_id, version, occurred_at and those of the payload.
   * Those with a fault, or whose payload's first column is not NULL, are no events.
   */
  sql(relation: string, file: number): string {
    const { tenant, entityId, version, occurredAt } = this.head;
    const foreign = this.order.tenant === undefined ? "false" : `tenant_id <> ${literal(this.order.tenant)}`;
    const columns = this.encoder.columns.map((sql, at) => `${sql} AS ${this.payload[at]}`);
    return `SELECT ${ORDINAL}::BIGINT AS ${ROW.ordinal}, ${file}::INTEGER AS ${ROW.file},
        CASE WHEN NOT coalesce(regexp_full_match(tenant_id, '[A-Za-z0-9][A-Za-z0-9._:-]{0,127}'), false) THEN 1
          WHEN ${foreign} THEN 2
          WHEN NOT coalesce(strlen(entity_id) BETWEEN 1 AND 1024, false) THEN 3
          WHEN NOT coalesce(version >= 0, false) THEN 4
          WHEN _told AND NOT coalesce(_micros >= ${YEARS[0]}000000 AND _micros < ${YEARS[1]}000000, false) THEN 5
          ELSE 0 END::INTEGER AS ${ROW.fault},
        tenant_id, entity_id, version,
        make_timestamptz(CASE WHEN _micros >= ${YEARS[0]}000000 AND _micros < ${YEARS[1]}000000 THEN _micros END)
          AS occurred_at,
        ${this.payload.join(",\n        ")}
      FROM (SELECT ${ORDINAL},
        ${tenant} AS tenant_id,
        ${entityId} AS entity_id,
        ${version} AS version,
        ${this.told} AS _told,
        epoch_us(${occurredAt}) AS _micros,
        ${columns.join(",\n        ")}
        FROM ${relation})`;
  }

  /** What is wrong with a row, by its fault, or by the first column of its payload. */
  wrong(fault: number, payload: number | null): RowFault {
    return fault === 0 ? this.refused(this.encoder.refusal(payload!)) : FAULTS[fault - 1]!;
  }

  refused({ message }: Refusal): RowFault {
    return fault("TRB-EVENT-PAYLOAD-DECODE", message);
  }
}

/** Behind so many records of a file, which is told by its number in the manifest: they order as text, file by file. */
export const positionIn = (file: number, records: number): string =>
  `${fileIn(file)}${formatPosition(records)}`;

const FILE_DIGITS = 8;
const fileIn = (file: number): string => `${String(file).padStart(FILE_DIGITS, "0")}.`;

/** SQL for the position behind a row that has the columns of ROW. */
export const POSITION_SQL = `printf('%0${FILE_DIGITS}d.%0${formatPosition(0).length}d', ${ROW.file}, ${ROW.ordinal} + 1)`;

/** Behind so many records, `row`, of a file. */
export interface SourcePlace {
  readonly file: number;
  readonly row: number;
}

/** The reverse of `positionIn`. */
export function placeAt(position: string): SourcePlace {
  const [file, row] = position.split(".").map(Number) as [number, number];
  return { file, row };
}
