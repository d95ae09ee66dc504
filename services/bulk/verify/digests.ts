import type { DuckDBConnection } from "@duckdb/node-api";
import { identifier, literal, rowsOf } from "../../base/duckdb.js";

/**
 * Digests of sets of rows: each row is hashed, and the hashes are added up. They do not depend on the order of rows, tell
 * a row that is there twice from one that is there once, and those of parts add up to the whole's.
 *
 * What is claimed: sets that differ by accident have equal digests with a chance of about 2^-128 where a row's MD5 is
 * added in two halves of 64 bits, and 2^-64 where it is the engine's own hash. Neither withstands somebody who chooses
 * rows to that end.
 */

/** 32 hex digits: two sums modulo 2^64. */
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

const LOW = "18446744073709551615";
/** Each with its length, so that no two rows are one text. */
const framed = (blob: string): string => `coalesce(octet_length(${blob})::VARCHAR, '') || ':'`;
const blobOf = (text: string): string => `encode(${text})`;

const EVENT = [
  "encode(entity_id)",
  blobOf("operation"),
  blobOf("version::VARCHAR"),
  blobOf("coalesce(epoch_us(occurred_at)::VARCHAR, '')"),
  blobOf("coalesce(payload_type_url, '')"),
  blobOf("coalesce(payload_compression, '')"),
  blobOf("coalesce(payload_uri, '')"),
  "coalesce(payload_sha256, ''::BLOB)",
  "coalesce(payload, ''::BLOB)",
];
const EVENT_BYTES = [
  blobOf(EVENT.map(framed).join(" || ")),
  ...EVENT,
  blobOf("(payload IS NULL)::VARCHAR"),
].join(" || ");

const md5Sums = (hash: string, name: string): string =>
  `sum((${hash} >> 64)::UBIGINT) AS ${name}_high, sum((${hash} & ${LOW}::UHUGEINT)::UBIGINT) AS ${name}_low`;

/**
 * Of the rows of a relation with a raw table's columns, by tenant. A tenant is as many bytes of memory as its name and
 * some hundred.
 */
export async function eventDigests(
  connection: DuckDBConnection,
  relation: string,
): Promise<Map<string, EventDigest>> {
  const rows = await rowsOf(
    connection,
    `SELECT tenant_id, count(*), ${md5Sums("k", "keys")}, ${md5Sums("e", "events")}
     FROM (SELECT tenant_id, md5_number(encode(entity_id)) AS k, md5_number(${EVENT_BYTES}) AS e FROM ${relation})
     GROUP BY tenant_id`,
  );
  return new Map(
    rows.map(([tenant, count, ...sums]) => {
      const [keysHigh, keysLow, eventsHigh, eventsLow] = sums as [bigint, bigint, bigint, bigint];
      return [
        String(tenant),
        { rows: Number(count), keys: digestOf(keysHigh, keysLow), events: digestOf(eventsHigh, eventsLow) },
      ];
    }),
  );
}

/** Adds those of a part to those of what came before. */
export function addDigests(into: Map<string, EventDigest>, part: EventDigests): void {
  for (const [tenant, more] of part) {
    const before = into.get(tenant);
    into.set(
      tenant,
      before === undefined
        ? more
        : {
            rows: before.rows + more.rows,
            keys: sum(before.keys, more.keys),
            events: sum(before.events, more.events),
          },
    );
  }
}

export const NO_EVENTS: EventDigest = { rows: 0, keys: "0".repeat(32), events: "0".repeat(32) };

export const sameEvents = (a: EventDigest, b: EventDigest): boolean =>
  a.rows === b.rows && a.keys === b.keys && a.events === b.events;

const half = (sum: bigint): string => BigInt.asUintN(64, sum).toString(16).padStart(16, "0");
const digestOf = (high: bigint, low: bigint): Digest => half(high) + half(low);
const halvesOf = (digest: Digest): [bigint, bigint] => [
  BigInt(`0x${digest.slice(0, 16)}`),
  BigInt(`0x${digest.slice(16)}`),
];
function sum(a: Digest, b: Digest): Digest {
  const [aHigh, aLow] = halvesOf(a);
  const [bHigh, bLow] = halvesOf(b);
  return digestOf(aHigh + bHigh, aLow + bLow);
}

/** A column as it is to be compared: both sides are cast to the type before they are hashed. */
export interface DigestColumn {
  readonly name: string;
  /** DuckDB's spelling. */
  readonly type: string;
}

/**
 * SQL for the hash of a column's value in a row, bound to the row's entity, so that values that change places show. Of
 * one engine's version: to be compared with what the same process has made.
 */
export const columnHash = ({ name, type }: DigestColumn): string =>
  `hash(tenant_id, entity_id, CAST(${identifier(name)} AS ${type}))`;

/** Rows of one tenant in a refined table, or in what is to be one. */
export interface RowDigest {
  readonly rows: number;
  /** By the columns' names: 16 hex digits. */
  readonly columns: Readonly<Record<string, string>>;
}

/** Of a relation's rows, by tenant: how two tables of one model are compared. */
export async function rowDigests(
  connection: DuckDBConnection,
  relation: string,
  columns: readonly DigestColumn[],
): Promise<Map<string, RowDigest>> {
  const sums = columns.map((column, at) => `sum(${columnHash(column)}) AS c${at}`);
  const rows = await rowsOf(
    connection,
    `SELECT tenant_id, count(*), ${sums.join(", ")} FROM ${relation} GROUP BY tenant_id`,
  );
  return new Map(
    rows.map(([tenant, count, ...found]) => [
      String(tenant),
      { rows: Number(count), columns: digestsOf(columns, found as bigint[]) },
    ]),
  );
}

export const digestsOf = (
  columns: readonly DigestColumn[],
  sums: readonly (bigint | null)[],
): Record<string, string> => Object.fromEntries(columns.map(({ name }, at) => [name, half(sums[at] ?? 0n)]));

/** How many entities a relation has, of how many tenants, and a digest of their ids and versions. */
export async function keyVersionDigest(
  connection: DuckDBConnection,
  relation: string,
): Promise<{ readonly deletes: number; readonly tenants: number; readonly digest: Digest }> {
  const bytes = [
    "encode(strlen(tenant_id)::VARCHAR || ':' || strlen(entity_id)::VARCHAR || ':' || version::VARCHAR || ':')",
    "encode(tenant_id)",
    "encode(entity_id)",
  ].join(" || ");
  const [[deletes, tenants, high, low]] = (await rowsOf(
    connection,
    `SELECT count(*), count(DISTINCT tenant_id), ${md5Sums("h", "keys")}
     FROM (SELECT tenant_id, md5_number(${bytes}) AS h FROM ${relation})`,
  )) as [[bigint, bigint, bigint | null, bigint | null]];
  return { deletes: Number(deletes), tenants: Number(tenants), digest: digestOf(high ?? 0n, low ?? 0n) };
}

/** SQL condition for rows of one tenant, or of all. */
export const ofTenant = (tenant: string | undefined): string =>
  tenant === undefined ? "true" : `tenant_id = ${literal(tenant)}`;

/** SQL for where a row with order columns stands among those of its entity (design 3.1): greater ones win. */
export const rankSql = (row: string): string =>
  `struct_pack(v := ${row}._tributary_version, d := ${row}._tributary_operation = 3,
    h := (${row}._tributary_hash::HUGEINT & 18446744073709551615::HUGEINT)::UBIGINT,
    o := coalesce(epoch_us(${row}._tributary_occurred_at), -9223372036854775808)::BIGINT,
    p := ${row}._tributary_operation::INTEGER)`;
