import { join } from "node:path";
import { parseArgs } from "node:util";
import { textTable } from "../services/main/terminal/text-table.js";
import { type EndToEnd, endToEnd, orderTo } from "./end-to-end.js";
import { BenchServer, benchFolder } from "./processes.js";
import { RemoteServices } from "./remote-services.js";

/**
 * End to end on Kafka and S3 against the embedded log and files: the same events, run after run in turns, CPU
 * microseconds an event in our own processes; and what S3 was asked for, by table. Starts Kafka and S3 by itself.
 */
const { values: options } = parseArgs({
  options: {
    events: { type: "string", default: "200000" },
    "event-bytes": { type: "string", default: "700" },
    nodes: { type: "string", default: "1" },
    partitions: { type: "string", default: "4" },
    rounds: { type: "string", default: "3" },
  },
});
const root = benchFolder("remote");
/** Looking asks S3. */
const LOOK_MS = { embedded: 10, remote: 200 } as const;
const WARM_EVENTS = 10_000;

async function run(name: string, env: NodeJS.ProcessEnv, direct: NodeJS.ProcessEnv, lookMs: number) {
  const data = join(root, name);
  const up = await BenchServer.start("up", data, env);
  const eventBytes = Number(options["event-bytes"]);
  const order = { ...(await orderTo(up, data, Number(options.events))), eventBytes };
  // Lanes open, code is compiled: what is measured is the flow.
  await endToEnd(up, data, { ...order, events: WARM_EVENTS, seed: 3 }, direct, lookMs);
  services.ledger.restart();
  const result = await endToEnd(up, data, order, direct, lookMs);
  await up.stop();
  return result;
}

const ours = ({ cpu }: EndToEnd): number => cpu.bus + cpu.ingest;
const median = (values: readonly number[]) => values.toSorted((a, b) => a - b)[values.length >> 1]!;

const services = await RemoteServices.start({
  nodes: options.nodes === "3" ? 3 : 1,
  partitions: Number(options.partitions),
});
const rows: (string | number)[][] = [];
const ratios: number[] = [];
let verdicts: string[] = [];
try {
  for (let round = 0; round < Number(options.rounds); round++) {
    const embedded = await run(`embedded-${round}`, {}, {}, LOOK_MS.embedded);
    const { env, direct } = await services.fresh(`bench-${round}`);
    const remote = await run(`remote-${round}`, env, direct, LOOK_MS.remote);
    ratios.push(ours(remote) / ours(embedded));
    for (const [name, one] of [
      ["embedded + files", embedded],
      ["Kafka + S3", remote],
    ] as const) {
      const { bus, ingest } = one.cpu;
      rows.push([
        name,
        Math.round(one.report.events / one.seconds),
        bus.toFixed(1),
        ingest.toFixed(1),
        one.report.retries,
      ]);
    }
    const { ledger } = services;
    const [raw, refined] = [ledger.perCommit("raw"), ledger.perCommit("refined")];
    const { requests, dollars } = ledger.perMillion(remote.report.events);
    verdicts = [
      `requests a raw commit: ${raw.requests.toFixed(2)} (goal ≤ 3), ${raw.commits} commits`,
      `requests a refined commit: ${refined.requests.toFixed(2)} (goal ≤ 5), ${refined.commits} commits`,
      `S3 by a million events, at this rate: ${Math.round(requests)} requests, $${dollars.toFixed(4)}`,
    ];
  }
  console.log(textTable(["", "events/s", "bus CPU µs", "ingest CPU µs", "429"], rows));
  console.log(`\n${services.ledger.table()}\n`);
  console.log(
    `ratio of CPU µs an event, Kafka + S3 / embedded: ${median(ratios).toFixed(2)} (goal ≤ 1.7); rounds ${ratios.map((ratio) => ratio.toFixed(2)).join(", ")}`,
  );
  for (const verdict of verdicts) console.log(verdict);
} finally {
  await services.stop();
}
