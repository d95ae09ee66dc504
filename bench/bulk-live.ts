import { execFile, fork } from "node:child_process";
import { once } from "node:events";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { cpus, loadavg } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs, promisify } from "node:util";
import { loadConfig } from "../services/base/config.js";
import { Duck, rowsOf } from "../services/base/duckdb.js";
import { layout } from "../services/base/paths.js";
import { FixedColumn } from "../services/columns/column-writers.js";
import { Feed } from "../services/columns/feed.js";
import { textTable } from "../services/main/terminal/text-table.js";
import { Random } from "../services/main/workload/random.js";
import { FileStore } from "../services/storage/file-store.js";
import { DeltaTable } from "../services/table/delta-table.js";
import { withScan } from "../services/table/scan.js";
import { generateExport, ISSUE, REVISIONS } from "./bulk-export.js";
import { landed, tokenFor } from "./end-to-end.js";
import { CONTENTS, type FromLive, type LiveOrder, type LiveReport, type ToLive } from "./live-load.js";
import { adopted, BenchServer, benchFolder, CLI, childrenOf, commandOf, cpuOf } from "./processes.js";

/**
 * A bootstrap beside live traffic of the same keys: how old live events are when they can be queried, before the job,
 * beside it and after it; how fast the job is; and whether the state at the end is what must win, row by row. On request
 * the job's process, ingest or all of the server are killed at random instants, the job is paused and resumed, and a
 * second one brings the same export again. Absolute figures tell of the machine as much as of the program: compare the
 * phases of one run.
 */
const { values: options } = parseArgs({
  options: {
    rows: { type: "string", default: "2000000" },
    "file-rows": { type: "string", default: "500000" },
    tenants: { type: "string", default: "50" },
    order: { type: "string", default: "key" },
    format: { type: "string", default: "parquet" },
    "event-bytes": { type: "string", default: "700" },
    /** Live events a second. */
    rate: { type: "string", default: "5000" },
    /** Before the job, and after it. */
    seconds: { type: "string", default: "20" },
    kills: { type: "string", default: "0" },
    /** Mean time between them. */
    "kill-seconds": { type: "string", default: "8" },
    pause: { type: "boolean", default: false },
    twice: { type: "boolean", default: false },
    seed: { type: "string", default: "1" },
    /** Settings, as `name=value` with the names that variables have. */
    set: { type: "string", multiple: true, default: [] },
  },
});
const rows = Number(options.rows);
const tenants = Number(options.tenants);
const MORE = 2_000_000;
const PROBE_EVERY_MS = 25;
const WARM_SECONDS = 5;
const REFINED = "refined/tracker/issues";
const random = new Random(Number(options.seed));

const root = benchFolder("bulk-live");
const [data, exports] = [join(root, "data"), join(root, "exports")];
const config = join(root, "tributary.yaml");
const winners = join(root, "winners");
const env = Object.fromEntries(options.set.map((pair) => pair.split(/=(.*)/s).slice(0, 2)));

/** Commits of the refined table as they appear. */
class Commits {
  readonly seen: { readonly at: number; readonly positions: ReadonlyMap<string, string> }[] = [];
  private version = 0;
  private readonly timer = setInterval(() => this.look(), 20);

  private look(): void {
    for (;;) {
      const path = join(
        layout(data).lake,
        REFINED,
        "_delta_log",
        `${String(this.version).padStart(20, "0")}.json`,
      );
      let text: string;
      let at: number;
      try {
        // Its name was given to it when its inode changed last.
        at = statSync(path).ctimeMs;
        text = readFileSync(path, "utf8");
      } catch {
        return;
      }
      this.version++;
      const positions = new Map<string, string>();
      for (const line of text.split("\n")) {
        if (!line.startsWith('{"domainMetadata"')) continue;
        const { domain, configuration } = (
          JSON.parse(line) as { domainMetadata: { domain: string; configuration: string } }
        ).domainMetadata;
        if (!domain.startsWith("tributary.pos.")) continue;
        const { position } = JSON.parse(configuration) as { position: string };
        positions.set(domain.slice("tributary.pos.".length), position);
      }
      this.seen.push({ at, positions });
    }
  }

