import type { DuckDBConnection } from "@duckdb/node-api";
import { literal } from "../base/duckdb.js";
import { assert } from "../base/errors.js";
import type { AddAction } from "./actions.js";
import type { DeltaTable } from "./delta-table.js";
import { Mask } from "./mask.js";
import { withFiles } from "./scan.js";
import type { StagedFile } from "./staging.js";
import { filesOf, type TableFile } from "./types.js";

/**
 * Files that are to take the place of others, with those of their rows whose originals upserts have masked since they
 * were copied. Each look costs what was masked since the one before, so that the last one, which keeps upserts waiting,
 * is short however many came while the files were written.
 */
export class MaskedMeanwhile {
  private readonly masked: Mask[];

  private constructor(
    private readonly table: DeltaTable,
    private readonly connection: DuckDBConnection,
    private readonly sources: readonly TableFile[],
    private readonly staged: readonly StagedFile[],
    /** Masks of the sources that the new files know of. */
    private seen: readonly (Mask | undefined)[],
  ) {
    this.masked = staged.map(({ rows }) => Mask.none(rows));
  }

  /** `staged` are durable and hold each row of `sources` that these say is live, once. */
  static async since(
    table: DeltaTable,
    connection: DuckDBConnection,
    sources: readonly TableFile[],
    staged: readonly StagedFile[],
  ): Promise<MaskedMeanwhile> {
    const seen = await Promise.all(sources.map((file) => table.mask(file)));
    return new MaskedMeanwhile(table, connection, sources, staged, seen);
  }

  /** The new files as of the last look. */
  get born(): { readonly add: AddAction; readonly masked: Uint32Array }[] {
    return this.staged.map(({ add }, i) => ({ add, masked: this.masked[i]!.toRows() }));
  }

  /** Takes in what the table's snapshot says; the sources as they are in it, undefined when one is gone. */
  async look(): Promise<TableFile[] | undefined> {
    const live = filesOf(this.table.snapshot);
    const current: TableFile[] = [];
    for (const { path } of this.sources) {
      const file = live.get(path);
      if (file === undefined) return undefined;
      current.push(file);
    }
    const masks = await Promise.all(current.map((file) => this.table.mask(file)));
    const fresh = masks.map((mask, i) => rowsSince(mask, this.seen[i]));
    const count = fresh.reduce((sum, rows) => sum + rows.length, 0);
    if (count > 0) await this.find(fresh, count);
    this.seen = masks;
    return current;
  }

  /** Masks the copies of these rows, by source. */
  private async find(fresh: readonly (readonly number[])[], count: number): Promise<void> {
    const { table, connection, staged } = this;
    const touched = [...fresh.keys()].filter((i) => fresh[i]!.length > 0);
    await withFiles(
      table,
      touched.map((i) => this.sources[i]!),
      (paths) =>
        connection.run(
          `CREATE OR REPLACE TEMP TABLE compact_gone AS ${paths
            .map(
              (path, at) =>
                `SELECT tenant_id, entity_id
                 FROM read_parquet(${literal(path)}, file_row_number=true, hive_partitioning=false)
                 WHERE file_row_number IN (${fresh[touched[at]!]!.join(", ")})`,
            )
            .join("\nUNION ALL\n")}`,
        ),
    );
    let found = 0;
    for (const [i, { key }] of staged.entries()) {
      const result = await table.store.withLocal([key], ([path]) =>
        connection.runAndReadAll(
          `SELECT file_row_number
           FROM read_parquet(${literal(path!)}, file_row_number=true, hive_partitioning=false)
           SEMI JOIN compact_gone USING (entity_id, tenant_id)`,
        ),
      );
      for (const row of (result.getColumns()[0] ?? []) as bigint[]) {
        // What a look that failed half-way has found is found again.
        this.masked[i]!.set(Number(row));
        found++;
      }
    }
    await connection.run("DROP TABLE compact_gone");
    assert(found === count, "a masked row is not in the new files");
  }
}

const rowsSince = (mask: Mask | undefined, before: Mask | undefined): number[] =>
  mask === undefined || mask.count === (before?.count ?? 0)
    ? []
    : [...mask.toRows()].filter((row) => before?.has(row) !== true);
