import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import type { DuckDBConnection } from "@duckdb/node-api";
import { Duck } from "../services/base/duckdb.js";
import { slotsOfRange } from "../services/base/slots.js";
import { slotIn, slotsFor } from "../services/contracts/slot.js";
import { textTable } from "../services/main/terminal/text-table.js";
import { FileStore } from "../services/storage/file-store.js";
import { compactUpserted } from "../services/table/compact.js";
import { CompactionPlanner } from "../services/table/compaction-plan.js";
import type { TableSpec } from "../services/table/definition.js";
import { DeltaTable } from "../services/table/delta-table.js";
import { EntityKeys } from "../services/table/entity-keys.js";
import { CONTENT_LO, FLAGS, ROW, VERSION_LO, WORDS } from "../services/table/order.js";
import type { RowSource } from "../services/table/row-source.js";
import { EVERY_SLOT, holds, type Slots } from "../services/table/slot-ranges.js";
import { PARTITION_COLUMN } from "../services/table/state.js";
import { UpsertWriter } from "../services/table/upsert.js";
import { benchFolder } from "./processes.js";

/**
 * Upserts into one table by 1, 2 and 4 processes, each on slots of its own, with compaction in one of them, and by two
 * on the same slots. Tells rows a second over all, how often a writer was overtaken and how often a batch had to be done
 * anew, by 1,000 commits, and the longest that one upsert took. Files are synced, as always.
 */
const TYPE = "bench.v1.Row";
const TENANT = Buffer.from("acme");
const MiB = 1024 * 1024;

interface Order {
  readonly folder: string;
  readonly root: string;
  readonly index: number;
  readonly claim: { readonly index: number; readonly count: number };
  readonly keys: number;
  readonly rows: number;
  readonly seconds: number;
}

interface Report {
  readonly commits: number;
  readonly rows: number;
  readonly overtaken: number;
  readonly redone: number;
  readonly compactions: number;
  readonly loads: number;
  readonly longestMs: number;
  readonly cpuSeconds: number;
}

const SPEC: TableSpec = {
  columns: [
    { name: "tenant_id", type: "string", nullable: true },
    { name: "entity_id", type: "string", nullable: true },
    { name: "value", type: "string", nullable: true },
    { name: "amount", type: "long", nullable: true },
    { name: "_tributary_version", type: "long", nullable: true },
    { name: "_tributary_operation", type: "byte", nullable: true },
    { name: "_tributary_hash", type: "long", nullable: true },
    { name: "_tributary_occurred_at", type: "timestamp", nullable: true },
    { name: PARTITION_COLUMN, type: "string", nullable: true },
  ],
  partitionColumns: [PARTITION_COLUMN],
  properties: { "delta.enableDeletionVectors": "true", "delta.dataSkippingStatsColumns": "tenant_id" },
  protocol: {
    minReaderVersion: 3,
    minWriterVersion: 7,
    readerFeatures: ["deletionVectors"],
    writerFeatures: ["deletionVectors", "domainMetadata", "tributary.upsert"],
  },
};

/** Ids of entities in these slots. */
function idsIn(slots: Slots, count: number): string[] {
  const type = Buffer.from(TYPE);
  const common = slotsFor(TENANT, 0, TENANT.length, type, 0, type.length);
  const ids: string[] = [];
  for (let n = 0; ids.length < count; n++) {
    const id = Buffer.from(`entity-${n}`);
    if (holds(slots, slotIn(common, id, 0, id.length))) ids.push(id.toString());
  }
  return ids;
}

/** Makes rows of some entities at a version; the engine makes them up, as a model would. */
class Source {
  constructor(
    private readonly connection: DuckDBConnection,
    private readonly keys: EntityKeys,
    private readonly ids: readonly string[],
  ) {}

  async prepare(): Promise<void> {
    await this.connection.run("CREATE TEMP TABLE ids (n INTEGER, id VARCHAR)");
    const appender = await this.connection.createAppender("ids", null, "temp");
    for (const [n, id] of this.ids.entries()) {
      appender.appendInteger(n);
      appender.appendVarchar(id);
      appender.endRow();
    }
    appender.closeSync();
  }

