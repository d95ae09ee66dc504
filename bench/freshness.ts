import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { landed, orderTo, tokenFor } from "./end-to-end.js";
import { BenchServer, benchFolder, Load } from "./processes.js";
import { RemoteServices } from "./remote-services.js";

/**
 * How old an event is when its refined commit stands in S3, under a steady load and with latency injected into each
 * request: events posted one by one beside the load, from their acknowledgement to the answer of the put that made the
 * first commit at or beyond their position. And what S3 was asked for at this rate, by commit and by a million events.
 * Starts Kafka and S3 by itself.
 */
const { values: options } = parseArgs({
  options: {
    rate: { type: "string", default: "5000" },
    "delay-ms": { type: "string", default: "20" },
    seconds: { type: "string", default: "60" },
    "warm-seconds": { type: "string", default: "10" },
    partitions: { type: "string", default: "4" },
  },
});
const rate = Number(options.rate);
const seconds = Number(options.seconds);
const warmSeconds = Number(options["warm-seconds"]);
const PROBE_EVERY_MS = 25;
const ROOT = "refined/tracker/issues";

interface Probe {
  readonly partition: string;
  readonly position: string;
  readonly sentAt: number;
  readonly ackedAt: number;
}

const root = benchFolder("freshness");
const services = await RemoteServices.start({
  partitions: Number(options.partitions),
  delayMs: Number(options["delay-ms"]),
});
const { ledger } = services;
const commits: { readonly at: number; readonly positions: ReadonlyMap<string, string> }[] = [];
ledger.committed = ({ root: table, at, domains }) => {
  if (table !== ROOT) return;
  const positions = new Map<string, string>();
  for (const [domain, configuration] of domains) {
    if (!domain.startsWith("tributary.pos.")) continue;
    const { position } = JSON.parse(configuration) as { position: string };
    positions.set(domain.slice(domain.lastIndexOf(".") + 1), position);
  }
  commits.push({ at, positions });
};

async function probe(url: string, token: string, number: number): Promise<Probe | undefined> {
  const key = `FRESH-${number}`;
  const event = {
    tenantId: "freshness",
    entityType: "tracker.v1.Issue",
    entityId: key,
    operation: "OPERATION_CREATED",
    version: "1",
    payload: { "@type": "type.googleapis.com/tracker.v1.Issue", key },
  };
  const sentAt = performance.now();
  const answer = await fetch(`${url}/v1/events`, {
    method: "POST",
    headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
    body: JSON.stringify([event]),
  });
  const { results } = (await answer.json()) as {
    results?: readonly { readonly partition: string; readonly position: string }[];
  };
  // One that is refused for lack of room is no event.
  if (!answer.ok || results === undefined) return undefined;
  const { partition, position } = results[0]!;
  return { partition, position, sentAt, ackedAt: performance.now() };
}

function quantiles(what: string, values: number[]): readonly [string, number] {
  values.sort((a, b) => a - b);
  const at = (share: number) => values[Math.min(values.length - 1, Math.floor(values.length * share))]!;
  const shown = [0.5, 0.9, 0.99].map((share) => `p${share * 100} ${Math.round(at(share))}`).join(", ");
  return [`${what}: ${shown}, max ${Math.round(values.at(-1)!)} ms, of ${values.length}`, at(0.99)];
}

try {
  const { env, direct } = await services.fresh("bench-freshness");
  const data = join(root, "data");
  const up = await BenchServer.start("up", data, env);
  const token = await tokenFor(data, "producer");
  const load = await Load.prepare({
    ...(await orderTo(up, data, rate * (warmSeconds + seconds))),
    eventsPerSecond: rate,
  });
  const before = up.cpu();
  const running = load.run();
  await sleep(warmSeconds * 1000);
  ledger.restart();
  const asked: Promise<Probe | undefined>[] = [];
  for (let end = performance.now() + seconds * 1000; performance.now() < end; ) {
    asked.push(probe(up.url, token, asked.length));
    await sleep(PROBE_EVERY_MS);
  }
  const report = await running;
  const probes = (await Promise.all(asked)).filter((one) => one !== undefined);
  await landed(data, direct, 200);
  const after = up.cpu();
  await up.stop();
  const fresh = (of: (one: Probe) => number) =>
    probes.map((one) => {
      const commit = commits.find(({ positions }) => (positions.get(one.partition) ?? "") >= one.position);
      if (commit === undefined) throw new Error(`no commit at or beyond ${one.partition}/${one.position}`);
      return commit.at - of(one);
    });
  const events = report.events + probes.length;
  console.log(`${ledger.table()}\n`);
  const perEvent = (used: number) => ((used * 1e6) / events).toFixed(1);
  console.log(
    `${Math.round(report.events / report.seconds)} events/s; CPU µs an event: bus ${perEvent(after.own - before.own)}, ingest ${perEvent(after.below - before.below)}; ${report.retries} answers of 429`,
  );
  console.log(
    quantiles(
      "sent to committed",
      fresh(({ sentAt }) => sentAt),
    )[0],
  );
  const [line, p99] = quantiles(
    "acknowledged to committed",
    fresh(({ ackedAt }) => ackedAt),
  );
  console.log(line);
  const { raw, refined } = { raw: ledger.perCommit("raw"), refined: ledger.perCommit("refined") };
  const { requests, dollars } = ledger.perMillion(rate * seconds + probes.length);
  console.log(
    `ratio of freshness p99 to a second, at ${rate} events/s and ${options["delay-ms"]} ms a request: ${(p99 / 1000).toFixed(2)} (goal ≤ 1)`,
  );
  console.log(`requests a raw commit: ${raw.requests.toFixed(2)} (goal ≤ 3), ${raw.commits} commits`);
  console.log(
    `requests a refined commit: ${refined.requests.toFixed(2)} (goal ≤ 5), ${refined.commits} commits`,
  );
  console.log(
    `S3 by a million events at ${rate} events/s: ${Math.round(requests)} requests, $${dollars.toFixed(3)} (list prices of 2025-11; bytes and deletes not counted)`,
  );
} finally {
  await services.stop();
}
