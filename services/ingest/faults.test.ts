import { describe, expect, test } from "vitest";
import { eachOperation, type Fault, FaultyStore } from "../../test/support/faulty-store.js";
import {
  expectedThings,
  Lake,
  Random,
  randomEvents,
  type TestEvent,
  TestStream,
} from "../../test/support/lake.js";
import { compactAppended, compactUpserted } from "../table/compact.js";
import { progressOf, trackOf } from "../table/progress.js";
import type { EventBatch } from "./event-batch.js";

const partitionOf = ({ id }: TestEvent) => String(id.length % 3);

/** What a running ingest does with its store: land, compact, land on; log checkpoints every second commit. */
async function run(lake: Lake, batches: readonly EventBatch[]): Promise<void> {
  for (const batch of batches) {
    await lake.land(batch);
    await lake.settled();
    await compact(lake).catch(() => undefined);
  }
}

async function compact(lake: Lake): Promise<void> {
  const { raw, targets } = await lake.lane();
  await lake.context.duck.with(async (connection) => {
    if (raw.snapshot.files.length > 1) {
      await compactAppended(raw, connection, raw.snapshot.files, ["tenant_id", "position"]);
    }
    const { table, writer } = targets[0]!;
    for (const tombstones of [false, true]) {
      const files = table.snapshot.files.filter((file) => file.tombstones === tombstones);
      if (files.length > 1) await compactUpserted(writer, connection, files);
    }
  });
}

/** Raw's rows are exactly the events up to its own positions. */
async function expectRawWhole(lake: Lake, stream: TestStream, note: string): Promise<void> {
  const reached = progressOf((await lake.lane()).raw.snapshot);
  const due = stream.positions.filter((at) => {
    const [name, partition, position] = at.split("/") as [string, string, string];
    return position <= (reached.get(trackOf(name, partition)) ?? "");
  });
  expect(await lake.rawPositions(), note).toEqual(due.sort());
}

/** One run with the fault at operation `at`. False when the run has fewer operations. */
async function round(at: number, fault: Fault, seed: number): Promise<boolean> {
  const random = new Random(seed);
  const events = randomEvents(random, 40);
  const stream = new TestStream();
  const batches = [events.slice(0, 20), events.slice(20)].map((some) => stream.batch(some, partitionOf));
  let faulty: FaultyStore | undefined;
  const wrap = (inner: ConstructorParameters<typeof FaultyStore>[0]) => {
    faulty = new FaultyStore(inner);
    return faulty.store;
  };
  const keyIndexBytes = seed % 2 === 0 ? 0 : 1 << 26;
  const lake = await Lake.create({ store: wrap, checkpointEvery: 2, keyIndexBytes });
  let closing: Promise<unknown> | undefined;
  try {
    await lake.lane();
    faulty!.arm(at, fault);
    const note = () => `seed ${seed}, ${fault} at operation ${at} (${faulty!.victim})`;
    if (fault === "crash") {
      const ended = await Promise.race([run(lake, batches).then(() => true), faulty!.gone.then(() => false)]);
      if (ended) {
        // The process may still die at a log checkpoint that is written beside commits; then nothing closes.
        closing = Promise.race([lake.close(), faulty!.gone]);
        return false;
      }
      await lake.abandon({ store: (inner) => inner });
      await expectRawWhole(lake, stream, note());
    }
    await run(lake, batches);
    const struck = faulty!.disarm();
    expect(await lake.rawPositions(), note()).toEqual([...stream.positions].sort());
    await lake.settled();
    expect(await lake.rows(), note()).toEqual(expectedThings(events));
    return fault === "crash" || struck;
  } finally {
    await (closing ?? lake.close());
  }
}

async function rounds(fault: Fault, seed: number): Promise<void> {
  const reached = await eachOperation((at) => round(at, fault, seed + at));
  expect(reached, "the faults must reach the commits").toBeGreaterThan(20);
}

describe("a fault at any operation on the store", () => {
  for (const fault of ["fails", "happens-and-fails", "crash"] as const) {
    test(
      `${fault}: raw has every event once, refined is what the events say`,
      () => rounds(fault, 100),
      180_000,
    );
  }
});
