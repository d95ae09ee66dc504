import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { textTable } from "../services/main/terminal/text-table.js";
import { landed, orderTo, tokenFor } from "./end-to-end.js";
import { BenchServer, benchFolder, Load } from "./processes.js";
import { RemoteServices } from "./remote-services.js";

/**
 * 1, 2 and 4 processes of `tributary ingest` on Kafka's partitions and one lake in S3, without a shared disk, while a bus
 * takes in events as fast as it can: how evenly they share the work, what was thrown away and done again because another
 * was faster, the slowest landing, and their CPU. Starts Kafka and S3 by itself.
 */
const { values: options } = parseArgs({
  options: {
    events: { type: "string", default: "150000" },
    partitions: { type: "string", default: "8" },
    workers: { type: "string", default: "1,2,4" },
    "delay-ms": { type: "string", default: "0" },
  },
});
const partitions = Number(options.partitions);
const root = benchFolder("workers");
const WARM_EVENTS = 10_000;

interface Told {
  readonly events: number;
  readonly commits: number;
  readonly redone: number;
  /** Upper bound of a bucket, in seconds → landings that took no longer. */
  readonly landings: ReadonlyMap<number, number>;
}

/** Samples of a metric in the text exposition format, by their labels. */
function samples(text: string, name: string): [string, number][] {
  return text
    .split("\n")
    .filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `))
    .map((line) => [
      line.slice(name.length, line.lastIndexOf(" ")),
      Number(line.slice(line.lastIndexOf(" "))),
    ]);
}

const sum = (values: readonly number[]): number => values.reduce((total, value) => total + value, 0);

async function tell(worker: BenchServer, data: string): Promise<Told> {
  // What stands in the tables is counted a moment later.
  await sleep(1_000);
  const answer = await fetch(`${worker.url}/metrics`, {
    headers: { authorization: `Bearer ${await tokenFor(data, "operator")}` },
  });
  const text = await answer.text();
  const total = (name: string) => sum(samples(text, name).map(([, value]) => value));
  const landings = new Map<number, number>();
  for (const [labels, count] of samples(text, "tributary_ingest_land_seconds_bucket")) {
    const bound = Number(/le="([^"]+)"/.exec(labels)![1]!.replace("+Inf", "Infinity"));
    landings.set(bound, (landings.get(bound) ?? 0) + count);
  }
  return {
    events: total("tributary_ingest_events_total"),
    commits: total("tributary_ingest_commits_total"),
    redone: total("tributary_ingest_conflicts_total"),
    landings,
  };
}

/** Bound of the bucket that the slowest landing between the two fell into, in seconds. */
function slowest(before: Told, after: Told): number {
  const bounds = [...after.landings.keys()].sort((a, b) => a - b);
  const since = (bound: number) => after.landings.get(bound)! - (before.landings.get(bound) ?? 0);
  return bounds.find((bound) => since(bound) === since(Number.POSITIVE_INFINITY)) ?? 0;
}

async function round(services: RemoteServices, count: number) {
  const { env, direct } = await services.fresh(`bench-${count}`);
  const folder = join(root, String(count));
  const bus = await BenchServer.start("bus", join(folder, "bus"), env);
  const places = Array.from({ length: count }, (_, i) => join(folder, `worker-${i}`));
  const workers = await Promise.all(places.map((data) => BenchServer.start("ingest", data, env)));
  const order = await orderTo(bus, join(folder, "bus"), Number(options.events));
  // The last one that joined has its share, and lanes are open everywhere.
  await sleep(5_000);
  await (await Load.prepare({ ...order, events: WARM_EVENTS, seed: 3 })).run();
  await landed(join(folder, "checker"), direct, 200);
  const load = await Load.prepare(order);
  const cold = await Promise.all(workers.map((worker, i) => tell(worker, places[i]!)));
  const cpu = () => workers.map((worker) => worker.cpu()).map(({ own, below }) => own + below);
  const before = cpu();
  const started = performance.now();
  const report = await load.run();
  await landed(join(folder, "checker"), direct, 200);
  const seconds = (performance.now() - started) / 1000;
  const used = cpu().map((after, i) => ((after - before[i]!) * 1e6) / report.events);
  const told = await Promise.all(workers.map((worker, i) => tell(worker, places[i]!)));
  await Promise.all([bus.stop(), ...workers.map((worker) => worker.stop())]);
  const grown = (of: (one: Told) => number) => told.map((one, i) => of(one) - of(cold[i]!));
  const events = grown((one) => one.events);
  const commits = sum(grown((one) => one.commits));
  return {
    count,
    rate: report.events / seconds,
    share: Math.max(...events) / (sum(events) / count),
    events,
    used,
    commits,
    redone: sum(grown((one) => one.redone)),
    slowest: Math.max(...told.map((one, i) => slowest(cold[i]!, one))),
  };
}

const services = await RemoteServices.start({ partitions, delayMs: Number(options["delay-ms"]) });
try {
  const rounds: Awaited<ReturnType<typeof round>>[] = [];
  for (const count of options.workers.split(",")) rounds.push(await round(services, Number(count)));
  console.log(
    textTable(
      [
        "workers",
        "events/s",
        "events by worker",
        "CPU µs/event by worker",
        "in all",
        "commits",
        "redone",
        "landing ≤ s",
      ],
      rounds.map((one) => [
        one.count,
        Math.round(one.rate),
        one.events.join(" "),
        one.used.map((micros) => micros.toFixed(1)).join(" "),
        sum(one.used).toFixed(1),
        one.commits,
        one.redone,
        one.slowest,
      ]),
    ),
  );
  console.log();
  for (const one of rounds.filter(({ count }) => count > 1)) {
    console.log(
      `ratio of the busiest of ${one.count} workers to the mean, in events: ${one.share.toFixed(2)} (goal ≤ 1.2)`,
    );
  }
  const commits = sum(rounds.map((one) => one.commits));
  const redone = (sum(rounds.map((one) => one.redone)) * 1000) / commits;
  console.log(`batches redone by 1,000 commits: ${redone.toFixed(1)} (goal ≤ 5), of ${commits} commits`);
  console.log(`slowest landing, in s: ≤ ${Math.max(...rounds.map((one) => one.slowest))} (goal ≤ 5)`);
} finally {
  await services.stop();
}
