import type { DuckDBConnection } from "@duckdb/node-api";
import { identifier, rowsOf } from "../../base/duckdb.js";
import { ORDINAL, REJECT_BYTES, type SourceColumn } from "../../sources/formats.js";
import { RECORD } from "../../sources/text-reader.js";

/** Rows that one statement is asked for. */
const AT_ONCE = 1_000;

/**
 * Some rows of a batch as text, for whoever is to mend them: a record of JSON as it was, a row of columns as JSON; cut
 * after REJECT_BYTES. Those beyond `mostBytes` together are left out.
 */
export async function rowsAsJson(
  connection: DuckDBConnection,
  sql: string,
  columns: readonly SourceColumn[],
  ordinals: readonly number[],
  mostBytes: number,
): Promise<ReadonlyMap<number, Buffer>> {
  const isRecord = columns.some(({ name }) => name === RECORD);
  const names = columns.map(({ name }) => identifier(name)).join(", ");
  const text = isRecord ? `${RECORD}::VARCHAR` : `to_json({${structOf(columns)}})::VARCHAR`;
  const found = new Map<number, Buffer>();
  let bytes = 0;
  for (let at = 0; at < ordinals.length && bytes < mostBytes; at += AT_ONCE) {
    const some = ordinals.slice(at, at + AT_ONCE);
    const rows = await rowsOf(
      connection,
      `SELECT ${ORDINAL}::DOUBLE, left(${text}, ${REJECT_BYTES})
      FROM (SELECT ${ORDINAL}, ${names} FROM (${sql}) WHERE ${ORDINAL} IN (${some.join(", ")}))`,
    );
    for (const [ordinal, json] of rows as [number, string | null][]) {
      const row = Buffer.from(json ?? "").subarray(0, REJECT_BYTES);
      found.set(ordinal, row);
      bytes += row.length;
    }
  }
  return found;
}

const structOf = (columns: readonly SourceColumn[]): string =>
  columns.map(({ name }) => `${identifier(name)}: ${identifier(name)}`).join(", ");
