import { createReadStream, existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { cpus, totalmem } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { PutObjectCommand } from "@aws-sdk/client-s3";
import { DuckDBInstance } from "@duckdb/node-api";
import pino from "pino";
import { Registry } from "prom-client";
import { loadConfig } from "../services/base/config.js";
import { literal } from "../services/base/duckdb.js";
import { packageRoot } from "../services/base/paths.js";
import { Bootstrap } from "../services/bulk/bootstrap/bootstrap.js";
import { openContext } from "../services/ingest/ingest.js";
import { openStore } from "../services/main/compose/lake-store.js";
import { textTable } from "../services/main/terminal/text-table.js";
import { inspect } from "../services/sources/inspect.js";
import { mappingShape } from "../services/sources/mapping.js";
import { Sources } from "../services/sources/sources.js";
import { DeltaTable } from "../services/table/delta-table.js";
import { credentials, startS3 } from "../test/servers/s3.js";
import { runSparkScript } from "../test/support/foreign.js";
import { newBucket, s3Client } from "../test/support/s3-lake.js";
import { exportColumns, generateExport, ISSUE } from "./bulk-export.js";
import { benchFolder } from "./processes.js";

/**
 * Rows a second of an export that a job lands in raw and refined, and the ratio to what plain DuckDB needs in this very
 * run to read the export and write the same columns twice, sorted. Absolute figures tell of the machine as much as of
 * the program: compare ratios.
 *
 * `--s3`: export and lake lie on an S3 server of this command's own. `--spark`: Spark (local[2]) lands the same export in
 * two Delta tables in the same run. Its raw holds what ours does of a row, the payload as JSON of a struct: Spark's own
 * way, where protobuf would cost it a package that is not its core's. Its refined table is the export's columns of the
 * newest row of each key. Both are compressed as ours; its start is not counted.
 */
const { values: options } = parseArgs({
  options: {
    rows: { type: "string", default: "2000000" },
    "file-rows": { type: "string", default: "500000" },
    format: { type: "string", default: "parquet" },
    /** Of NDJSON: `none`, `gzip` or `zstd`. */
    compression: { type: "string", default: "none" },
    tenants: { type: "string", default: "50" },
    "event-bytes": { type: "string", default: "700" },
    /** `key`: in the order of tenants and keys, as a database exports its tables; `random`. */
    order: { type: "string", default: "key" },
    /** Keeps the export there, or takes what is there. */
    folder: { type: "string" },
    json: { type: "boolean", default: false },
    s3: { type: "boolean", default: false },
    spark: { type: "boolean", default: false },
  },
});
if (options.spark && !options.s3) {
  // The comparison is of both on S3; in folders Spark was not seen to come to an end.
  console.error("--spark: expected --s3 beside it");
  process.exit(1);
}
const total = Number(options.rows);
const fileRows = Number(options["file-rows"]);
const isParquet = options.format === "parquet";
const compression =
  options.compression === "gzip" || options.compression === "zstd" ? options.compression : "none";
const root = benchFolder("bulk");
const exports = options.folder ?? join(root, "exports");
const QUARTERS = 4;

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

/** Processes right below this one. */
const below = (): string[] =>
  readdirSync("/proc/self/task").flatMap((task) => {
    try {
      return readFileSync(`/proc/self/task/${task}/children`, "utf8").split(" ").filter(Boolean);
    } catch {
      return [];
    }
  });

const residentOf = (pid: string): number => {
  try {
    return Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0) * 1024;
  } catch {
    return 0;
  }
};

/** The most that this process, and those which it has started since, hold in each quarter of the rows. */
class Memory {
  readonly quarters = Array.from({ length: QUARTERS }, () => ({ own: 0, children: 0 }));
  private readonly others = new Set(existsSync("/proc/self/task") ? below() : []);
  private readonly timer = setInterval(() => this.look(), 50);
  private rows = 0;

  landed(rows: number): void {
    this.rows += rows;
  }

  end(): void {
    clearInterval(this.timer);
  }

  private look(): void {
    if (!existsSync("/proc/self/task")) return;
    const quarter = this.quarters[Math.min(QUARTERS - 1, Math.floor((QUARTERS * this.rows) / total))]!;
    const started = below().filter((pid) => !this.others.has(pid));
    quarter.own = Math.max(quarter.own, residentOf("self"));
    const children = started.reduce((sum, pid) => sum + residentOf(pid), 0);
    quarter.children = Math.max(quarter.children, children);
  }
}

/** Where export and lake lie. */
interface Where {
  readonly url: string;
  readonly settings: object;
  readonly endpoint?: string | undefined;
  /** As Spark calls it. */
  readonly spark: { readonly source: string; readonly out: string };
  stop(): Promise<void>;
}

async function place(): Promise<Where> {
  if (!options.s3) {
    const spark = { source: exports, out: join(root, "spark") };
    return { url: exports, settings: {}, spark, stop: () => Promise.resolve() };
  }
  const server = await startS3("versitygw", join(root, "s3"));
  const { endpoint } = server;
  const bucket = await newBucket(endpoint);
  const client = s3Client(endpoint);
  for (const name of readdirSync(exports).sort()) {
    const path = join(exports, name);
    const ContentLength = statSync(path).size;
    const Body = createReadStream(path);
    await client.send(new PutObjectCommand({ Bucket: bucket, Key: `exports/${name}`, Body, ContentLength }));
  }
  client.destroy();
  const reached = { endpoint, region: "us-east-1", forcePathStyle: true };
  const url = `s3://${bucket}/exports`;
  return {
    url,
    endpoint,
    settings: { storage: { kind: "s3", s3: { ...reached, bucket, prefix: "lake" } }, reached },
    spark: { source: `s3a://${bucket}/exports`, out: `s3a://${bucket}/spark` },
    stop: () => server.stop(),
  };
}

