import type { DuckDBConnection } from "@duckdb/node-api";
import { literal } from "../base/duckdb.js";
import { type Action, removeOf } from "./actions.js";
import type { CommitRequest, CommitResult } from "./commit-request.js";
import { allRows, stageFile } from "./data-file.js";
import type { DeltaTable } from "./delta-table.js";
import { Mask } from "./mask.js";
import { rebased } from "./rebase.js";
import { mayHoldTenant, withFiles } from "./scan.js";
import { type StagedFile, Staging } from "./staging.js";
import type { TableFile } from "./types.js";
import { KEY_COLUMNS, ORDER_COLUMNS } from "./upsert.js";
import { stageVectors } from "./vectors.js";

/**
 * Puts other rows and tombstones in the place of one tenant's, in one commit: files of a side table come in, its rows in
 * the other files are masked, and files of tombstones are written anew without its own. No row of another tenant is
 * moved or changed, nor does the table move along its streams: events that the new rows know already change nothing when
 * they come again.
 *
 * Beside other writers the commit is tried again and again: what was found out about a file holds as long as the file
 * lives, so that a later try reads nothing but what has come since. What was staged too long ago is staged anew.
 */
export class TenantReplacement {
  /** Rows of the tenant in files of rows, by path. */
  private readonly rows = new Map<string, readonly number[]>();
  /** What takes the place of files of tombstones, by path. */
  private readonly remade = new Map<string, Remade>();

  private constructor(
    private readonly staging: Staging,
    private readonly connection: DuckDBConnection,
    private readonly tenant: string,
  ) {}

  static run<T>(
    table: DeltaTable,
    tenant: string,
    use: (replacement: TenantReplacement) => Promise<T>,
  ): Promise<T> {
    return table.duck.with((connection) =>
      Staging.run(table, (staging) => use(new TenantReplacement(staging, connection, tenant))),
    );
  }

  /**
   * The table as of its present snapshot takes over the files of `side`, which lies in `folder` of the table's own and
   * holds nothing but the tenant. `also` as in `replaceTable`. On a conflict nothing has changed; refresh, bring the side
   * table to where the table stands, and try again.
   */
  async commit(
    side: DeltaTable,
    folder: string,
    also: Pick<CommitRequest, "actions" | "expect">,
  ): Promise<CommitResult> {
    const { staging } = this;
    const { table } = staging;
    const { snapshot } = table;
    const masked = new Map<TableFile, Mask>();
    const born: { add: StagedFile["add"]; masked: Uint32Array }[] = [];
    const gone: Action[] = [];
    const now = Date.now();
    for (const file of snapshot.files.filter((one) => mayHoldTenant(one, this.tenant))) {
      if (!file.tombstones) {
        const mask = await this.maskOf(file);
        if (mask !== undefined) masked.set(file, mask);
        continue;
      }
      const remade = await this.remake(file);
      if (remade === "same") continue;
      gone.push({ remove: removeOf(file.add, now, false) });
      if (remade !== "nothing") born.push({ add: remade.add, masked: allRows(remade) });
    }
    const vectors = await stageVectors(staging, masked, born);
    const result = await staging.commit({
      operation: "REPLACE TENANT",
      actions: [
        ...gone,
        ...vectors,
        ...side.snapshot.files.map((file) => ({ add: rebased(file.add, folder) })),
        ...also.actions,
      ],
      expect: also.expect,
      basedOn: snapshot.version,
      // Any row of the tenant that comes in between would stand beside the new ones.
      serializable: true,
    });
    // They may have been swept away since they were staged.
    if (result.kind === "conflict" && result.reason === "age") this.remade.clear();
    return result;
  }

  /** The file's mask with all of the tenant's rows in it; undefined when it has them already. */
  private async maskOf(file: TableFile): Promise<Mask | undefined> {
    let rows = this.rows.get(file.path);
    if (rows === undefined) {
      rows = await withFiles(this.staging.table, [file], async ([path]) => {
        const found = await this.connection.runAndReadAll(
          `SELECT file_row_number::INTEGER
           FROM read_parquet(${literal(path!)}, file_row_number=true, hive_partitioning=false)
           WHERE tenant_id = ${literal(this.tenant)}`,
        );
        return (found.getColumns()[0] ?? []) as number[];
      });
      this.rows.set(file.path, rows);
    }
    const known = await this.staging.table.mask(file);
    if (rows.every((row) => known?.has(row) === true)) return undefined;
    const mask = known?.copy() ?? Mask.none(file.rows);
    for (const row of rows) mask.set(row);
    return mask;
  }

  private async remake(file: TableFile): Promise<Remade> {
    const known = this.remade.get(file.path);
    if (known !== undefined) return known;
    const remade = await withFiles(this.staging.table, [file], ([path]) => this.without(file, path!));
    if (typeof remade !== "string") await this.staging.publish([remade]);
    this.remade.set(file.path, remade);
    return remade;
  }

  private async without(file: TableFile, path: string): Promise<Remade> {
    const from = `FROM read_parquet(${literal(path)}, hive_partitioning=false)`;
    const others = `WHERE tenant_id <> ${literal(this.tenant)}`;
    const [[left]] = (await this.connection.runAndReadAll(`SELECT count(*) ${from} ${others}`)).getRows() as [
      [bigint],
    ];
    if (Number(left) === file.rows) return "same";
    if (left === 0n) return "nothing";
    return stageFile(
      this.staging,
      this.connection,
      `SELECT ${[...KEY_COLUMNS, ...ORDER_COLUMNS].join(", ")} ${from} ${others} ORDER BY tenant_id, entity_id`,
      {
        ...(file.partition === undefined ? {} : { partition: file.partition }),
        tombstones: true,
        dataChange: false,
        slots: file.slots,
      },
    );
  }
}

/** A file of the other tenants' tombstones; or there were none of the tenant's, or no others. */
type Remade = StagedFile | "same" | "nothing";
