import { readdirSync, readFileSync } from "node:fs";
import { cp, mkdir } from "node:fs/promises";
import { cpus, totalmem } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { loadConfig } from "../services/base/config.js";
import { layout } from "../services/base/paths.js";
import { textTable } from "../services/main/terminal/text-table.js";
import { ceiling } from "./ceiling.js";
import { endToEnd, landed, tokenFor } from "./end-to-end.js";
import type { LoadOrder } from "./load.js";
import { BenchServer, benchFolder, Load } from "./processes.js";

/**
 * Events a second and CPU microseconds an event, stage by stage, and the ratio to what DuckDB alone could do in this
 * very run. Absolute figures tell of the machine as much as of the program: compare ratios.
 */
const { values: options } = parseArgs({
  options: {
    events: { type: "string", default: "400000" },
    "event-bytes": { type: "string", default: "700" },
    tenants: { type: "string", default: "500" },
    entities: { type: "string", default: "300000" },
    seed: { type: "string", default: "7" },
    json: { type: "boolean", default: false },
  },
});
const events = Number(options.events);
const root = benchFolder("bench");
const { protoDirs } = loadConfig();
const stages: Stage[] = [];
/** How often it is looked whether all has landed. */
const LOOK_MS = 10;

interface Stage {
  readonly stage: string;
  readonly eventsPerSecond: number;
  /** CPU microseconds an event, by who spent them. */
  readonly cpu: Readonly<Record<string, number>>;
  readonly note?: string;
}

function order(url: string, token: string, over: Partial<LoadOrder> = {}): LoadOrder {
  return {
    url,
    token,
    protoDirs,
    events,
    bodyEvents: 100,
    eventBytes: Number(options["event-bytes"]),
    connections: 16,
    seed: Number(options.seed),
    tenants: Number(options.tenants),
    entities: Number(options.entities),
    ...over,
  };
}

const perEvent = (seconds: number, count: number) => (seconds * 1e6) / count;

async function busAcks(data: string, name: string, over: Partial<LoadOrder>): Promise<void> {
  const bus = await BenchServer.start("bus", data, { TRIBUTARY_BUS__MAX_LAG_BYTES: String(64 * 1024 ** 3) });
  const load = await Load.prepare(order(bus.url, await tokenFor(data, "producer"), over));
  const before = bus.cpu().own;
  const report = await load.run();
  const cpu = perEvent(bus.cpu().own - before, report.events);
  await bus.stop();
  stages.push({
    stage: name,
    eventsPerSecond: report.events / report.seconds,
    cpu: { bus: cpu, load: perEvent(report.cpuSeconds, report.events) },
    note: `ack p50 ${report.latencyMs.p50.toFixed(1)} ms, p99 ${report.latencyMs.p99.toFixed(1)} ms; ${Math.round(report.bytes / report.events)} bytes/event`,
  });
}

/** Ingest alone, over a stream that was filled before. */
async function ingestOnly(filled: string, name: string, env: NodeJS.ProcessEnv): Promise<void> {
  const data = join(root, name.replaceAll(/[^a-z]/g, "-"));
  await cp(layout(filled).stream, layout(data).stream, { recursive: true });
  const started = performance.now();
  const ingest = await BenchServer.start("ingest", data, env);
  const { TRIBUTARY_TRANSFORMS_DIR: transformsDir } = env;
  await landed(data, {}, LOOK_MS, transformsDir === undefined ? {} : { transformsDir });
  const seconds = (performance.now() - started) / 1000;
  const { own, below } = ingest.cpu();
  stages.push({
    stage: name,
    eventsPerSecond: events / seconds,
    cpu: { ingest: perEvent(own + below, events) },
    note: `start of the process included; peak memory ${Math.round(ingest.peakBytes() / 1e6)} MB`,
  });
  await ingest.stop();
}

async function whole(data: string): Promise<number> {
  const up = await BenchServer.start("up", data);
  const { cpu, report, seconds } = await endToEnd(
    up,
    data,
    order(up.url, await tokenFor(data, "producer")),
    {},
    LOOK_MS,
  );
  stages.push({
    stage: "end to end",
    eventsPerSecond: report.events / seconds,
    cpu,
    note: `POST to refined commit; ${report.retries} answers of 429; peak memory ${Math.round(up.peakBytes() / 1e6)} MB`,
  });
  await idleFreshness(up, data);
  await up.stop();
  return report.events / seconds;
}

