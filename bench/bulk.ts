import { existsSync, mkdirSync, readdirSync, readFileSync, statSync } from "node:fs";
import { cpus, totalmem } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { DuckDBInstance } from "@duckdb/node-api";
import pino from "pino";
import { Registry } from "prom-client";
import { loadConfig } from "../services/base/config.js";
import { Duck, literal, rowsOf } from "../services/base/duckdb.js";
import { layout } from "../services/base/paths.js";
import { Bootstrap } from "../services/bulk/bootstrap/bootstrap.js";
import { TextColumn } from "../services/columns/column-writers.js";
import { Feed } from "../services/columns/feed.js";
import { Envelope } from "../services/contracts/envelope.js";
import { PayloadDecoder } from "../services/contracts/payload-columns.js";
import { ProtoRegistry } from "../services/contracts/registry.js";
import { openContext } from "../services/ingest/ingest.js";
import { textTable } from "../services/main/terminal/text-table.js";
import { TrackerWorkload } from "../services/main/workload/generator.js";
import { inspect } from "../services/sources/inspect.js";
import { mappingShape } from "../services/sources/mapping.js";
import { Sources } from "../services/sources/sources.js";
import { FileStore } from "../services/storage/file-store.js";
import { DeltaTable } from "../services/table/delta-table.js";
import { benchFolder } from "./processes.js";

/**
 * Rows a second of an export that a job lands in raw and refined, and the ratio to what plain DuckDB needs in this very
 * run to read the export and write the same columns twice, sorted. Absolute figures tell of the machine as much as of
 * the program: compare ratios.
 */
const { values: options } = parseArgs({
  options: {
    rows: { type: "string", default: "2000000" },
    "file-rows": { type: "string", default: "500000" },
    format: { type: "string", default: "parquet" },
    tenants: { type: "string", default: "50" },
    "event-bytes": { type: "string", default: "700" },
    /** `key`: in the order of tenants and keys, as a database exports its tables; `random`. */
    order: { type: "string", default: "key" },
    /** Keeps the export there, or takes what is there. */
    folder: { type: "string" },
    json: { type: "boolean", default: false },
  },
});
const ISSUE = "tracker.v1.Issue";
const BASE_ROWS = 100_000;
const total = Number(options.rows);
const fileRows = Number(options["file-rows"]);
const isParquet = options.format === "parquet";
const root = benchFolder("bulk");
const exports = options.folder ?? join(root, "exports");
const { protoDirs } = loadConfig();

/** Issues as a product's database would export them: payload columns beside customer, id and revision. */
async function generate(): Promise<void> {
  const registry = ProtoRegistry.load(protoDirs);
  const decoder = new PayloadDecoder(registry.entityType(ISSUE)!);
  const events: Buffer[] = [];
  const envelope = new Envelope();
  const workload = { seed: 7, tenants: 50, entities: 1e6, events: BASE_ROWS * 2 };
  const made = new TrackerWorkload(registry, { ...workload, eventBytes: Number(options["event-bytes"]) });
  for (const event of made.events()) {
    envelope.read(event, 0, event.length);
    if (envelope.entityType() === ISSUE && envelope.payloadStart >= 0) events.push(event);
    if (events.length === BASE_ROWS) break;
  }
  const duck = await Duck.create({ memoryBytes: 2 * 1024 ** 3 });
  const connection = await duck.connect();
  const id = new TextColumn();
  const feed = Feed.register(connection, "base_events", [
    { name: "entity", writer: id, nullable: false },
    ...decoder.columns,
  ]);
  feed.use({
    rows: events.length,
    fill: (start, rows) => {
      for (let row = 0; row < rows; row++) {
        const event = events[start + row]!;
        envelope.read(event, 0, event.length);
        id.set(row, event, envelope.idStart, envelope.idEnd);
        decoder.decode(event, envelope.payloadStart, envelope.payloadEnd, row);
      }
    },
  });
  await connection.run(
    "CREATE TEMP TABLE base AS SELECT row_number() OVER () - 1 AS n, * FROM base_events()",
  );
  mkdirSync(exports, { recursive: true });
  const perTenant = Math.ceil(total / Number(options.tenants));
  for (let first = 0, file = 0; first < total; first += fileRows, file++) {
    const rows = Math.min(fileRows, total - first);
    // A permutation of the row numbers: multiplied by a prime that does not divide their count.
    const number = options.order === "key" ? "i" : `((i::HUGEINT * 1000003) % ${total})::BIGINT`;
    const select = `SELECT printf('tenant-%04d', number // ${perTenant}) AS customer, printf('%s-%09d', project_key, number) AS id,
        1 + number % 7 AS rev, b.* EXCLUDE (n, entity)
      FROM (SELECT i, ${number} AS number FROM range(${first}, ${first + rows}) t(i)) JOIN base b ON b.n = number % ${BASE_ROWS}
      ORDER BY ${options.order === "key" ? "customer, id" : "i"}`;
    const path = join(exports, `part-${String(file).padStart(4, "0")}.${isParquet ? "parquet" : "ndjson"}`);
    await connection.run(
      `COPY (${select}) TO ${literal(path)} (${isParquet ? "FORMAT parquet, COMPRESSION zstd" : "FORMAT json"})`,
    );
  }
  connection.closeSync();
  duck.close();
}

/** CPU seconds of this process, and of its children that have ended; 0 where there is no /proc. */
function cpuSeconds(): { readonly own: number; readonly children: number } {
  try {
    const fields = readFileSync("/proc/self/stat", "utf8")
      .replace(/^.*\) /, "")
      .split(" ")
      .map(Number);
    return { own: (fields[11]! + fields[12]!) / 100, children: (fields[13]! + fields[14]!) / 100 };
  } catch {
    return { own: 0, children: 0 };
  }
}

