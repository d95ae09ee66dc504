import { existsSync } from "node:fs";
import type { Command } from "commander";
import type { Config } from "../../base/config.js";
import { Duck, literal, rowsOf } from "../../base/duckdb.js";
import { TributaryError } from "../../base/errors.js";
import { layout } from "../../base/paths.js";
import { type Lend, withAll } from "../../base/with-all.js";
import { CONSUMER } from "../../ingest/pipeline.js";
import type { ObjectStore } from "../../storage/object-store.js";
import type { Checkpoint } from "../../stream/change-stream.js";
import { EmbeddedLogReader } from "../../stream/embedded/reader.js";
import { DeltaTable } from "../../table/delta-table.js";
import { type ScanOptions, withScan } from "../../table/scan.js";
import { type Verification, verifyTable } from "../../table/verify.js";
import { withStore } from "../compose/runtime.js";
import { textTable } from "../terminal/text-table.js";
import { configOf, type DataOptions, withData } from "./options.js";
import { explain, LakeState } from "./table-state.js";

const GiB = 1024 ** 3;
const PROGRESS = /^tributary\.pos\.(.+)\.([^.]+)$/;

export function addTableCommands(program: Command): void {
  const group = program.command("table").description("the lake's Delta tables");
  withData(group.command("ls"))
    .description("list all tables: raw, refined, dead letters; and how each is doing")
    .action(async (options: DataOptions) => {
      await withTables(options, async (tables, store) => list(tables, await LakeState.read(store), options));
    });
  withData(group.command("show").argument("<table>", "e.g. scm.files or raw/scm.v1.File"))
    .description("columns, properties, positions")
    .action(async (name: string, options: DataOptions) => {
      await withTables(options, async (tables) => show(name, pick(tables, name), options.json === true));
    });
  withData(group.command("verify").argument("[table]", "default: all"))
    .description("check files, vectors, unique keys and gapless positions; exit code 1 on a fault")
    .action(async (name: string | undefined, options: DataOptions) => {
      // Before the tables are looked at: what it names is in their snapshots then, whatever lands meanwhile.
      const settled = await settledPositions(configOf(options));
      await withTables(options, async (tables) => {
        const chosen = name === undefined ? tables : new Map([[name, pick(tables, name)]]);
        const results: Record<string, Verification> = {};
        const problems: string[] = [];
        for (const [each, table] of chosen) {
          if (table instanceof TributaryError) problems.push(`${each}: ${table.message}`);
          else results[each] = await verifyTable(table, uniqueKey(each));
        }
        if (name === undefined) problems.push(...(await positionProblems(readable(tables), settled)));
        report(results, problems, options.json === true);
      });
    });
}

/** Every table of the lake by name; one that cannot be opened is the reason why, and hides no other. */
type Tables = ReadonlyMap<string, DeltaTable | TributaryError>;

const readable = (tables: Tables): Map<string, DeltaTable> =>
  new Map([...tables].filter((entry): entry is [string, DeltaTable] => entry[1] instanceof DeltaTable));

function list(tables: Tables, state: LakeState, { json }: DataOptions): void {
  const names = [...new Set([...tables.keys(), ...state.names])];
  const rows = names.map((name) => {
    const table = tables.get(name);
    const sizes = table instanceof DeltaTable ? sizesOf(table) : undefined;
    const failure = table instanceof TributaryError ? table : undefined;
    return { table: name, ...sizes, ...state.of(name, failure) };
  });
  if (json) {
    const ingest = { writtenAt: state.writtenAt ?? null, stale: state.isStale() };
    console.log(JSON.stringify({ tables: rows, ingest }));
    return;
  }
  const cells = rows.map((r) => [r.table, r.version, r.files, r.rows, r.maskedRows, r.bytes, r.state]);
  console.log(textTable(["table", "version", "files", "rows", "masked", "bytes", "state"], cells));
  for (const row of rows) if (row.state !== "ok") console.log(`\n${explain(row.table, row)}`);
  if (state.isStale()) console.log(`\ningest does not run: these states are of ${state.writtenAt}`);
}

function sizesOf(table: DeltaTable) {
  const { version, files } = table.snapshot;
  const sum = (of: (file: (typeof files)[number]) => number) =>
    files.reduce((total, file) => total + of(file), 0);
  return {
    version,
    files: files.length,
    rows: sum((file) => file.rows - file.maskedRows),
    maskedRows: sum((file) => file.maskedRows),
    bytes: sum((file) => file.bytes),
  };
}

async function show(name: string, table: DeltaTable, json: boolean): Promise<void> {
  const { snapshot } = table;
  const positions = [...snapshot.domains].flatMap(([domain, configuration]) => {
    const match = PROGRESS.exec(domain);
    return match === null ? [] : [{ stream: match[1]!, partition: match[2]!, ...JSON.parse(configuration) }];
  });
  if (json) {
    const { version, columns, description } = snapshot;
    const properties = Object.fromEntries(snapshot.properties);
    console.log(JSON.stringify({ table: name, version, description, columns, properties, positions }));
    return;
  }
  console.log(
    `${name}, version ${snapshot.version}${snapshot.description ? `: ${snapshot.description}` : ""}\n`,
  );
  console.log(
    textTable(
      ["column", "type", "description"],
      snapshot.columns.map((c) => [c.name, c.type, c.description ?? ""]),
    ),
  );
  console.log(`\n${textTable(["property", "value"], [...snapshot.properties])}`);
  if (positions.length > 0) {
    console.log(
      `\n${textTable(
        ["stream", "partition", "position"],
        positions.map((p) => [p.stream, p.partition, p.position]),
      )}`,
    );
  }
}

