import type { DuckDBConnection } from "@duckdb/node-api";
import { literal, rowsOf } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import type { Model } from "../models/project.js";
import type { RepairReport } from "../status/repair-request.js";
import { removeOf } from "../table/actions.js";
import { stageFile } from "../table/data-file.js";
import { DeltaTable } from "../table/delta-table.js";
import { aheadOf, partsOf, progressOf, setProgress, trackOf } from "../table/progress.js";
import { type Bench, type Inventory, openBench, setLogAside, takeInventory } from "../table/repair.js";
import { rowsOfFiles, withFilesScan } from "../table/scan.js";
import { Staging } from "../table/staging.js";
import { verifyTable } from "../table/verify.js";
import { DEAD_LETTERS_ROOT } from "./dead-letters.js";
import { tell } from "./failure.js";
import { type EventPlaces, lostPositions } from "./lost-positions.js";
import { rawRoot } from "./raw-table.js";
import { AHEAD, FINGERPRINT, refinedRoot } from "./refined-table.js";

export interface RepairParts extends EventPlaces {
  readonly models: readonly Pick<Model, "name" | "domain" | "table" | "entityType">[];
}

/** What tells events, or letters, of one table apart. */
const RAW_KEY = ["stream", "partition", "position"];
const LETTER_KEY = ["model", ...RAW_KEY];

/**
 * Finds what is wrong with a table and mends what can be mended without loss; with `dryRun` it only tells. Names are
 * those of `tributary table ls`. Nobody may write the table meanwhile; whoever has it open must open it again.
 * Errors: TRB-TABLE-NOT-FOUND, TRB-STORE-FAILED.
 */
export async function repairTable(parts: RepairParts, name: string, dryRun: boolean): Promise<RepairReport> {
  const report: RepairReport = { table: name, found: [], done: [], left: [] };
  const { store, duck, tableOptions, models } = parts;
  const open = (root: string) => openBench(store, root, duck, tableOptions);
  const model = models.find((each) => each.name === name);
  if (model !== undefined) {
    const raw = await open(rawRoot(model.entityType));
    await mendRefined(parts, refinedRoot(model), await open(refinedRoot(model)), raw, report, dryRun);
    await tellOfRaw(model.entityType, raw, report);
    return report;
  }
  const raw = /^raw\/([^/]+)$/.exec(name)?.[1];
  if (raw === undefined && name !== DEAD_LETTERS_ROOT) throw notFound(name);
  const bench = await open(name);
  if (bench.kind === "absent" && raw !== undefined) throw notFound(name);
  await new Keeper(parts, raw === undefined ? LETTER_KEY : RAW_KEY, raw !== undefined, report, dryRun).mend(
    bench,
  );
  return report;
}

const notFound = (name: string) =>
  new TributaryError("TRB-TABLE-NOT-FOUND", `no table "${name}"; see \`tributary table ls\``);

/** A refined table holds nothing that raw does not: whatever is wrong, it can be brought forward or built anew. */
async function mendRefined(
  { store, duck, tableOptions }: RepairParts,
  root: string,
  bench: Bench,
  raw: Bench,
  report: RepairReport,
  dryRun: boolean,
): Promise<void> {
  if (bench.kind === "absent") {
    if (raw.kind === "absent") return;
    report.found.push("it is not there: nobody has made it yet, or it was dropped");
    report.done.push("the table is built anew from raw");
    return;
  }
  if (bench.kind === "unreadable") {
    report.found.push(`its log cannot be read: ${tell(bench.reason).reason}`);
    report.done.push("its log is set aside (a copy stays in _damaged), and the table built anew from raw");
    if (!dryRun) await setLogAside(store, root);
    return;
  }
  if (bench.kind === "newest") {
    report.found.push(`commit ${bench.version} cannot be read: ${tell(bench.reason).reason}`);
    report.done.push(
      `commit ${bench.version} is set aside (a copy stays in _damaged); what it held comes from raw`,
    );
    if (!dryRun) await replaceCommit(bench.table);
  }
  const table = dryRun
    ? bench.table
    : ((await DeltaTable.open(store, root, duck, tableOptions)) ?? bench.table);
  const { problems } = await verifyTable(table);
  const isAhead =
    raw.kind === "readable" && aheadOf(progressOf(table.snapshot), progressOf(raw.table.snapshot)).length > 0;
  if (problems.length === 0 && !isAhead) return;
  report.found.push(...problems, ...(isAhead ? [AHEAD] : []));
  report.done.push("the table is built anew from raw; queries see what is left of the old one meanwhile");
  if (!dryRun) await demandRebuild(table);
}