  /** When the event could be queried; ms since the epoch. */
  of({ partition, position, ackedAt }: Probe): number | undefined {
    // Its commit cannot have been long before the answer.
    let low = 0;
    for (let high = this.seen.length; low < high; ) {
      const middle = (low + high) >> 1;
      if (this.seen[middle]!.at < ackedAt - 1000) low = middle + 1;
      else high = middle;
    }
    for (let at = low; at < this.seen.length; at++) {
      for (const [track, reached] of this.seen[at]!.positions) {
        const isOfJob = track.includes("bootstrap-");
        if (!isOfJob && track.endsWith(`.${partition}`) && reached >= position) return this.seen[at]!.at;
      }
    }
    return undefined;
  }

  stop(): void {
    clearInterval(this.timer);
    this.look();
  }
}

interface Probe {
  readonly partition: string;
  readonly position: string;
  readonly ackedAt: number;
  readonly phase: string;
  /** Where the job was. */
  readonly job: string;
}

/** CPU of all processes below this one, by what they are; those that have ended too, but for their last second. */
class CpuWatch {
  private readonly last = new Map<number, { readonly kind: string; readonly seconds: number }>();
  private readonly timer = setInterval(() => this.look(), 500);

  look(): void {
    const walk = (pid: number, above: string): void => {
      for (const child of childrenOf(pid)) {
        const command = commandOf(child);
        const own = command.includes("job-child")
          ? "job"
          : command.includes("ingest-child")
            ? "ingest"
            : above === "job"
              ? "chunks"
              : above;
        this.last.set(child, { kind: own, seconds: cpuOf(child) });
        walk(child, own);
      }
    };
    if (up !== undefined) {
      this.last.set(up.pid, { kind: "bus", seconds: cpuOf(up.pid) });
      walk(up.pid, "bus");
    }
  }

  get seconds(): Record<string, number> {
    this.look();
    const sums: Record<string, number> = {};
    for (const { kind, seconds } of this.last.values()) sums[kind] = (sums[kind] ?? 0) + seconds;
    return sums;
  }

  stop(): void {
    clearInterval(this.timer);
  }
}

let up: BenchServer | undefined;
let phase = "before";
let jobPhase = "";
const probes: Probe[] = [];
let token = "";

async function probe(number: number): Promise<void> {
  const key = `FRESH-${number}`;
  const [during, job] = [phase, jobPhase];
  const event = {
    tenantId: "freshness",
    entityType: ISSUE,
    entityId: key,
    operation: "OPERATION_CREATED",
    version: "1",
    payload: { "@type": `type.googleapis.com/${ISSUE}`, key },
  };
  try {
    const answer = await fetch(`${up!.url}/v1/events`, {
      method: "POST",
      headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
      body: JSON.stringify([event]),
    });
    const { results } = (await answer.json()) as {
      results?: readonly { readonly partition: string; readonly position: string }[];
    };
    const ackedAt = performance.timeOrigin + performance.now();
    // One that is refused for lack of room is no event.
    if (answer.ok && results !== undefined) probes.push({ ...results[0]!, ackedAt, phase: during, job });
  } catch {
    // The server was killed.
  }
}

function quantiles(values: number[]): { readonly shown: (string | number)[]; readonly p99: number } {
  values.sort((a, b) => a - b);
  const at = (share: number) =>
    values[Math.min(values.length - 1, Math.floor(values.length * share))] ?? Number.NaN;
  return {
    shown: [values.length, ...[0.5, 0.9, 0.99, 1].map((share) => Math.round(at(share)))],
    p99: at(0.99),
  };
}

const run = promisify(execFile);
const bootstrap = (...args: string[]) =>
  run(process.execPath, [CLI, "bootstrap", ...args, "--data", data, "--config", config], {
    env: process.env,
  });

interface Told {
  readonly phase: string;
  readonly reason?: string;
  readonly rowsLanded: number;
  readonly rowsRefined: number;
}

