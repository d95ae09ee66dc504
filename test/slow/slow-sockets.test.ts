import { spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import { loadConfig } from "../../services/base/config.js";
import { packageRoot } from "../../services/base/paths.js";
import { encodeEvent, encodeRequest } from "../../services/contracts/encode-event.js";
import { HttpClient } from "../../services/main/client/http-client.js";
import { peakBytes, quantile } from "../support/latency.js";
import { cli, removeFolder, Server, temporaryFolder } from "../support/stack.js";

/** A thousand connections that mean no good, and what becomes of a producer beside them. */
const EACH = 500;
const ROUNDS = 3;
const SAMPLES = 250;
const MiB = 1024 * 1024;

let data: string;
let server: Server;
beforeAll(async () => {
  data = await temporaryFolder();
  server = await Server.start("bus", data);
});
afterAll(async () => {
  await server.kill();
  await removeFolder(data);
});

const tokenOf = async (subject: string): Promise<string> => {
  const args = ["--role", "producer", "--tenant", "*", "--subject", subject];
  const { stdout, stderr } = await cli(["token", "--data", data, ...args]);
  expect(stdout, stderr).not.toBe("");
  return stdout.trim();
};

interface HostileReport {
  readonly answers: Readonly<Record<string, number>>;
  readonly cut: number;
}

/** Opens them all; the function that is returned ends them. */
async function openHostile(token: string): Promise<() => Promise<HostileReport>> {
  const script = join(packageRoot, "test", "support", "hostile-sockets.mjs");
  const kinds = [EACH, EACH / 2, EACH / 2].map(String);
  const args = [script, new URL(server.url).port, token, ...kinds];
  // Who means no good does it from machines of its own: what it takes of this one is not what the bus is asked for.
  const child = spawn("nice", ["-n", "19", process.execPath, ...args], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  const lines = createInterface({ input: child.stdout });
  expect(await once(lines, "line")).toEqual(["connected"]);
  return async () => {
    const report = once(lines, "line");
    child.stdin.end();
    return JSON.parse(String((await report)[0])) as HostileReport;
  };
}

test("another producer is served beside 500 slow and 500 idle connections that announce 64 MB", async () => {
  const hostile = await tokenOf("hostile");
  const client = new HttpClient({ url: server.url, token: await tokenOf("other"), connections: 1 });
  let version = 0;
  const sample = async (latencies: number[], samples = SAMPLES) => {
    for (let i = 0; i < samples; i++) {
      version++;
      const events = Array.from({ length: 20 }, (_, k) =>
        encodeEvent({ tenantId: "t", entityType: "scm.v1.File", entityId: `${k}`, operation: 3, version }),
      );
      const started = performance.now();
      const answer = await client.post("/v1/events", "application/x-protobuf", encodeRequest(events));
      latencies.push(performance.now() - started);
      expect(answer.status).toBe(200);
      await sleep(10);
    }
  };
  await sample([]);
  const before = peakBytes(server.process.pid!);
  const [quiet, beside]: [number[], number[]] = [[], []];
  const answers: Record<string, number> = {};
  let cut = 0;
  // One after the other and again, so that both meet the machine's good and bad moments.
  for (let round = 0; round < ROUNDS; round++) {
    await sample(quiet);
    const end = await openHostile(hostile);
    await sample(beside);
    // Long enough for them to be found too slow.
    const until = performance.now() + 2 * loadConfig({}, { env: {} }).http.bodyGraceMs;
    while (round === 0 && performance.now() < until) await sample(beside, 10);
    const report = await end();
    for (const [status, count] of Object.entries(report.answers)) {
      answers[status] = (answers[status] ?? 0) + count;
    }
    cut += report.cut;
  }
  client.close();
  const [p99, own] = [quantile(beside, 0.99), quantile(quiet, 0.99)];
  const grown = peakBytes(server.process.pid!) - before;
  console.log(
    `p99 ${p99.toFixed(1)} ms of ${beside.length} beside them, ${own.toFixed(1)} ms of ${quiet.length} when it is ` +
      `quiet; ${cut} connections cut, answers ${JSON.stringify(answers)}; memory grew by ${Math.round(grown / MiB)} MiB`,
  );
  // What they are told is that they are too slow, and nothing else.
  expect(Object.keys(answers)).toEqual(["408"]);
  expect(answers["408"]).toBeGreaterThan(EACH);
  expect(grown).toBeLessThan(loadConfig({}, { env: {} }).bus.maxInFlightBytes);
  expect(p99).toBeLessThan(3 * Math.max(own, 5));
});