async function replaceCommit(table: DeltaTable): Promise<void> {
  await table.commit({
    operation: "REPAIR",
    actions: [],
    expect: new Map(),
    basedOn: table.snapshot.version,
    serializable: true,
    files: [],
  });
}

/** A table whose fingerprint is no model's is built anew by ingest, beside the old one. */
async function demandRebuild(table: DeltaTable): Promise<void> {
  for (;;) {
    const { version } = await table.refresh();
    const configuration = { ...table.metaData.configuration, [FINGERPRINT]: "repair" };
    const actions = [{ metaData: { ...table.metaData, configuration } }];
    const request = { operation: "REPAIR" as const, actions, expect: new Map(), basedOn: version, files: [] };
    const result = await table.commit({ ...request, serializable: true });
    if (result.kind === "committed") return;
  }
}

async function tellOfRaw(entityType: string, bench: Bench, report: RepairReport): Promise<void> {
  const command = `\`tributary table repair raw/${entityType}\``;
  if (bench.kind === "newest" || bench.kind === "unreadable") {
    report.left.push(`raw/${entityType}, which it is built from, cannot be read: ${command}`);
  }
  if (bench.kind !== "readable") return;
  const { missing } = await takeInventory(bench.table, bench.table.snapshot);
  if (missing.length > 0)
    report.left.push(`raw/${entityType}, which it is built from, lacks files: ${command}`);
}

/** Mends a table whose rows are nowhere else: nothing is ever dropped. */
class Keeper {
  constructor(
    private readonly parts: RepairParts,
    private readonly key: readonly string[],
    private readonly isRaw: boolean,
    private readonly report: RepairReport,
    private readonly dryRun: boolean,
  ) {}

  async mend(bench: Bench): Promise<void> {
    const { report } = this;
    if (bench.kind === "absent") return;
    if (bench.kind === "unreadable") {
      report.found.push(`its log cannot be read: ${tell(bench.reason).reason}`);
      report.left.push(`restore ${report.table}/_delta_log from a copy; nothing was changed`);
      return;
    }
    const { table } = bench;
    const inventory = await takeInventory(table, table.snapshot);
    if (bench.kind === "newest") await this.mendNewest(table, bench.version, bench.reason, inventory);
    else if (inventory.missing.length > 0) await this.mendMissing(table, inventory);
  }

  /** The commit is made again from the files that it, or a try of it, has left. */
  private async mendNewest(
    table: DeltaTable,
    version: number,
    reason: unknown,
    inventory: Inventory,
  ): Promise<void> {
    const { report } = this;
    report.found.push(`commit ${version} cannot be read: ${tell(reason).reason}`);
    if (inventory.missing.length > 0) {
      report.left.push(...this.missingLines(table, inventory));
      return;
    }
    await this.withStrayRows(table, inventory.strays, [], async (rows, connection) => {
      const [[count]] = (
        rows === undefined ? [[0n]] : await rowsOf(connection, `SELECT count(*) FROM (${rows})`)
      ) as [[bigint]];
      const lost = this.isRaw ? await lostPositions(this.parts, table, rows) : [];
      if (lost.length > 0) {
        report.left.push(
          ...lost,
          `restore ${report.table}/_delta_log/${String(version).padStart(20, "0")}.json from a copy; nothing was changed`,
        );
        return;
      }
      report.done.push(
        count === 0n
          ? `commit ${version} is set aside (a copy stays in _damaged): it held no event that is not elsewhere`
          : `commit ${version} is made again with its ${count} rows (a copy of the old one stays in _damaged)`,
      );
      if (this.dryRun) return;
      if (count === 0n || rows === undefined) await replaceCommit(table);
      else await this.addRows(table, rows, []);
    });
  }

  /** Rows of live files that are gone are looked for in files that compaction has left behind. */
  private async mendMissing(table: DeltaTable, inventory: Inventory): Promise<void> {
    const { report } = this;
    const { missing } = inventory;
    report.found.push(...missing.map((file) => `${file.path} is missing: ${file.rows} rows`));
    const wanted = missing.reduce((sum, { rows }) => sum + rows, 0);
    await this.withStrayRows(table, inventory.strays, missing, async (rows, connection) => {
      const [[count]] = (
        rows === undefined ? [[0n]] : await rowsOf(connection, `SELECT count(*) FROM (${rows})`)
      ) as [[bigint]];
      if (Number(count) !== wanted || rows === undefined) {
        report.left.push(...this.missingLines(table, inventory));
        return;
      }
      report.done.push(`its ${count} rows were found in files that compaction has left, and are put back`);
      if (!this.dryRun) await this.addRows(table, rows, missing);
    });
  }