async function bootstrap({ url, settings }: Where) {
  const data = join(root, "data");
  const { reached, ...storage } = settings as { reached?: object };
  const config = loadConfig({ data, bulk: { sources: { exports: { url, ...reached } } }, ...storage });
  const store = await openStore(config, "bench");
  const context = await openContext({
    config,
    store,
    log: pino({ level: "silent" }),
    registry: new Registry(),
  });
  const sources = await Sources.open(config, join(root, "scratch"));
  const place = sources.at("exports");
  const manifest = await inspect(place, {}, config.bulk);
  const memory = new Memory();
  const before = cpuSeconds();
  const started = performance.now();
  let chunks = 0;
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
      landed: ({ rows }) => {
        chunks++;
        memory.landed(rows);
      },
      reject: (_, rejects) => Promise.reject(new Error(rejects[0]!.message)),
      pace: () => Promise.resolve(),
      calm: () => Promise.resolve(),
      behind: () => Promise.resolve(),
      signal: new AbortController().signal,
    },
  );
  const seconds = (performance.now() - started) / 1000;
  memory.end();
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
  const { quarters } = memory;
  return {
    seconds,
    own: after.own - before.own,
    children: after.children - before.children,
    quarters,
    chunks,
    counts,
  };
}

/** What Spark needs for the same, started for it. */
async function spark({ endpoint, spark: { source, out } }: Where) {
  const types = exportColumns().map(([name, type]) => `\`${name}\` ${sparkType(type)}`);
  const schema = ["customer STRING", "id STRING", "rev BIGINT", ...types].join(", ");
  const told = await runSparkScript(
    join(packageRoot, "bench", "bulk_spark.py"),
    [source, options.format, schema, out, ...(endpoint === undefined ? [] : [endpoint])],
    { ...credentials, AWS_REGION: "us-east-1", TEST_SPARK_FOLDER: join(root, "spark-temporary") },
  );
  return JSON.parse(told.trim().split("\n").at(-1)!) as Record<"seconds" | "cpu" | "raw" | "refined", number>;
}

function sparkType(type: string): string {
  if (type.endsWith("[]")) return `ARRAY<${sparkType(type.slice(0, -2))}>`;
  const [, key, value] = /^MAP\((.+), (.+)\)$/.exec(type) ?? [];
  if (key !== undefined) return `MAP<${sparkType(key)}, ${sparkType(value!)}>`;
  const names: Readonly<Record<string, string>> = {
    VARCHAR: "STRING",
    "TIMESTAMP WITH TIME ZONE": "TIMESTAMP",
    INTEGER: "INT",
  };
  return names[type] ?? type;
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
  return { seconds, cpu };
}

if (!existsSync(exports)) {
  await generateExport({
    folder: exports,
    rows: total,
    fileRows,
    format: isParquet ? "parquet" : "ndjson",
    compression,
    tenants: Number(options.tenants),
    eventBytes: Number(options["event-bytes"]),
    order: options.order === "random" ? "random" : "key",
  });
}
const bytes = readdirSync(exports).reduce((sum, name) => sum + statSync(join(exports, name)).size, 0);
const where = await place();
const ours = await bootstrap(where);
const theirs = await plain();
const sparks = options.spark ? await spark(where) : undefined;
await where.stop();
const perRow = (seconds: number) => ((seconds * 1e6) / total).toFixed(1);
const rate = (seconds: number) => Math.round(total / seconds);
if (options.json) {
  const ratio = theirs.seconds / ours.seconds;
  console.log(JSON.stringify({ rows: total, bytes, ours, theirs, ratio, spark: sparks }));
} else {
  console.log(`${cpus().length} cores, ${Math.round(totalmem() / 1e9)} GB, Node ${process.version}`);
  console.log(
    `${total} rows, ${Math.round(bytes / 1e6)} MB of ${options.format}, compression ${isParquet ? "its own" : compression}; ${ours.chunks} chunks; ${JSON.stringify(ours.counts)}\n`,
  );
  const rows = [
    [
      "raw + refined",
      rate(ours.seconds),
      `${perRow(ours.own + ours.children)}: commits ${perRow(ours.own)}, chunks ${perRow(ours.children)}`,
    ],
    ["DuckDB, two sorted copies", rate(theirs.seconds), perRow(theirs.cpu)],
  ];
  if (sparks !== undefined) rows.push(["Spark, raw + refined", rate(sparks.seconds), perRow(sparks.cpu)]);
  console.log(textTable(["", "rows/s", "CPU µs/row"], rows));
  const megabytes = ours.quarters.map(
    ({ own, children }) => `${Math.round(own / 1e6)} + ${Math.round(children / 1e6)}`,
  );
  console.log(`\nmost memory in each quarter of the rows, MB (commits + chunks): ${megabytes.join(", ")}`);
  console.log(`ratio to DuckDB: ${(theirs.seconds / ours.seconds).toFixed(2)}`);
  if (sparks !== undefined)
    console.log(`ratio to Spark: ${(sparks.seconds / ours.seconds).toFixed(2)} (goal ≥ 2)`);
}
// Engines and clients may keep it.
process.exit();
