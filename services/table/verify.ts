import { literal, rowsOf } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import type { DeltaTable } from "./delta-table.js";
import { withFiles, withScan } from "./scan.js";
import { KEY_COLUMNS } from "./upsert.js";

export interface Verification {
  readonly version: number;
  readonly files: number;
  readonly rows: number;
  readonly maskedRows: number;
  readonly bytes: number;
  /** What is wrong, in words; empty when all is well. */
  readonly problems: readonly string[];
}

/**
 * Checks a table against its own log: every file is there with its size and rows, every vector reads and fits, and
 * live rows are unique by `uniqueBy`. Reads the table's newest version.
 */
export async function verifyTable(
  table: DeltaTable,
  uniqueBy: readonly string[] = KEY_COLUMNS,
): Promise<Verification> {
  const snapshot = await table.refresh();
  const problems: string[] = [];
  await table.duck.with(async (connection) => {
    for (const file of snapshot.files) {
      try {
        const [[rows]] = (await withFiles(table, [file], ([path]) =>
          rowsOf(connection, `SELECT count(*) FROM read_parquet(${literal(path!)})`),
        )) as [[bigint]];
        if (Number(rows) !== file.rows)
          problems.push(`${file.path}: ${rows} rows, the log says ${file.rows}`);
        const mask = await table.mask(file);
        if ((mask?.count ?? 0) !== file.maskedRows) problems.push(`${file.path}: the vector does not fit`);
        if (file.tombstones && file.maskedRows !== file.rows)
          problems.push(`${file.path}: a tombstone shows`);
      } catch (error) {
        const reason = error instanceof TributaryError ? error.message : "the file is missing or damaged";
        problems.push(`${file.path}: ${reason}`);
      }
    }
    if (problems.length > 0) return;
    const keys = uniqueBy.join(", ");
    const [[doubles]] = (await withScan(table, snapshot, { columns: uniqueBy }, (live) =>
      rowsOf(
        connection,
        `SELECT count(*) FROM (SELECT ${keys} FROM (${live}) GROUP BY ${keys} HAVING count(*) > 1)`,
      ),
    )) as [[bigint]];
    if (doubles > 0n) problems.push(`${doubles} keys (${keys}) have more than one live row`);
  });
  const sum = (of: (file: (typeof snapshot.files)[number]) => number) =>
    snapshot.files.reduce((total, file) => total + of(file), 0);
  return {
    version: snapshot.version,
    files: snapshot.files.length,
    rows: sum((file) => file.rows - file.maskedRows),
    maskedRows: sum((file) => file.maskedRows),
    bytes: sum((file) => file.bytes),
    problems,
  };
}