function told(id: string): Told {
  try {
    return JSON.parse(readFileSync(join(layout(data).lake, "jobs", "states", `${id}.json`), "utf8")) as Told;
  } catch {
    return { phase: "waiting", rowsLanded: 0, rowsRefined: 0 };
  }
}

const startUp = async () => {
  up = await BenchServer.start("up", data, env, ["--config", config]);
};

/** Processes below the server whose command holds a word. */
function below(word: string): number[] {
  const found: number[] = [];
  const walk = (pid: number): void => {
    for (const child of childrenOf(pid)) {
      if (commandOf(child).includes(word)) found.push(child);
      walk(child);
    }
  };
  if (up !== undefined) walk(up.pid);
  return found;
}

const killed: string[] = [];

async function killSomething(use: (url: string) => void): Promise<void> {
  const [what, pid] = random.pick([
    ["job", below("job-child")[0]],
    ["chunks", below("chunk-worker")[0]],
    ["ingest", below("ingest-child")[0]],
    ["server", undefined],
  ] as const);
  if (what === "server") {
    await up!.kill();
    await startUp();
    use(up!.url);
  } else if (pid === undefined) return;
  else process.kill(pid, "SIGKILL");
  killed.push(what);
}

/** Runs a job to its end; resolves to how long it took, and how long until all rows were in raw. */
async function runJob(id: string, harm: { kills: number; pause: boolean }, use: (url: string) => void) {
  const mapping = join(root, "mapping.yaml");
  writeFileSync(mapping, "tenant: customer\nentityId: id\nversion: rev\n");
  await bootstrap(
    "start",
    "--id",
    id,
    "--source",
    "exports",
    "--mapping",
    mapping,
    "--type",
    ISSUE,
    "--detach",
  );
  const started = performance.now();
  let began: number | undefined;
  let landedAt: number | undefined;
  let { pause, kills } = harm;
  const next = () => performance.now() + 2 * random.unit() * Number(options["kill-seconds"]) * 1000;
  let due = next();
  for (let shown = 0; ; await sleep(100)) {
    const state = told(id);
    const { phase: at, rowsLanded } = state;
    jobPhase = at;
    if (began === undefined && (at === "landing" || rowsLanded > 0)) began = performance.now();
    if (landedAt === undefined && rowsLanded >= rows) landedAt = performance.now();
    if (at === "done") break;
    if (at === "failed" || (at === "paused" && state.reason !== undefined)) {
      console.error((await bootstrap("report", id)).stdout.slice(0, 8000));
      throw new Error(`the job is ${at}: ${state.reason}`);
    }
    if (performance.now() - shown > 10_000) {
      shown = performance.now();
      console.error(
        `${((shown - started) / 1000).toFixed(0)} s: ${id} ${at}, ${rowsLanded} rows landed, ${state.rowsRefined} refined; load ${loadavg()[0]!.toFixed(1)}`,
      );
    }
    if (pause && rowsLanded > rows / 3 && at === "landing") {
      pause = false;
      await bootstrap("pause", id);
      while (told(id).phase !== "paused" && told(id).phase !== "done") await sleep(100);
      await sleep(3000);
      await bootstrap("resume", id);
    }
    if (kills > 0 && began !== undefined && performance.now() > due) {
      const before = killed.length;
      await killSomething(use);
      kills -= killed.length - before;
      due = next();
    }
  }
  const ended = performance.now();
  return {
    checkSeconds: ((began ?? ended) - started) / 1000,
    landSeconds: ((landedAt ?? ended) - (began ?? started)) / 1000,
    seconds: (ended - (began ?? started)) / 1000,
  };
}