function report(results: Record<string, Verification>, faults: readonly string[], json: boolean): void {
  const problems = [
    ...Object.entries(results).flatMap(([name, r]) => r.problems.map((p) => `${name}: ${p}`)),
    ...faults,
  ];
  if (json) console.log(JSON.stringify({ ok: problems.length === 0, tables: results, problems }));
  else {
    const rows = Object.entries(results).map(([name, r]) => [
      name,
      r.version,
      r.files,
      r.rows,
      r.problems.length === 0 ? "ok" : "FAULT",
    ]);
    console.log(textTable(["table", "version", "files", "rows", ""], rows));
    for (const problem of problems) console.log(problem);
  }
  if (problems.length > 0) process.exitCode = 1;
}

interface Settled {
  readonly stream: string;
  readonly done: Checkpoint;
}

/** Positions that every table is done with, by the stream's own record; undefined where there is no stream. */
async function settledPositions(config: Config): Promise<Settled | undefined> {
  const folder = layout(config.data).stream;
  if (!existsSync(folder)) return undefined;
  const reader = await EmbeddedLogReader.open({ folder });
  try {
    return { stream: reader.name, done: await reader.lowWater(CONSUMER) };
  } finally {
    await reader.close();
  }
}

/**
 * I2 over the whole lake: each position of a partition stands once in raw (or among the unreadable events), without
 * gaps from the first to the last that is settled. Beyond that, tables land each at its own pace.
 */
async function positionProblems(
  tables: ReadonlyMap<string, DeltaTable>,
  settled: Settled | undefined,
): Promise<string[]> {
  const columns = ["stream", "partition", "position"];
  const parts: Lend<string>[] = [];
  for (const [name, table] of tables) {
    const add = (options: ScanOptions) => parts.push((use) => withScan(table, table.snapshot, options, use));
    if (name.startsWith("raw/")) add({ columns });
    if (name === "dead_letters") add({ columns, where: "model = ''" });
  }
  const [duck] = [...tables.values()].map((table) => table.duck);
  if (duck === undefined || parts.length === 0) return [];
  const due =
    settled === undefined
      ? "true"
      : [
          `stream <> ${literal(settled.stream)}`,
          ...[...settled.done].map(
            ([partition, position]) =>
              `(partition = ${literal(partition)} AND position <= ${literal(position)})`,
          ),
        ].join(" OR ");
  const rows = await withAll(parts, (scans) =>
    duck.with((connection) =>
      rowsOf(
        connection,
        `SELECT stream, partition, count(*) - count(DISTINCT position),
         max(position) FILTER (due)::BIGINT - min(position) FILTER (due)::BIGINT + 1
           - count(DISTINCT position) FILTER (due)
       FROM (SELECT *, ${due} AS due FROM (${scans.map((part) => `(${part})`).join(" UNION ALL ")})) GROUP BY ALL ORDER BY ALL`,
      ),
    ),
  );
  return rows.flatMap(([stream, partition, doubles, missing]) => [
    ...(Number(doubles) === 0 ? [] : [`${stream}/${partition}: ${doubles} positions stand twice`]),
    ...(Number(missing ?? 0) === 0 ? [] : [`${stream}/${partition}: ${missing} positions are missing`]),
  ]);
}

function uniqueKey(name: string): readonly string[] {
  const place = ["stream", "partition", "position"];
  if (name.startsWith("raw/")) return place;
  if (name === "imports") return ["entity_type", ...place];
  return name === "dead_letters" ? ["model", ...place] : ["tenant_id", "entity_id"];
}

/** Errors: TRB-TABLE-NOT-FOUND; where the table is damaged, what it was found to be. */
function pick(tables: Tables, name: string): DeltaTable {
  const table = tables.get(name);
  if (table === undefined)
    throw new TributaryError("TRB-TABLE-NOT-FOUND", `no table "${name}"; see \`tributary table ls\``);
  if (table instanceof TributaryError) throw table;
  return table;
}

async function withTables<T>(
  options: DataOptions,
  use: (tables: Tables, store: ObjectStore) => Promise<T>,
): Promise<T> {
  const config = configOf(options);
  return withStore(config, async (store) => {
    const duck = await Duck.create({ memoryBytes: GiB });
    try {
      const tables = new Map<string, DeltaTable | TributaryError>();
      for (const [name, root] of await tableRoots(store)) {
        const table = await openTable(store, root, duck, config);
        if (table !== undefined) tables.set(name, table);
      }
      return await use(tables, store);
    } finally {
      duck.close();
    }
  });
}

async function openTable(
  store: ObjectStore,
  root: string,
  duck: Duck,
  config: Config,
): Promise<DeltaTable | TributaryError | undefined> {
  try {
    return await DeltaTable.open(store, root, duck, { checkpointEvery: config.table.checkpointEvery });
  } catch (cause) {
    if (cause instanceof TributaryError) return cause;
    return new TributaryError("TRB-TABLE-CORRUPT", "its log cannot be read", { cause });
  }
}

/** Name → root of every table: "scm.files", "raw/scm.v1.File", "dead_letters", "imports". */
async function tableRoots(store: ObjectStore): Promise<Map<string, string>> {
  const roots = new Map<string, string>();
  for await (const { key } of store.list("")) {
    const match = /^(dead_letters|imports|raw\/[^/]+|refined\/([^/]+)\/([^/]+))\/_delta_log\//.exec(key);
    if (match !== null) roots.set(match[2] === undefined ? match[1]! : `${match[2]}.${match[3]}`, match[1]!);
  }
  return roots;
}
