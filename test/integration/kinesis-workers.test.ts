import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import { packageRoot } from "../../services/base/paths.js";
import { DynamoLeaseStore } from "../../services/lease/dynamo-lease-store.js";
import { startDynamoDb } from "../servers/dynamodb.js";
import { type KinesisServer, startKinesis } from "../servers/kinesis.js";
import { eventSlices, placesOf } from "../support/event-slices.js";
import { TestStream } from "../support/kinesis.js";

const LEASE_MS = 3_000;

let kinesis: KinesisServer;
let dynamo: Awaited<ReturnType<typeof startDynamoDb>>;
let folder: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "tributary-workers-"));
  [kinesis, dynamo] = await Promise.all([startKinesis(), startDynamoDb()]);
});
afterAll(async () => {
  await kinesis?.stop();
  await dynamo?.stop();
  rmSync(folder, { recursive: true });
});

interface Line {
  readonly at: number;
  readonly assigned?: readonly string[];
  readonly revoked?: readonly string[];
  readonly events?: readonly (readonly [partition: string, position: string, text: string])[];
}

class Worker {
  readonly file: string;
  readonly process: ChildProcess;

  constructor(name: string, stream: TestStream, table: string) {
    this.file = join(folder, `${name}.ndjson`);
    const { stream: streamName, endpoint } = stream;
    const options = {
      endpoint,
      dynamo: dynamo.endpoint,
      stream: streamName,
      table,
      leaseMs: LEASE_MS,
      file: this.file,
    };
    const script = join(packageRoot, "test", "support", "kinesis-worker.mjs");
    this.process = spawn(process.execPath, [script, JSON.stringify(options)], {
      stdio: ["ignore", "inherit", "inherit"],
    });
  }

  get lines(): Line[] {
    if (!existsSync(this.file)) return [];
    const whole = readFileSync(this.file, "utf8").split("\n").slice(0, -1);
    return whole.map((line) => JSON.parse(line) as Line);
  }

  /** Shards it has been told of and not been relieved of. */
  get holds(): Set<string> {
    const held = new Set<string>();
    for (const { assigned = [], revoked = [] } of this.lines) {
      for (const shard of assigned) held.add(shard);
      for (const shard of revoked) held.delete(shard);
    }
    return held;
  }

  async stop(): Promise<void> {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    this.process.kill("SIGCONT");
    this.process.kill("SIGTERM");
    const limit = setTimeout(() => this.process.kill("SIGKILL"), 20_000);
    await once(this.process, "exit");
    clearTimeout(limit);
  }
}

test("splits, a merge, a frozen and a killed worker: every record comes, in order per shard, parents before children", async () => {
  const table = "leases-workers";
  const leases = await DynamoLeaseStore.open({ client: dynamo.client(), table, group: "unused" });
  const stream = await TestStream.create({ endpoint: kinesis.endpoint, leases, shards: 2 });
  const writer = await stream.openWriter();
  const workers = ["a", "b", "c"].map((name) => new Worker(name, stream, table));
  const [a, b, c] = workers as [Worker, Worker, Worker];
  /** By text: where it was accepted. */
  const published = new Map<string, { partition: string; position: string }>();
  let publishing = true;
  const producer = (async () => {
    for (let call = 0; publishing; call++) {
      const names = Array.from({ length: 20 }, (_, i) => `${call}-${i}`);
      const events = eventSlices(
        names.map((name, i) => ({ partition: (call * 7 + i) % 64, bytes: Buffer.from(name) })),
        () => 0,
        64,
      );
      for (const [i, place] of placesOf(await writer.append(events)).entries())
        published.set(names[i]!, place);
      await sleep(60);
    }
  })();
  const delivered = () => {
    const texts = new Set<string>();
    for (const worker of workers) {
      for (const { events = [] } of worker.lines) for (const [, , text] of events) texts.add(text);
    }
    return texts;
  };
  const held = () => new Set(workers.flatMap((worker) => [...worker.holds]));
  const patient = { timeout: 60_000, interval: 200 };
  try {
    await expect.poll(() => held().size, patient).toBe(2);
    const [first, second] = await stream.openShards();
    await stream.split(first!);
    await stream.split(second!);
    // Once the parents are done there are four, shared by three.
    await expect.poll(() => workers.every(({ holds }) => holds.size > 0), patient).toBe(true);

    const frozen = [...b.holds];
    b.process.kill("SIGUSR2");
    const frozenAt = Date.now();
    const others = () => new Set([...a.holds, ...c.holds]);
    await expect.poll(() => frozen.every((shard) => others().has(shard)), patient).toBe(true);
    expect(Date.now() - frozenAt).toBeLessThan(5 * LEASE_MS);
    await sleep(LEASE_MS);
    const [one] = await stream.openShards();
    await stream.split(one!);
    const awakeAt = Date.now();
    b.process.kill("SIGCONT");
    await sleep(2 * LEASE_MS);
    // Before it says that it has lost them, it delivers nothing of what it had.
    const lost = new Set(frozen);
    for (const { at, assigned = [], revoked = [], events = [] } of b.lines) {
      if (at < awakeAt) continue;
      for (const shard of [...revoked, ...assigned]) lost.delete(shard);
      for (const [shard] of events) expect(lost.has(shard) ? `${shard} after waking` : "fine").toBe("fine");
    }

    a.process.kill("SIGKILL");
    const [left, right] = await stream.openShards();
    await stream.merge(left!, right!);
    await sleep(2 * LEASE_MS);
    publishing = false;
    await producer;
    expect(published.size).toBeGreaterThan(500);
    await expect
      .poll(() => [...published.keys()].filter((text) => !delivered().has(text)).length, patient)
      .toBe(0);
  } finally {
    publishing = false;
    await producer.catch(() => undefined);
    await Promise.all(workers.map((worker) => worker.stop()));
  }

  // In order per shard: while a worker has a shard, its positions grow.
  const firstAt = new Map<string, number>();
  for (const { lines } of workers) {
    const last = new Map<string, string>();
    for (const { at, assigned = [], events = [] } of lines) {
      for (const shard of assigned) last.delete(shard);
      for (const [shard, position, text] of events) {
        expect(position > (last.get(shard) ?? "")).toBe(true);
        last.set(shard, position);
        const key = `${shard} ${position}`;
        firstAt.set(key, Math.min(at, firstAt.get(key) ?? Number.POSITIVE_INFINITY));
        // What was accepted stands where the writer said.
        expect(published.get(text)).toEqual({ partition: shard, position });
      }
    }
  }
  // Parents before children: the last event of a parent came before the first of its children.
  const times = new Map<string, { first: number; last: number }>();
  for (const [key, at] of firstAt) {
    const shard = key.split(" ")[0]!;
    const { first, last } = times.get(shard) ?? { first: Number.POSITIVE_INFINITY, last: 0 };
    times.set(shard, { first: Math.min(first, at), last: Math.max(last, at) });
  }
  const shards = await stream.shards();
  expect(shards.length).toBeGreaterThanOrEqual(9);
  let families = 0;
  for (const { ShardId, ParentShardId, AdjacentParentShardId } of shards) {
    for (const parent of [ParentShardId, AdjacentParentShardId]) {
      const [older, younger] = [times.get(parent ?? ""), times.get(ShardId!)];
      if (older === undefined || younger === undefined) continue;
      families++;
      expect(younger.first).toBeGreaterThanOrEqual(older.last);
    }
  }
  expect(families).toBeGreaterThanOrEqual(6);
  await stream.dispose();
});
