import { literal, rowsOf } from "../base/duckdb.js";
import type { IngestContext } from "../ingest/context.js";
import type { DeltaTable } from "../table/delta-table.js";
import { portionsOf, withFilesScan } from "../table/scan.js";
import type { TableFile, TableSnapshot } from "../table/types.js";

const holds = (stream: string) => (file: TableFile) =>
  (file.min.stream ?? "") <= stream && (file.max.stream === undefined || stream <= file.max.stream);
const isPure = (stream: string) => (file: TableFile) =>
  file.min.stream === stream && file.max.stream === stream;

/** Rows of raw that came along the stream. Only files that hold others' too are read. Errors: those of reading. */
export async function rowsOfStream(
  { duck }: Pick<IngestContext, "duck">,
  raw: DeltaTable,
  stream: string,
): Promise<number> {
  const { snapshot } = raw;
  const files = snapshot.files.filter(holds(stream));
  const mixed = files.filter((file) => !isPure(stream)(file));
  let rows = files.filter(isPure(stream)).reduce((sum, file) => sum + file.rows - file.maskedRows, 0);
  for (const portion of portionsOf(raw, mixed)) {
    const options = { columns: ["stream"], where: `stream = ${literal(stream)}` };
    const [[count]] = (await withFilesScan(raw, snapshot, portion, options, (sql) =>
      duck.with((connection) => rowsOf(connection, `SELECT count(*) FROM (${sql})`)),
    )) as [[bigint]];
    rows += Number(count);
  }
  return rows;
}

/** About how many of them a table has taken in that stands at `position`: of files that hold no others. */
export const rowsUpTo = ({ files }: Pick<TableSnapshot, "files">, stream: string, position: string): number =>
  files
    .filter(isPure(stream))
    .filter(({ max }) => max.position !== undefined && max.position <= position)
    .reduce((sum, file) => sum + file.rows - file.maskedRows, 0);
