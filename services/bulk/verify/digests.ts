import type { DuckDBConnection } from "@duckdb/node-api";
import { literal, rowsOf } from "../../base/duckdb.js";
import {
  type Digest,
  type DigestColumn,
  digestOf,
  type EventDigest,
  type EventDigests,
} from "../chunks/row-digests.js";

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

export const NO_EVENTS: EventDigest = { rows: 0, keys: digestOf(0n), events: digestOf(0n) };

export const sameEvents = (a: EventDigest, b: EventDigest): boolean =>
  a.rows === b.rows && a.keys === b.keys && a.events === b.events;

const sum = (a: Digest, b: Digest): Digest => digestOf(BigInt(`0x${a}`) + BigInt(`0x${b}`));

export const digestsOf = (
  columns: readonly DigestColumn[],
  sums: readonly bigint[],
): Record<string, Digest> => Object.fromEntries(columns.map(({ name }, at) => [name, digestOf(sums[at]!)]));

/** How many entities a relation has, of how many tenants, and a digest of their ids and versions: 32 hex digits, by MD5. */
export async function keyVersionDigest(
  connection: DuckDBConnection,
  relation: string,
): Promise<{ readonly deletes: number; readonly tenants: number; readonly digest: string }> {
  const bytes = [
    "encode(strlen(tenant_id)::VARCHAR || ':' || strlen(entity_id)::VARCHAR || ':' || version::VARCHAR || ':')",
    "encode(tenant_id)",
    "encode(entity_id)",
  ].join(" || ");
  const [[deletes, tenants, high, low]] = (await rowsOf(
    connection,
    `SELECT count(*), count(DISTINCT tenant_id), sum((hash >> 64)::UBIGINT),
       sum((hash & 18446744073709551615::UHUGEINT)::UBIGINT)
     FROM (SELECT tenant_id, md5_number(${bytes}) AS hash FROM ${relation})`,
  )) as [[bigint, bigint, bigint | null, bigint | null]];
  const digest = digestOf(high ?? 0n) + digestOf(low ?? 0n);
  return { deletes: Number(deletes), tenants: Number(tenants), digest };
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