  rows(from: number, count: number, version: number): RowSource {
    const { connection } = this;
    const records = new Uint32Array(count * WORDS);
    for (let ord = 0; ord < count; ord++) {
      const id = Buffer.from(this.ids[from + ord]!);
      this.keys.put(records, ord * WORDS, TENANT, 0, TENANT.length, id, 0, id.length);
      records[ord * WORDS + VERSION_LO] = version;
      records[ord * WORDS + CONTENT_LO] = 1;
      records[ord * WORDS + FLAGS] = 2;
      records[ord * WORDS + ROW] = ord;
    }
    const select = `SELECT n - ${from} AS ord, 'acme' AS tenant_id, id AS entity_id,
      repeat(md5(id || '${version}'), 8) AS value, n::BIGINT AS amount, ${version}::BIGINT AS _tributary_version,
      2::TINYINT AS _tributary_operation, 1::BIGINT AS _tributary_hash, NULL::TIMESTAMPTZ AS _tributary_occurred_at
      FROM ids WHERE n >= ${from} AND n < ${from + count} ORDER BY n`;
    return {
      connection,
      records,
      keys: async () => {
        await connection.run(`CREATE OR REPLACE TEMP TABLE batch AS ${select}`);
        return "batch";
      },
      rows: async (survivors) => {
        const all = survivors.length === count;
        await connection.run(
          `CREATE OR REPLACE TEMP TABLE batch_rows AS SELECT * FROM batch
           ${all ? "" : `WHERE ord IN (${survivors.join(", ")})`} ORDER BY ord`,
        );
        return { relation: "batch_rows", ords: survivors };
      },
      release: async () => undefined,
    };
  }
}

async function work(order: Order): Promise<void> {
  const { folder, root, index, claim, keys: count, rows, seconds } = order;
  const store = await FileStore.open({
    folder: join(folder, "lake"),
    staging: join(folder, "staging", String(index)),
  });
  const duck = await Duck.create({ memoryBytes: 512 * MiB });
  const table = await DeltaTable.openOrCreate(store, root, duck, { checkpointEvery: 50 }, SPEC);
  const keys = new EntityKeys(TYPE);
  const writer = UpsertWriter.for(table, 512 * MiB, keys);
  const connection = await duck.connect();
  const slots = claim.count === 1 ? EVERY_SLOT : [slotsOfRange(claim.index, claim.count)];
  const source = new Source(connection, keys, idsIn(slots, count));
  await source.prepare();
  const planner = new CompactionPlanner(64 * MiB, 16);
  let [commits, overtaken, redone, compactions, longestMs, version] = [0, 0, 0, 0, 0, 1];

  const upsert = async (from: number): Promise<void> => {
    const started = performance.now();
    for (;;) {
      const result = await writer.upsert({
        source: source.rows(from, Math.min(rows, count - from), version),
        from: new Map(),
        to: new Map(),
        slots,
        ready: Promise.resolve(true),
        newest: undefined,
      });
      if (result.kind === "committed") {
        commits++;
        overtaken += result.overtaken;
        break;
      }
      redone++;
      await table.refresh();
    }
    longestMs = Math.max(longestMs, performance.now() - started);
  };
  const merge = async (): Promise<void> => {
    if (!planner.wants(table)) return;
    await duck.with((own) =>
      planner.compact(table, own, async (files) => {
        const { kind } = await compactUpserted(writer, own, files);
        if (kind === "compacted") compactions++;
      }),
    );
  };

  for (let from = 0; from < count; from += rows) await upsert(from);
  process.send!({ ready: true });
  await once(process, "message");
  [commits, overtaken, redone, longestMs] = [0, 0, 0, 0];
  const cpu = process.cpuUsage();
  const until = performance.now() + seconds * 1000;
  let merging: Promise<void> = Promise.resolve();
  let merges = false;
  while (performance.now() < until) {
    version++;
    for (let from = 0; from < count && performance.now() < until; from += rows) {
      await upsert(from);
      // As in ingest: by one of them, beside upserts.
      if (index === 0 && !merges) {
        merges = true;
        merging = merge().finally(() => {
          merges = false;
        });
      }
    }
  }
  await merging;
  const used = process.cpuUsage(cpu);
  const report: Report = {
    commits,
    rows: commits * rows,
    overtaken,
    redone,
    compactions,
    loads: writer.locator.loads,
    longestMs,
    cpuSeconds: (used.user + used.system) / 1e6,
  };
  process.send!({ report });
  await table.settled();
  connection.closeSync();
  duck.close();
  process.disconnect();
}

const children = new Set<ChildProcess>();
process.on("exit", () => {
  for (const child of children) child.kill("SIGKILL");
});

async function message<T>(child: ChildProcess): Promise<T> {
  const [sent] = (await Promise.race([
    once(child, "message"),
    once(child, "exit").then(([code]) => Promise.reject(new Error(`a writer ended (${code})`))),
  ])) as [T];
  return sent;
}