/** Time from an acknowledgement to the first query that sees the event, on an idle server. */
async function idleFreshness(up: BenchServer, data: string): Promise<void> {
  const producer = await tokenFor(data, "producer");
  const analyst = await tokenFor(data, "analyst");
  const waits: number[] = [];
  const post = (path: string, token: string, body: unknown) =>
    fetch(`${up.url}${path}`, {
      method: "POST",
      headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
      body: JSON.stringify(body),
    });
  const ask = {
    sql: "select max(vote_count) from tracker.issues where key = 'FRESH-1'",
    tenant: "freshness",
  };
  for (let version = 1; version <= 20; version++) {
    const payload = { "@type": "type.googleapis.com/tracker.v1.Issue", key: "FRESH-1", voteCount: version };
    const event = {
      tenantId: "freshness",
      entityType: "tracker.v1.Issue",
      entityId: "FRESH-1",
      operation: "OPERATION_UPDATED",
      version: String(version),
      payload,
    };
    const accepted = await post("/v1/events", producer, [event]);
    if (!accepted.ok) throw new Error(`the bus answered ${accepted.status}`);
    const acked = performance.now();
    for (;;) {
      const answer = (await (await post("/v1/query", analyst, ask)).json()) as { rows?: unknown[][] };
      if (answer.rows?.[0]?.[0] === version) break;
    }
    waits.push(performance.now() - acked);
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  waits.sort((a, b) => a - b);
  console.error(
    `idle: acknowledged to queried p50 ${waits[10]!.toFixed(0)} ms, max ${waits.at(-1)!.toFixed(0)} ms`,
  );
}

/** Actions and bytes of the commits of one table's log. */
function commitCosts(data: string, table: string) {
  const folder = join(layout(data).lake, table, "_delta_log");
  const commits = readdirSync(folder).filter((name) => name.endsWith(".json"));
  let actions = 0;
  let bytes = 0;
  for (const name of commits) {
    const text = readFileSync(join(folder, name), "utf8");
    actions += text.trimEnd().split("\n").length;
    bytes += text.length;
  }
  return [table, commits.length, (actions / commits.length).toFixed(1), Math.round(bytes / commits.length)];
}

const filled = join(root, "filled");
await busAcks(filled, "bus, batches of 100", {});
await busAcks(join(root, "single"), "bus, single events", {
  bodyEvents: 1,
  events: Math.min(events, 30_000),
});
const empty = join(root, "no-models");
await mkdir(join(empty, "models"), { recursive: true });
await ingestOnly(filled, "raw only", { TRIBUTARY_TRANSFORMS_DIR: empty });
await ingestOnly(filled, "raw + refined", {});
const data = join(root, "end-to-end");
const reached = await whole(data);
const bare = await ceiling(
  protoDirs,
  {
    seed: Number(options.seed),
    tenants: Number(options.tenants),
    entities: Number(options.entities),
    events,
    eventBytes: Number(options["event-bytes"]),
  },
  50_000,
);
const most = bare.events / bare.seconds;
stages.push({ stage: "ceiling: DuckDB alone", eventsPerSecond: most, cpu: { process: bare.cpuMicros } });
const commits = ["raw/tracker.v1.Issue", "refined/tracker/issues"].map((table) => commitCosts(data, table));
if (options.json) {
  console.log(JSON.stringify({ stages, commits, ratio: reached / most }));
} else {
  console.log(`${cpus().length} cores, ${Math.round(totalmem() / 1e9)} GB, Node ${process.version}\n`);
  const cpu = (stage: Stage) =>
    Object.entries(stage.cpu)
      .map(([who, micros]) => `${who} ${micros.toFixed(1)}`)
      .join(", ");
  console.log(
    textTable(
      ["stage", "events/s", "CPU µs/event", ""],
      stages.map((stage) => [stage.stage, Math.round(stage.eventsPerSecond), cpu(stage), stage.note ?? ""]),
    ),
  );
  console.log(`\nend to end / ceiling: ${(reached / most).toFixed(2)}\n`);
  console.log(textTable(["table", "commits", "actions/commit", "log bytes/commit"], commits));
}