  private missingLines(table: DeltaTable, { missing }: Inventory): string[] {
    return missing.map((file) => {
      const { min, max } = file;
      const range = typeof min.position === "string" ? `, positions ${min.position} to ${max.position}` : "";
      return `put ${table.root}/${file.path} (${file.rows} rows${range}) back from a copy of the lake; nothing was changed`;
    });
  }

  /**
   * Rows of stray files that are in no live file: beyond the table's positions, or up to them when files are missing.
   * Runs `use` with SQL that yields them, undefined when there is no such file.
   */
  private async withStrayRows(
    table: DeltaTable,
    strays: readonly string[],
    missing: Inventory["missing"],
    use: (rows: string | undefined, connection: DuckDBConnection) => Promise<void>,
  ): Promise<void> {
    const { snapshot, store } = table;
    const { duck } = this.parts;
    const gone = new Set(missing.map(({ path }) => path));
    const live = snapshot.files.filter(({ path }) => !gone.has(path));
    await store.withLocal(strays, async (lent) => {
      const paths: string[] = [];
      for (const path of lent.map(literal)) if (await this.isReadable(path)) paths.push(path);
      if (paths.length === 0) return duck.with((connection) => use(undefined, connection));
      return withFilesScan(table, snapshot, live, { columns: this.key }, (present) =>
        duck.with((connection) =>
          use(this.strayRows(table, paths, missing, live.length === 0 ? undefined : present), connection),
        ),
      );
    });
  }

  private strayRows(
    { snapshot }: DeltaTable,
    paths: readonly string[],
    missing: Inventory["missing"],
    live: string | undefined,
  ): string {
    const names = snapshot.columns.map(({ name }) => name);
    const key = this.key.join(", ");
    const present = live === undefined ? "" : `ANTI JOIN (${live}) USING (${key})`;
    const progress = progressOf(snapshot);
    const known = [...progress].map(([track, position]) => {
      const { stream, partition } = partsOf(track);
      return `(stream = ${literal(stream)} AND partition = ${literal(partition)} AND position <= ${literal(position)})`;
    });
    const old = known.length === 0 ? "false" : `(${known.join(" OR ")})`;
    const where = this.isRaw ? (missing.length > 0 ? old : `NOT ${old}`) : "true";
    return `SELECT ${names.join(", ")}
      FROM ${rowsOfFiles(snapshot, paths)} ${present}
      WHERE ${where} QUALIFY row_number() OVER (PARTITION BY ${key}) = 1`;
  }

  private async isReadable(path: string): Promise<boolean> {
    const { duck } = this.parts;
    try {
      await duck.with((connection) => rowsOf(connection, `SELECT count(*) FROM parquet_metadata(${path})`));
      return true;
    } catch {
      return false;
    }
  }

  /** One commit: the rows as a new file, the positions they reach, and the files they stand for removed. */
  private async addRows(table: DeltaTable, rows: string, instead: Inventory["missing"]): Promise<void> {
    await this.parts.duck.with((connection) =>
      Staging.run(table, async (staging) => {
        const { snapshot } = table;
        const file = await stageFile(staging, connection, rows, {
          // What stands for files that are gone is no new row.
          dataChange: instead.length === 0,
        });
        const from = progressOf(snapshot);
        const to = new Map<string, string>();
        if (this.isRaw) {
          const path = literal(file.localPath);
          const reached = await rowsOf(
            connection,
            `SELECT stream, partition, max(position) FROM read_parquet(${path}) GROUP BY ALL`,
          );
          for (const [stream, partition, position] of reached) {
            const track = trackOf(String(stream), String(partition));
            if (String(position) > (from.get(track) ?? "")) to.set(track, String(position));
          }
        }
        await staging.publish([file]);
        const { actions, expect } = setProgress(from, to);
        const now = Date.now();
        await staging.commit({
          operation: "REPAIR",
          actions: [
            ...instead.map(({ add }) => ({ remove: removeOf(add, now, false) })),
            { add: file.add },
            ...actions,
          ],
          expect,
          basedOn: snapshot.version,
          serializable: true,
        });
      }),
    );
  }
}