async function round(
  name: string,
  claims: readonly Order["claim"][],
  more: Pick<Order, "keys" | "rows" | "seconds">,
) {
  const folder = benchFolder("writers");
  const writers: ChildProcess[] = [];
  for (const [index, claim] of claims.entries()) {
    const child = fork(fileURLToPath(import.meta.url), ["--worker"]);
    children.add(child);
    writers.push(child);
    child.send({ folder, root: "refined/bench", index, claim, ...more } satisfies Order);
  }
  await Promise.all(writers.map((child) => message(child)));
  await sleep(500);
  const answers = writers.map((child) => message<{ report: Report }>(child));
  for (const child of writers) child.send({ go: true });
  const reports = (await Promise.all(answers)).map(({ report }) => report);
  await Promise.all(writers.map((child) => (child.exitCode === null ? once(child, "exit") : undefined)));
  for (const child of writers) children.delete(child);
  const sum = (of: (report: Report) => number) => reports.reduce((total, one) => total + of(one), 0);
  const commits = sum((one) => one.commits);
  return {
    name,
    rowsPerSecond: sum((one) => one.rows) / more.seconds,
    cpuMicrosPerRow: (sum((one) => one.cpuSeconds) * 1e6) / sum((one) => one.rows),
    cores: sum((one) => one.cpuSeconds) / more.seconds,
    commits,
    overtaken: (sum((one) => one.overtaken) * 1000) / commits,
    redone: (sum((one) => one.redone) * 1000) / commits,
    compactions: sum((one) => one.compactions),
    loads: reports.map((one) => one.loads),
    longestMs: Math.max(...reports.map((one) => one.longestMs)),
  };
}

async function main(): Promise<void> {
  const { values: options } = parseArgs({
    options: {
      keys: { type: "string", default: "200000" },
      rows: { type: "string", default: "10000" },
      seconds: { type: "string", default: "12" },
      rounds: { type: "string", default: "2" },
      json: { type: "boolean", default: false },
    },
  });
  const rows = Number(options.rows);
  const seconds = Number(options.seconds);
  const of = (writers: number) => ({ keys: Math.floor(Number(options.keys) / writers), rows, seconds });
  const own = (count: number) => Array.from({ length: count }, (_, index) => ({ index, count }));
  const all = { index: 0, count: 1 };
  const results: Awaited<ReturnType<typeof round>>[] = [];
  const gains: number[] = [];
  const works: number[] = [];
  for (let turn = 0; turn < Number(options.rounds); turn++) {
    const one = await round("1 writer", [all], of(1));
    const two = await round("2 writers, slots of their own", own(2), of(2));
    gains.push(two.rowsPerSecond / one.rowsPerSecond);
    works.push(two.cpuMicrosPerRow / one.cpuMicrosPerRow);
    results.push(one, two);
  }
  results.push(
    await round("4 writers, slots of their own", own(4), of(4)),
    await round("2 writers of the same entities", [all, all], of(1)),
  );
  if (options.json) {
    console.log(JSON.stringify(results));
    return;
  }
  const cells = results.map((one) => [
    one.name,
    Math.round(one.rowsPerSecond),
    (one.rowsPerSecond / results[0]!.rowsPerSecond).toFixed(2),
    one.cpuMicrosPerRow.toFixed(1),
    one.commits,
    one.overtaken.toFixed(1),
    one.redone.toFixed(1),
    one.cores.toFixed(2),
    one.compactions,
    one.loads.join(" "),
    Math.round(one.longestMs),
  ]);
  const head = ["", "rows/s", "ratio", "CPU µs/row", "commits", "overtaken ‰", "redone ‰"];
  console.log(textTable([...head, "cores", "compactions", "index loads", "longest ms"], cells));
  const shown = (ratios: readonly number[]) => ratios.map((ratio) => ratio.toFixed(2)).join(", ");
  console.log(
    `\nratio of rows/s, 2 writers / 1: ${Math.max(...gains).toFixed(2)} (goal ≥ 1.6); rounds ${shown(gains)}`,
  );
  console.log(
    `ratio of CPU µs a row, 2 writers / 1: ${Math.min(...works).toFixed(2)}; rounds ${shown(works)}`,
  );
  const [first] = results;
  const idle = availableParallelism() / first!.cores;
  console.log(
    `one writer keeps ${first!.cores.toFixed(2)} of ${availableParallelism()} cores busy: more writers can make ${idle.toFixed(2)} times as much at most`,
  );
  const apart = results.filter(({ name }) => name !== results.at(-1)!.name);
  const perThousand = Math.max(...apart.map(({ redone }) => redone));
  console.log(`batches redone by 1,000 commits, slots of their own: ${perThousand.toFixed(1)} (goal ≤ 5)`);
  console.log(
    `longest upsert: ${Math.round(Math.max(...results.map(({ longestMs }) => longestMs)))} ms (goal ≤ 5000)`,
  );
}

if (process.argv.includes("--worker")) {
  const [order] = (await once(process, "message")) as [Order];
  await work(order);
} else {
  await main();
}
