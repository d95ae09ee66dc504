import { parseArgs } from "node:util";
import { loadConfig } from "../services/base/config.js";
import { encodeEvent, encodeRequest } from "../services/contracts/encode-event.js";
import { publishBodies } from "../services/main/client/publish.js";
import { openKey, readingDuck, withStore } from "../services/main/compose/runtime.js";
import { DeltaTable } from "../services/table/delta-table.js";
import type { Role } from "../services/tenancy/grant.js";
import { signToken } from "../services/tenancy/tokens.js";
import { withRefined } from "./in-step.js";
import { packedEvents, UNPACKED_BYTES } from "./packed-events.js";
import { BenchServer, benchFolder } from "./processes.js";

/**
 * Events that take a kilobyte each and a megabyte unpacked, from one producer, to everything as an operator runs it:
 * how long the bus takes, what /healthz takes meanwhile, how soon another tenant's events are queryable, what memory
 * ingest takes, and when all of it is in the refined table or a dead letter. Loopback only, and bounded. Ends with 1
 * when something is missing or a limit is exceeded.
 */
const { values: options } = parseArgs({
  options: { events: { type: "string", default: "2500" }, seconds: { type: "string", default: "3600" } },
});
const HEALTH_MS = 100;
const FRESH_MS = 5_000;
const MB = 1e6;
const events = Number(options.events);
const config = loadConfig({ data: benchFolder("packed") });
const { data } = config;
const until = Date.now() + Number(options.seconds) * 1000;
const perRequest = Math.floor(config.bus.maxDecodedBytes / UNPACKED_BYTES) - 1;
const since = Date.now();

function* bodies(): Generator<{ bytes: Buffer }> {
  let batch: Buffer[] = [];
  for (const event of packedEvents(events, "packed")) {
    batch.push(event);
    if (batch.length < perRequest) continue;
    yield { bytes: encodeRequest(batch) };
    batch = [];
  }
  if (batch.length > 0) yield { bytes: encodeRequest(batch) };
}

/** Calls `look` again and again until `done`; resolves to what it took or said, in ms, sorted. */
async function again(done: () => boolean, pauseMs: number, look: () => Promise<number>): Promise<number[]> {
  const figures: number[] = [];
  while (!done()) {
    figures.push(await look());
    await new Promise((resolve) => setTimeout(resolve, pauseMs));
  }
  return figures.sort((a, b) => a - b);
}

const at = (sorted: readonly number[], share: number) =>
  Math.round((sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN) * 10) /
  10;

const tokenFor = async (role: Role, tenants: "*" | string[]) =>
  signToken(await openKey(config), "tributary", { subject: role, role, tenants, expiresIn: 86_400 });

/** Live rows by the table's own log. */
async function rowsIn(root: string): Promise<{ rows: number; files: number }> {
  const duck = await readingDuck();
  try {
    return await withStore(config, async (store) => {
      const files = (await DeltaTable.open(store, root, duck, config.table))?.snapshot.files ?? [];
      return {
        rows: files.reduce((sum, { rows, maskedRows }) => sum + rows - maskedRows, 0),
        files: files.length,
      };
    });
  } finally {
    duck.close();
  }
}

const up = await BenchServer.start("up", data, { TRIBUTARY_LOG__LEVEL: "warn" });
const producer = await tokenFor("producer", "*");
const analyst = await tokenFor("analyst", ["other"]);

async function health(): Promise<number> {
  const started = performance.now();
  await (await fetch(`${up.url}/healthz`)).arrayBuffer();
  return performance.now() - started;
}

let light = 0;
/** Milliseconds from the acknowledgement of another tenant's event to an answer that counts it. */
async function freshness(): Promise<number> {
  const event = encodeEvent({
    tenantId: "other",
    entityType: "scm.v1.File",
    entityId: `light-${++light}`,
    operation: 1,
    version: 1,
    payload: { value: Buffer.from([0x0a, 1, 0x78]) },
  });
  await publishBodies({ url: up.url, token: producer, bodies: [{ bytes: encodeRequest([event]) }] });
  const published = performance.now();
  for (;;) {
    const answer = await fetch(`${up.url}/v1/query`, {
      method: "POST",
      headers: { authorization: `Bearer ${analyst}`, "content-type": "application/json" },
      body: JSON.stringify({ sql: "select count(*) from scm.files" }),
    });
    const { rows } = (await answer.json()) as { rows?: [[string]] };
    if (rows !== undefined && Number(rows[0][0]) >= light) return performance.now() - published;
    if (Date.now() > until) return Number.POSITIVE_INFINITY;
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

let done = false;
const peaks = { own: 0, ingest: 0, others: 0 };
const memory = again(
  () => done,
  500,
  async () => {
    const now = up.peaks();
    for (const who of ["own", "ingest", "others"] as const) peaks[who] = Math.max(peaks[who], now[who]);
    return 0;
  },
);
const healthy = again(() => done, 10, health);
const fresh = again(() => done, 1_000, freshness);

const summary = await publishBodies({ url: up.url, token: producer, bodies: bodies() });
console.log(
  `${summary.accepted} accepted, ${summary.rejected} rejected in ${(summary.elapsedMs / 1000).toFixed(1)} s`,
);
let progress = { rows: 0, files: 0 };
for (let inStep = false; !inStep && Date.now() < until; ) {
  await new Promise((resolve) => setTimeout(resolve, 5_000));
  // Raw must have all of it before "in step" says anything.
  inStep =
    (await rowsIn("raw/scm.v1.File")).rows >= events + light && (await withRefined(config, (look) => look()));
  progress = await rowsIn("refined/scm/files");
  const seconds = Math.round((Date.now() - since) / 1000);
  console.log(
    `${seconds} s: ${progress.rows} rows in ${progress.files} files; ingest ${Math.round(peaks.ingest / MB)} MB at most`,
  );
}
done = true;
const [latencies, waits] = [await healthy, await fresh];
await memory;
const [raw, refined, dead] = [
  await rowsIn("raw/scm.v1.File"),
  await rowsIn("refined/scm/files"),
  await rowsIn("dead_letters"),
];
const limit = config.ingest.duckdbMemoryBytes + config.ingest.keyIndexBytes;
const result = {
  seconds: Math.round((Date.now() - since) / 1000),
  published: events + light,
  raw: raw.rows,
  refined: refined.rows,
  refinedFiles: refined.files,
  deadLetters: dead.rows,
  healthzMs: { p50: at(latencies, 0.5), p99: at(latencies, 0.99), max: at(latencies, 1) },
  otherTenantMs: { count: waits.length, p50: at(waits, 0.5), p99: at(waits, 0.99), max: at(waits, 1) },
  memoryMB: { bus: peaks.own / MB, ingest: peaks.ingest / MB, limit: limit / MB, others: peaks.others / MB },
};
console.log(JSON.stringify(result, (_, value) => (typeof value === "number" ? Math.round(value) : value)));
await up.stop();
const held =
  result.refined + result.deadLetters === result.published &&
  result.raw === result.published &&
  result.healthzMs.p99 <= HEALTH_MS &&
  result.otherTenantMs.max <= FRESH_MS &&
  peaks.ingest <= limit;
console.log(held ? "held" : "NOT held");
process.exitCode = held ? 0 : 1;
