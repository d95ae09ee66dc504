import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { loadConfig } from "../services/base/config.js";
import { layout } from "../services/base/paths.js";
import { encodeRequest } from "../services/contracts/encode-event.js";
import { CONSUMER } from "../services/ingest/pipeline.js";
import { publishBodies } from "../services/main/client/publish.js";
import { openKey } from "../services/main/compose/runtime.js";
import { caughtUp } from "../services/stream/caught-up.js";
import { EmbeddedLogReader } from "../services/stream/embedded/reader.js";
import { signToken } from "../services/tenancy/tokens.js";
import { packedEvents, UNPACKED_BYTES } from "./packed-events.js";
import { BenchServer } from "./processes.js";

/**
 * Events that take a kilobyte each and a megabyte unpacked, from one producer, to everything as an operator runs it:
 * how long the bus takes, what /healthz takes meanwhile, and when all of it has landed. Loopback only, and bounded.
 */
const { values: options } = parseArgs({
  options: { events: { type: "string", default: "2500" }, seconds: { type: "string", default: "1200" } },
});
const events = Number(options.events);
const root = await mkdtemp(join(tmpdir(), "tributary-packed-"));
const config = loadConfig({ data: root });
const until = Date.now() + Number(options.seconds) * 1000;
const perRequest = Math.floor(config.bus.maxDecodedBytes / UNPACKED_BYTES) - 1;

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

/** Milliseconds that GET /healthz takes, again and again until `done`. */
async function watch(url: string, done: () => boolean): Promise<number[]> {
  const latencies: number[] = [];
  while (!done()) {
    const started = performance.now();
    await (await fetch(`${url}/healthz`)).arrayBuffer();
    latencies.push(performance.now() - started);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return latencies.sort((a, b) => a - b);
}

const at = (sorted: readonly number[], share: number) =>
  (sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN).toFixed(1);

const up = await BenchServer.start("up", root);
try {
  const token = await signToken(await openKey(config), "tributary", {
    subject: "packed",
    role: "producer",
    tenants: "*",
    expiresIn: 3600,
  });
  const phase = { publishing: true, landing: true };
  const publishing = watch(up.url, () => !phase.publishing);
  const summary = await publishBodies({ url: up.url, token, bodies: bodies() });
  phase.publishing = false;
  const whilePublishing = await publishing;
  console.log(
    `${summary.accepted} accepted, ${summary.rejected} rejected in ${(summary.elapsedMs / 1000).toFixed(1)} s; ` +
      `/healthz p50 ${at(whilePublishing, 0.5)}, p99 ${at(whilePublishing, 0.99)}, max ${at(whilePublishing, 1)} ms; ` +
      `peak memory of the bus ${Math.round(up.peaks().own / 1e6)} MB`,
  );
  const landing = watch(up.url, () => !phase.landing);
  const started = performance.now();
  const reader = await EmbeddedLogReader.open({ folder: layout(root).stream });
  let landed = false;
  while (!landed && Date.now() < until) {
    await new Promise((resolve) => setTimeout(resolve, 100));
    landed = await caughtUp(reader, CONSUMER);
  }
  await reader.close();
  phase.landing = false;
  const whileLanding = await landing;
  console.log(
    `${landed ? "all landed" : "NOT all landed"} ${((performance.now() - started) / 1000).toFixed(1)} s later; ` +
      `/healthz p99 ${at(whileLanding, 0.99)} ms; peak memory ${Math.round(up.peaks().below / 1e6)} MB below the bus`,
  );
} finally {
  await up.stop();
  await rm(root, { recursive: true, force: true });
}
