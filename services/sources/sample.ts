import type { DuckDBConnection } from "@duckdb/node-api";
import { identifier, rowsOf } from "../base/duckdb.js";
import { type Format, ORDINAL, type Reject, type SourceColumn } from "./formats.js";
import { type Counted, SAMPLE_CHARACTERS, type Sample } from "./protocol.js";
import { type SourceReader, START } from "./reader.js";
import type { Mark } from "./splitter.js";
import { EVENT, RECORD } from "./text-reader.js";

/** Some rejects tell of all. */
const REJECTS = 20;
/** Of a file whose first rows are not among so many bytes, or behind so many records that are none, nothing more is looked at. */
const SAMPLE_BYTES = 64 * 1024 * 1024;
const SAMPLE_REJECTS = 100_000;

/** The first rows of a file. Errors: those of SourceReader. */
export async function sampleRows(
  reader: SourceReader,
  connection: DuckDBConnection,
  format: Format,
  wanted: number,
): Promise<Sample> {
  const isJson = format === "ndjson" || format === "debezium";
  const shown = isJson
    ? RECORD
    : format === "events"
      ? `json_object('${EVENT}', base64(${EVENT}))`
      : `json_object(${reader.columns.map(({ name }) => `'${name.replaceAll("'", "''")}', ${identifier(name)}`).join(", ")})`;
  const rows: string[] = [];
  const rejects: Reject[] = [];
  let columns = reader.columns;
  let [bytes, rejected] = [0, 0];
  for await (const batch of reader.batches(START)) {
    bytes += batch.bytes;
    rejected += batch.rejects.length;
    rejects.push(...batch.rejects.slice(0, REJECTS - rejects.length));
    if (batch.rows > 0) {
      try {
        const some = `(SELECT * EXCLUDE (${ORDINAL}) FROM (${batch.sql}) LIMIT ${wanted - rows.length})`;
        const found = await rowsOf(
          connection,
          `SELECT left(${shown}::VARCHAR, ${SAMPLE_CHARACTERS}) FROM ${some}`,
        );
        rows.push(...found.map(([row]) => String(row)));
        if (isJson) {
          // Of the first batch that has any: what a dry run looks at.
          const [[structure] = []] = await rowsOf(
            connection,
            `SELECT json_group_structure(${RECORD}::JSON) FROM ${some}`,
          );
          columns = [...fieldsOf(JSON.parse(String(structure))), ...reader.partition];
        }
      } catch (error) {
        throw await reader.failure(error);
      }
    }
    if (rows.length >= wanted || bytes >= SAMPLE_BYTES || rejected >= SAMPLE_REJECTS) break;
  }
  return { columns, rows, rejects };
}

/** Reads all rows from `from` on, every column of them. `onBatch` gets the rejects of each batch. */
export async function countRows(
  reader: SourceReader,
  connection: DuckDBConnection,
  from: Mark,
  onBatch: (rejects: readonly Reject[]) => void,
): Promise<Counted> {
  let [rows, rejects, bytes] = [0, 0, 0];
  const all = reader.columns.map(({ name }) => identifier(name)).join(", ");
  for await (const batch of reader.batches(from)) {
    try {
      const [[count] = []] = await rowsOf(
        connection,
        // The sum keeps the engine from leaving columns unread.
        `SELECT count(*), sum(hash(${all})::HUGEINT) FROM (${batch.sql})`,
      );
      rows += Number(count);
    } catch (error) {
      throw await reader.failure(error);
    }
    rejects += batch.rejects.length;
    bytes += batch.bytes;
    onBatch(batch.rejects);
  }
  return { rows, rejects, bytes };
}

/** DuckDB's spelling of what `json_group_structure` tells: {"a": "BIGINT", "b": {"c": ["VARCHAR"]}}. */
function fieldsOf(structure: unknown): SourceColumn[] {
  if (typeof structure !== "object" || structure === null) return [];
  return Object.entries(structure).map(([name, type]) => ({ name, type: spelled(type) }));
}

function spelled(type: unknown): string {
  if (typeof type === "string") return type === "NULL" ? "JSON" : type;
  if (Array.isArray(type)) return `${spelled(type[0])}[]`;
  const fields = fieldsOf(type).map((field) => `${identifier(field.name)} ${field.type}`);
  return fields.length === 0 ? "JSON" : `STRUCT(${fields.join(", ")})`;
}
