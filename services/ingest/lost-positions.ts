import { basename, join } from "node:path";
import { type Duck, literal, rowsOf } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import { type Lend, withAll } from "../base/with-all.js";
import type { ObjectStore } from "../storage/object-store.js";
import type { Checkpoint } from "../stream/change-stream.js";
import { DeltaTable, type TableOptions } from "../table/delta-table.js";
import { progressOf, trackOf } from "../table/progress.js";
import { withScan } from "../table/scan.js";
import { DEAD_LETTERS_ROOT } from "./dead-letters.js";
import { parkedPositions } from "./parked-log.js";

/** Where events may stand. */
export interface EventPlaces {
  readonly store: ObjectStore;
  readonly duck: Duck;
  readonly tableOptions: TableOptions;
  /** Of a raw table: today's stream, and up to where it may have forgotten events. */
  readonly stream: string;
  readonly lowWater: Checkpoint;
}

/** Positions that count the events of their partition. */
const COUNTS = /^\d{16}$/;

/**
 * Positions that the stream may have forgotten and that stand nowhere: not in any raw table, among the unreadable
 * events, parked, or in `found`. Those beyond the table's own positions can only have been in what is damaged.
 */
export async function lostPositions(
  { store, duck, tableOptions, stream, lowWater }: EventPlaces,
  table: DeltaTable,
  found: string | undefined,
): Promise<string[]> {
  const own = progressOf(table.snapshot);
  const due = [...lowWater].filter(([partition, low]) => low > (own.get(trackOf(stream, partition)) ?? ""));
  if (due.length === 0) return [];
  const columns = ["stream", "partition", "position"];
  const lenders: Lend<string>[] = [];
  for (const root of await rootsOfEvents(store)) {
    const each =
      root === table.root
        ? table
        : await DeltaTable.open(store, root, duck, tableOptions).catch((error: unknown) => {
            throw new TributaryError(
              "TRB-TABLE-CORRUPT",
              `what is lost cannot be told while ${root} cannot be read; repair that one first`,
              { cause: error },
            );
          });
    if (each === undefined || each.snapshot.files.length === 0) continue;
    const where = root === DEAD_LETTERS_ROOT ? { where: "model = ''" } : {};
    lenders.push((use) => withScan(each, each.snapshot, { columns, ...where }, use));
  }
  const aside = await parkedPositions(store, stream);
  return withAll(lenders, (scans) =>
    duck.with(async (connection) => {
      const sources = [
        ...(found === undefined ? [] : [`SELECT ${columns.join(", ")} FROM (${found})`]),
        ...scans,
      ];
      await connection.run(
        "CREATE TEMP TABLE parked_positions (stream VARCHAR, partition VARCHAR, position VARCHAR)",
      );
      try {
        for (let at = 0; at < aside.length; at += 1000) {
          const values = aside
            .slice(at, at + 1000)
            .map((one) => `(${[stream, one.partition, one.position].map(literal).join(", ")})`);
          await connection.run(`INSERT INTO parked_positions VALUES ${values.join(", ")}`);
        }
        sources.push(`SELECT ${columns.join(", ")} FROM parked_positions`);
        const lost: string[] = [];
        const isOf = (partition: string) =>
          `stream = ${literal(stream)} AND partition = ${literal(partition)}`;
        for (const [partition, low] of due) {
          const position = own.get(trackOf(stream, partition)) ?? "";
          if (!COUNTS.test(low)) {
            if (found !== undefined) {
              // A file of raw begins behind the table's positions and leaves out nothing up to its end.
              const [[end]] = (await rowsOf(
                connection,
                `SELECT max(position) FROM (${found}) WHERE ${isOf(partition)}`,
              )) as [[string | null]];
              if (end !== null && end >= low) continue;
            }
            lost.push(
              `whether events of partition ${partition} between positions ${position || "0"} and ${low} are elsewhere cannot be told: positions of this stream do not count them`,
            );
            continue;
          }
          const [[count]] = (await rowsOf(
            connection,
            `SELECT count(DISTINCT position) FROM (${sources.map((one) => `(${one})`).join(" UNION ALL ")})
           WHERE ${isOf(partition)}
             AND position > ${literal(position)} AND position <= ${literal(low)}`,
          )) as [[bigint]];
          const missing = BigInt(low) - BigInt(position === "" ? 0 : position) - count;
          if (missing > 0n) {
            lost.push(
              `${missing} events of partition ${partition} between positions ${position || "0"} and ${low} are nowhere else`,
            );
          }
        }
        return lost;
      } finally {
        await connection.run("DROP TABLE parked_positions");
      }
    }),
  );
}

/** Where events may stand: raw tables, and dead letters for what is none. */
async function rootsOfEvents(store: ObjectStore): Promise<string[]> {
  const roots = new Set<string>([DEAD_LETTERS_ROOT]);
  for await (const { key } of store.list("raw/")) roots.add(join("raw", key.split("/")[1]!));
  return [...roots].filter((root) => basename(root) !== "");
}