/** Resident bytes of this process and those below it. */
function resident(): { readonly own: number; readonly children: number } {
  const of = (pid: number | "self") => {
    try {
      return Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0) * 1024;
    } catch {
      return 0;
    }
  };
  let children = 0;
  try {
    for (const pid of readFileSync("/proc/self/task/self/children", "utf8").split(" ").filter(Boolean))
      children += of(Number(pid));
  } catch {
    for (const pid of readFileSync(`/proc/self/task/${process.pid}/children`, "utf8")
      .split(" ")
      .filter(Boolean))
      children += of(Number(pid));
  }
  return { own: of("self"), children };
}

async function bootstrap() {
  const data = join(root, "data");
  const config = loadConfig({ data, bulk: { sources: { exports } } });
  const { lake, staging } = layout(data);
  const store = await FileStore.open({ folder: lake, staging });
  const context = await openContext({
    config,
    store,
    log: pino({ level: "silent" }),
    registry: new Registry(),
  });
  const sources = await Sources.open(config, join(root, "scratch"));
  const place = sources.at("exports");
  const manifest = await inspect(place, {}, config.bulk);
  const peak = { own: 0, children: 0 };
  const watch = setInterval(() => {
    const now = resident();
    peak.own = Math.max(peak.own, now.own);
    peak.children = Math.max(peak.children, now.children);
  }, 50);
  const before = cpuSeconds();
  const started = performance.now();
  const chunks: number[] = [];
  await Bootstrap.run(
    context,
    {
      job: "bench",
      entityType: ISSUE,
      tenant: undefined,
      mapping: mappingShape.parse({
        tenant: "customer",
        entityId: "id",
        version: "rev",
        occurredAt: "updated_at",
      }),
      place,
      manifest,
      limits: config.bulk,
    },
    {
      landed: ({ rows }) => chunks.push(rows),
      reject: (_, rejects) => Promise.reject(new Error(rejects[0]!.message)),
      pace: () => Promise.resolve(),
      signal: new AbortController().signal,
    },
  );
  const seconds = (performance.now() - started) / 1000;
  clearInterval(watch);
  const after = cpuSeconds();
  const counts: Record<string, number> = {};
  for (const table of [`raw/${ISSUE}`, "refined/tracker/issues"]) {
    const opened = await DeltaTable.open(store, table, context.duck, context.tableOptions);
    const files = opened!.snapshot.files;
    counts[table] = files.reduce((sum, file) => sum + file.rows - file.maskedRows, 0);
    if ((await context.planner.plan(opened!, await context.duck.connect())) !== undefined)
      console.error(`${table}: a compaction is planned`);
  }
  sources.close();
  context.duck.close();
  return {
    seconds,
    own: after.own - before.own,
    children: after.children - before.children,
    peak,
    chunks: chunks.length,
    counts,
  };
}

/** What DuckDB needs by itself, on all cores. */
async function plain(): Promise<{ readonly seconds: number; readonly cpu: number }> {
  const instance = await DuckDBInstance.create(":memory:", {
    memory_limit: "2GiB",
    temp_directory: join(root, "spill"),
  });
  const connection = await instance.connect();
  const before = cpuSeconds().own;
  const started = performance.now();
  for (const name of readdirSync(exports).sort()) {
    const path = literal(join(exports, name));
    const from = isParquet
      ? `read_parquet(${path})`
      : `read_json(${path}, format='newline_delimited', maximum_object_size=16777216)`;
    for (const table of ["raw", "refined"]) {
      await connection.run(
        `COPY (SELECT * FROM ${from} ORDER BY customer, id) TO ${literal(join(root, `${table}.parquet`))}
         (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1, DICTIONARY_SIZE_LIMIT 2000)`,
      );
    }
  }
  const seconds = (performance.now() - started) / 1000;
  const cpu = cpuSeconds().own - before;
  await rowsOf(connection, "SELECT 1");
  return { seconds, cpu };
}

if (!existsSync(exports)) await generate();
const bytes = readdirSync(exports).reduce((sum, name) => sum + statSync(join(exports, name)).size, 0);
const ours = await bootstrap();
const theirs = await plain();
const perRow = (seconds: number) => ((seconds * 1e6) / total).toFixed(1);
const rate = (seconds: number) => Math.round(total / seconds);
if (options.json) {
  console.log(JSON.stringify({ rows: total, bytes, ours, theirs, ratio: theirs.seconds / ours.seconds }));
} else {
  console.log(`${cpus().length} cores, ${Math.round(totalmem() / 1e9)} GB, Node ${process.version}`);
  console.log(
    `${total} rows, ${Math.round(bytes / 1e6)} MB of ${options.format}; ${ours.chunks} chunks; ${JSON.stringify(ours.counts)}\n`,
  );
  console.log(
    textTable(
      ["", "rows/s", "CPU µs/row", ""],
      [
        [
          "raw + refined",
          rate(ours.seconds),
          `commits ${perRow(ours.own)}, chunks ${perRow(ours.children)}`,
          `peak memory ${Math.round(ours.peak.own / 1e6)} MB + ${Math.round(ours.peak.children / 1e6)} MB`,
        ],
        ["DuckDB, two sorted copies", rate(theirs.seconds), perRow(theirs.cpu), ""],
      ],
    ),
  );
  console.log(`\nratio: ${(theirs.seconds / ours.seconds).toFixed(2)}`);
}
