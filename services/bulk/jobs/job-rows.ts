import { literal, rowsOf } from "../../base/duckdb.js";
import type { IngestContext } from "../../ingest/context.js";
import type { DeltaTable } from "../../table/delta-table.js";
import { partsOf, type Track } from "../../table/progress.js";
import { portionsOf, withFilesScan } from "../../table/scan.js";
import type { TableFile, TableSnapshot } from "../../table/types.js";

const live = (files: readonly TableFile[]): number =>
  files.reduce((sum, { rows, maskedRows }) => sum + rows - maskedRows, 0);

/** Files by whether they hold rows of the track alone, or may hold some. */
function split(files: readonly TableFile[], track: Track) {
  const { stream, partition } = partsOf(track);
  const pure: TableFile[] = [];
  const mixed: TableFile[] = [];
  for (const file of files) {
    const { min, max } = file;
    const isPure =
      min.stream === stream &&
      max.stream === stream &&
      min.partition === partition &&
      max.partition === partition;
    if (isPure) pure.push(file);
    else if ((min.stream ?? "") <= stream && (max.stream === undefined || stream <= max.stream))
      mixed.push(file);
  }
  return { pure, mixed };
}

/** Rows of raw that came along the track. Only files that hold others' too are read. Errors: those of reading. */
export async function rowsOfTrack(
  { duck }: Pick<IngestContext, "duck">,
  raw: DeltaTable,
  track: Track,
): Promise<number> {
  const { snapshot } = raw;
  const { stream, partition } = partsOf(track);
  const { pure, mixed } = split(snapshot.files, track);
  let rows = live(pure);
  for (const portion of portionsOf(raw, mixed)) {
    const where = `stream = ${literal(stream)} AND partition = ${literal(partition)}`;
    const options = { columns: ["stream", "partition"], where };
    const [[count]] = (await withFilesScan(raw, snapshot, portion, options, (sql) =>
      duck.with((connection) => rowsOf(connection, `SELECT count(*) FROM (${sql})`)),
    )) as [[bigint]];
    rows += Number(count);
  }
  return rows;
}

/** About how many of them a table has taken in that stands at `position`: of files that hold no others. */
export const rowsUpTo = ({ files }: Pick<TableSnapshot, "files">, track: Track, position: string): number =>
  live(split(files, track).pure.filter(({ max }) => (max.position ?? "~") <= position));
