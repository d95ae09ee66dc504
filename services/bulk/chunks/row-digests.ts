import type { DuckDBConnection } from "@duckdb/node-api";
import { identifier, literal, rowsOf } from "../../base/duckdb.js";
import { OPERATION_DELETED } from "../../contracts/envelope.js";
import type { WrittenFile } from "../../table/data-file.js";
import { KEY_COLUMNS } from "../../table/upsert.js";

/**
 * Digests of sets of rows: each row is hashed by the engine, and the hashes are added up. They do not depend on the order
 * of rows, tell a row that is there twice from one that is there once, and those of parts add up to the whole's.
 *
 * What is claimed: sets that differ by accident have equal digests with a chance of about 2^-64. They do not withstand
 * somebody who chooses rows to that end. The hash is one of the engine's version: both sides are to be of the same.
 */

/** 16 hex digits: a sum modulo 2^64. */
export type Digest = string;

/** Events of one tenant. */
export interface EventDigest {
  readonly rows: number;
  /** Of the entities' ids. */
  readonly keys: Digest;
  /** Of all that an event says: id, operation, version, time, payload. */
  readonly events: Digest;
}

export type EventDigests = ReadonlyMap<string, EventDigest>;

const EVENT = [
  "entity_id",
  "operation",
  "version",
  "occurred_at",
  "payload_type_url",
  "payload_compression",
  "payload_uri",
  "payload_sha256",
  "payload",
].join(", ");

/**
 * Of the rows of a relation with a raw table's columns, by tenant. A tenant is as many bytes of memory as its name and
 * some hundred. Each column is read once a row, so that what makes it need not be pure.
 */
export async function eventDigests(
  connection: DuckDBConnection,
  relation: string,
): Promise<Map<string, EventDigest>> {
  const rows = await rowsOf(
    connection,
    `SELECT tenant_id, count(*), sum(hash(entity_id)), sum(hash(${EVENT})) FROM ${relation} GROUP BY tenant_id`,
  );
  return new Map(
    rows.map(([tenant, count, keys, events]) => [
      String(tenant),
      { rows: Number(count), keys: digestOf(keys as bigint), events: digestOf(events as bigint) },
    ]),
  );
}

export const digestOf = (sum: bigint): Digest => BigInt.asUintN(64, sum).toString(16).padStart(16, "0");

/** A column as it is to be compared: both sides are cast to the type before they are hashed. */
export interface DigestColumn {
  readonly name: string;
  /** DuckDB's spelling. */
  readonly type: string;
}

const KEY_HASH = "_tributary_key";

/** SQL for the rows of a relation with tenant_id and entity_id, and what `rowHash` and `columnHash` are bound to. */
export const keyed = (relation: string): string =>
  `(SELECT *, hash(tenant_id, entity_id) AS ${KEY_HASH} FROM ${relation})`;

const cast = ({ name, type }: DigestColumn): string => `CAST(${identifier(name)} AS ${type})`;

/**
 * SQL for the hash of a column's value in a row of a `keyed` relation, bound to the row's entity, so that values that
 * change places show.
 */
const columnHash = (column: DigestColumn): string => `hash(${KEY_HASH}, ${cast(column)})`;

/** The columns that are compared: those that are no keys. */
export const comparedOf = <Column extends DigestColumn>(columns: readonly Column[]): Column[] =>
  columns.filter(({ name }) => !KEYS.has(name));

const KEYS: ReadonlySet<string> = new Set(KEY_COLUMNS);

/** As `columnHash`, of all columns together. */
export const rowHash = (columns: readonly DigestColumn[]): string =>
  `hash(${[KEY_HASH, ...columns.map(cast)].join(", ")})`;

/** Hashes of the columns, by name: h0, h1, … in their order. */
export const columnHashes = (columns: readonly DigestColumn[]): string =>
  columns.map((column, at) => `, ${columnHash(column)} AS h${at}`).join("");

/** Where rows stand among those of their entity (design 3.1): the greater of two wins, by the first that differs. */
export const RANK = ["v", "d", "h", "o", "p"] as const;

/** SQL for the columns of RANK, from the columns of order that a row has. */
export const rankOf = (row: string): string =>
  `${row}._tributary_version AS v, ${row}._tributary_operation = ${OPERATION_DELETED} AS d,
   (${row}._tributary_hash::HUGEINT & 18446744073709551615::HUGEINT)::UBIGINT AS h,
   coalesce(epoch_us(${row}._tributary_occurred_at), -9223372036854775808)::BIGINT AS o,
   ${row}._tributary_operation::TINYINT AS p`;

/**
 * As columns of a table are given: what a model has made of an event. Key and RANK; `shown`, whether it makes a row of it;
 * `broken`, whether it could not digest it; the row's hash `r`; and hashes of the columns. What is not shown has none.
 */
export const madeColumns = (columns: readonly DigestColumn[]): string =>
  `tenant_id VARCHAR, entity_id VARCHAR, v BIGINT, d BOOLEAN, h UBIGINT, o BIGINT, p TINYINT, shown BOOLEAN, broken BOOLEAN,
   r UBIGINT${columns.map((_, at) => `, h${at} UBIGINT`).join("")}`;

/**
 * Writes what a model has made of rows, as `madeColumns` says; `sql` has keys and columns of order, and, where its rows
 * are `shown`, the model's.
 */
export function writeMade(
  connection: DuckDBConnection,
  sql: string,
  path: string,
  columns: readonly DigestColumn[],
  shown: boolean,
): Promise<WrittenFile> {
  const compared = comparedOf(columns);
  const nothing = compared.map((_, at) => `, NULL::UBIGINT AS h${at}`).join("");
  const hashes = shown
    ? `${rowHash(compared)} AS r${columnHashes(compared)}`
    : `NULL::UBIGINT AS r${nothing}`;
  const select = `SELECT tenant_id, entity_id, ${rankOf("m")}, ${shown} AS shown, false AS broken, ${hashes}`;
  return copyMade(connection, `${select} FROM ${keyed(`(${sql})`)} m`, path);
}

/** Hashes do not get smaller. */
export async function copyMade(
  connection: DuckDBConnection,
  sql: string,
  path: string,
): Promise<WrittenFile> {
  const copy = `COPY (${sql}) TO ${literal(path)} (FORMAT parquet, COMPRESSION uncompressed)`;
  const [[rows]] = (await rowsOf(connection, copy)) as [[bigint]];
  return { rows: Number(rows), bytes: 0, statistics: {} };
}
