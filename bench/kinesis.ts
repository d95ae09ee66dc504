/**
 * What a million events of 700 bytes cost in PUT payload units (25 kB steps of a record, the unit of billing), as our
 * writer aggregates them and one by one, and the writer's CPU per event. The stream is simulated: it takes everything
 * after `--latency` ms. Usage: node dist/bench/kinesis.js [--shards 8] [--latency 20] [--seconds 5]
 */
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { type KinesisClient, PutRecordsCommand } from "@aws-sdk/client-kinesis";
import { SLOTS } from "../services/base/slots.js";
import type { LeaseStore } from "../services/lease/lease-store.js";
import { textTable } from "../services/main/terminal/text-table.js";
import { KinesisWriter } from "../services/stream/kinesis/writer.js";

const { values } = parseArgs({
  options: {
    shards: { type: "string", default: "8" },
    latency: { type: "string", default: "20" },
    seconds: { type: "string", default: "5" },
  },
});
const shards = BigInt(values.shards);
const UNIT = 25 * 1024;
const EVENT_BYTES = 700;
const BODY_EVENTS = 100;
const SIZE = 2n ** 128n / shards;

let records = 0;
let units = 0;
let requests = 0;

async function answer(command: unknown): Promise<object> {
  if (command instanceof PutRecordsCommand) {
    requests++;
    const Records = command.input.Records!.map(({ Data, PartitionKey, ExplicitHashKey }) => {
      units += Math.ceil((Data!.length + PartitionKey!.length) / UNIT);
      return { ShardId: String(BigInt(ExplicitHashKey!) / SIZE), SequenceNumber: String(++records) };
    });
    await sleep(Number(values.latency));
    return { Records };
  }
  const StreamDescriptionSummary = {
    StreamARN: "bench",
    StreamCreationTimestamp: new Date(0),
    RetentionPeriodHours: 24,
  };
  const Shards = Array.from({ length: Number(shards) }, (_, i) => ({
    ShardId: String(i),
    HashKeyRange: {
      StartingHashKey: String(BigInt(i) * SIZE),
      EndingHashKey: String(BigInt(i + 1) * SIZE - 1n),
    },
  }));
  return { StreamDescriptionSummary, Shards };
}

const noLeases: LeaseStore = { list: async () => [], change: async () => [] };
const client = { send: answer } as unknown as KinesisClient;
const rows: string[][] = [];
for (const rate of [500, 2_000, 10_000, 50_000]) {
  const writer = await KinesisWriter.open({ client, stream: "bench", leases: async () => noLeases });
  [records, units, requests] = [0, 0, 0];
  let events = 0;
  const cpu = process.cpuUsage();
  const began = performance.now();
  const appends: Promise<unknown>[] = [];
  while (performance.now() - began < Number(values.seconds) * 1_000) {
    if (events >= ((performance.now() - began) / 1_000) * rate) {
      await sleep(1);
      continue;
    }
    const starts = Uint32Array.from({ length: BODY_EVENTS }, (_, i) => i * EVENT_BYTES);
    appends.push(
      writer.append({
        bytes: Buffer.alloc(BODY_EVENTS * EVENT_BYTES),
        count: BODY_EVENTS,
        starts,
        ends: starts.map((start) => start + EVENT_BYTES),
        slots: starts.map(() => Math.floor(Math.random() * SLOTS)),
      }),
    );
    events += BODY_EVENTS;
  }
  await Promise.all(appends);
  const { user, system } = process.cpuUsage(cpu);
  await writer.close();
  const perMillion = (count: number) => Math.round((count / events) * 1e6).toLocaleString("en");
  rows.push([
    rate.toLocaleString("en"),
    perMillion(units),
    perMillion(events),
    perMillion(records),
    perMillion(requests),
    ((user + system) / events).toFixed(2),
  ]);
}
const heads = ["events/s", "units/M", "units/M, one by one", "records/M", "requests/M", "CPU µs/event"];
process.stdout.write(`${textTable(heads, rows)}\n`);