/** What of the refined table is not what must have won: numbers of rows. */
async function compare(keys: readonly string[]) {
  const won = readFileSync(winners);
  const words = new Uint32Array(won.buffer, won.byteOffset, won.length / 4);
  const duck = await Duck.create({ memoryBytes: 4 * 1024 ** 3 });
  const { lake } = layout(data);
  const store = await FileStore.open({ folder: lake, staging: join(root, "reading") });
  const table = (await DeltaTable.open(store, REFINED, duck, { checkpointEvery: 1e9 }))!;
  return duck.with(async (connection) => {
    const [number, version, content] = [FixedColumn.integer(), FixedColumn.integer(), FixedColumn.integer()];
    const live: number[] = [];
    for (let n = 0; n < words.length; n++) if (words[n]! > 1 && (words[n]! & 1) === 0) live.push(n);
    const feed = Feed.register(connection, "oracle_rows", [
      { name: "number", writer: number, nullable: false },
      { name: "version", writer: version, nullable: false },
      { name: "content", writer: content, nullable: false },
    ]);
    feed.use({
      rows: live.length,
      fill: (start, count) => {
        for (let row = 0; row < count; row++) {
          const n = live[start + row]!;
          const won = words[n]! >> 1;
          const isExported = n < rows && won === 1 + (n % REVISIONS);
          number.int32[row] = n;
          version.int32[row] = won;
          content.int32[row] = isExported ? n % CONTENTS : (n + won * 7919) % CONTENTS;
        }
      },
    });
    await connection.run("CREATE TEMP TABLE oracle AS SELECT * FROM oracle_rows()");
    await connection.run(
      `CREATE TEMP TABLE contents AS SELECT unnest(range(${keys.length}))::INTEGER AS content,
        unnest([${keys.map((key) => `'${key}'`).join(", ")}]) AS key`,
    );
    const columns = ["tenant_id", "entity_id", "key", "_tributary_version"];
    const where = "tenant_id <> 'freshness'";
    return withScan(table, table.snapshot, { columns, where }, async (sql) => {
      const [[all, doubled, missing, extra, otherVersion, otherContent]] = (await rowsOf(
        connection,
        `WITH found AS (SELECT split_part(entity_id, '-', 2)::INTEGER AS number, tenant_id, key, _tributary_version AS version
             FROM (${sql})),
           expected AS (SELECT number, version, key,
               printf('tenant-%04d', CASE WHEN number < ${rows} THEN number // ${Math.ceil(rows / tenants)}
                                          ELSE number % ${tenants} END) AS tenant
             FROM oracle JOIN contents USING (content))
         SELECT count(f.number)::INTEGER, (count(f.number) - count(DISTINCT f.number))::INTEGER,
           count(*) FILTER (f.number IS NULL)::INTEGER, count(*) FILTER (e.number IS NULL)::INTEGER,
           count(*) FILTER (f.version <> e.version)::INTEGER,
           count(*) FILTER (f.version = e.version AND (f.key <> e.key OR f.tenant_id <> e.tenant))::INTEGER
         FROM found f FULL JOIN expected e USING (number)`,
      )) as [number[]];
      return { all, doubled, missing, extra, otherVersion, otherContent };
    });
  });
}

writeFileSync(config, `bulk:\n  sources: { exports: ${JSON.stringify(exports)} }\n`);
await generateExport({
  folder: exports,
  rows,
  fileRows: Number(options["file-rows"]),
  format: options.format === "ndjson" ? "ndjson" : "parquet",
  tenants,
  eventBytes: Number(options["event-bytes"]),
  order: options.order === "random" ? "random" : "key",
});
await startUp();
const cpu = new CpuWatch();
const commits = new Commits();
token = await tokenFor(data, "producer");
const load = adopted(fork(fileURLToPath(new URL("./live-load.js", import.meta.url))));
const tell = (message: ToLive) => load.send(message);
const answer = async <T extends FromLive>(is: (message: FromLive) => message is T): Promise<T> => {
  for (;;) {
    const [message] = (await Promise.race([
      once(load, "message"),
      once(load, "exit").then(() => Promise.reject(new Error("the live load has ended"))),
    ])) as [FromLive];
    if (is(message)) return message;
  }
};
const order: LiveOrder = {
  token,
  protoDirs: loadConfig().protoDirs,
  eventsPerSecond: Number(options.rate),
  eventBytes: Number(options["event-bytes"]),
  seed: Number(options.seed),
  rows,
  more: MORE,
  tenants,
  winners,
};
tell({ order });
const { ready } = await answer(
  (message): message is Extract<FromLive, { ready: unknown }> => "ready" in message,
);
const use = (url: string) => tell({ url });
use(up!.url);
await sleep(WARM_SECONDS * 1000);
let asked = 0;
const probing = setInterval(() => void probe(asked++), PROBE_EVERY_MS);
const phases: [string, Record<string, number>, number][] = [];
const enter = (next: string): void => {
  phases.push([next, cpu.seconds, performance.now()]);
  phase = next;
};
enter("before");
await sleep(Number(options.seconds) * 1000);
enter("beside");
const job = await runJob("one", { kills: Number(options.kills), pause: options.pause }, use);
if (options.twice) {
  enter("again");
  await runJob("two", { kills: 0, pause: false }, use);
}
enter("after");
await sleep(Number(options.seconds) * 1000);
enter("end");
clearInterval(probing);
tell({ stop: true });
const { report } = await answer((message): message is { readonly report: LiveReport } => "report" in message);
await landed(data, {}, 200);
await sleep(100);
commits.stop();
cpu.stop();
await up!.stop();
load.disconnect();

