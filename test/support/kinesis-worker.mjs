// One consumer in a process of its own, for tests that stop, freeze and kill it. Runs what `npm run build` has made.
// argv: JSON with endpoint, dynamo, stream, table, leaseMs and the file that it writes lines of JSON to.
import { openSync, writeSync } from "node:fs";
import { pino } from "pino";
import { connectDynamo } from "../../dist/services/lease/connect-dynamo.js";
import { DynamoLeaseStore } from "../../dist/services/lease/dynamo-lease-store.js";
import { connectKinesis } from "../../dist/services/stream/kinesis/connect.js";
import { KinesisReader } from "../../dist/services/stream/kinesis/reader.js";

const { endpoint, dynamo, stream, table, leaseMs, file } = JSON.parse(process.argv[2]);
const out = openSync(file, "a");
const say = (line) => writeSync(out, `${JSON.stringify(line)}\n`);
const reader = await KinesisReader.open({
  client: connectKinesis({ endpoint, answerMs: 60_000 }),
  stream,
  leases: (group) => DynamoLeaseStore.open({ client: connectDynamo({ endpoint: dynamo }), table, group }),
  log: pino({ level: "silent" }),
  leaseMs,
});
const done = new Map();
const consumer = await reader.consume("c", {
  assigned: (partitions) => say({ at: Date.now(), assigned: partitions.map(({ name }) => name) }),
  revoked: async (names) => {
    say({ at: Date.now(), revoked: names });
    await consumer?.commit(done).catch(() => undefined);
    for (const name of names) done.delete(name);
  },
});
let stopping = false;
process.on("SIGTERM", () => {
  stopping = true;
});
// Freezes between two deliveries: within one, what had been checked before would come out after waking.
process.on("SIGUSR2", () => process.kill(process.pid, "SIGSTOP"));
say({ at: Date.now(), ready: true });
while (!stopping) {
  const batch = await consumer.read({ maxEvents: 500, maxBytes: 1e6, waitMs: 200 });
  const at = Date.now();
  if (batch === undefined) continue;
  const events = batch.positions.map((position, i) => {
    const partition = batch.names[batch.partitions[i]];
    done.set(partition, position);
    return [partition, position, batch.bytes.toString("latin1", batch.starts[i], batch.ends[i])];
  });
  say({ at, events });
  // Its failures are those of leases that are gone.
  consumer.commit(new Map(done)).catch(() => undefined);
}
await reader.close();
say({ at: Date.now(), closed: true });
process.exit(0);