console.log(
  `${cpus().length} cores, Node ${process.version}, load ${loadavg()
    .map((load) => load.toFixed(1))
    .join(" ")}; seed ${options.seed}; ${rows} rows of ${options.format} in order of ${options.order}`,
);
console.log(
  `live: ${report.events} events at ${options.rate}/s, ${report.retries} bodies sent again, ${report.behindSeconds.toFixed(1)} s behind; killed: ${killed.join(", ") || "nothing"}\n`,
);
const table: (string | number)[][] = [];
const p99: Record<string, number> = {};
const agesOf = (some: readonly Probe[]): number[] => {
  const ages: number[] = [];
  let lost = 0;
  for (const one of some) {
    const queryable = commits.of(one);
    if (queryable === undefined) lost++;
    else ages.push(queryable - one.ackedAt);
  }
  if (lost > 0)
    throw new Error(`${lost} events of phase ${some[0]!.phase} were acknowledged and never committed`);
  return ages;
};
for (const [at, [name, before, since]] of phases.entries()) {
  const next = phases[at + 1];
  if (next === undefined) break;
  const own = probes.filter((one) => one.phase === name);
  const { shown, p99: high } = quantiles(agesOf(own));
  p99[name] = high;
  const seconds = (next[2] - since) / 1000;
  const used = (kind: string) => (((next[1][kind] ?? 0) - (before[kind] ?? 0)) / seconds).toFixed(2);
  table.push([name, seconds.toFixed(0), ...shown, used("bus"), used("ingest"), used("job"), used("chunks")]);
  if (name !== "beside") continue;
  for (const job of new Set(own.map((one) => one.job)))
    table.push([`  ${job}`, "", ...quantiles(agesOf(own.filter((one) => one.job === job))).shown]);
}
console.log(
  textTable(
    ["phase", "s", "probes", "p50 ms", "p90", "p99", "max", "bus cores", "ingest", "job", "chunks"],
    table,
  ),
);
console.log(
  `\nacknowledged to queryable, p99 beside the job: ${Math.round(p99.beside!)} ms (goal ≤ 500), ${(p99.beside! / p99.before!).toFixed(2)} × before, ${(p99.beside! / p99.after!).toFixed(2)} × after`,
);
console.log(
  `job: ${Math.round(rows / job.seconds)} rows/s to its end, ${Math.round(rows / job.landSeconds)} rows/s until landed; checks before ${job.checkSeconds.toFixed(0)} s`,
);
const state = await compare(ready.keys);
const wrong = Object.entries(state)
  .filter(([name, count]) => name !== "all" && count !== 0)
  .map(([name, count]) => `${name} ${count}`);
console.log(
  wrong.length === 0
    ? `state: ${state.all} live rows, each the one that must win`
    : `STATE IS WRONG: ${wrong.join(", ")} of ${state.all}`,
);
process.exit(wrong.length === 0 ? 0 : 1);
