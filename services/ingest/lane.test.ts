import { readdir } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { FaultyStore, overriding } from "../../test/support/faulty-store.js";
import { expectedThings, Lake, Random, randomEvents, seeds, TestStream } from "../../test/support/lake.js";
import { TributaryError } from "../base/errors.js";

describe("a lane", () => {
  test("beside another of the same stream (a zombie, a rebalance): nothing is lost, nothing doubled", async () => {
    for (const seed of seeds(2)) {
      const events = randomEvents(new Random(seed), 150);
      const lake = await Lake.create({ checkpointEvery: 3 });
      const twin = await lake.twin();
      try {
        const stream = new TestStream();
        const batches = Array.from({ length: Math.ceil(events.length / 30) }, (_, i) =>
          stream.batch(events.slice(i * 30, (i + 1) * 30), ({ id }) => String(id.length % 2)),
        );
        const lanes = [await lake.lane(), await twin.lane()];
        await Promise.all(
          lanes.map(async (lane) => {
            for (const batch of batches) await lane.land(batch);
          }),
        );
        expect(await lake.rawPositions(), `seed ${seed}`).toEqual([...stream.positions].sort());
        for (const one of [lake, twin]) {
          await one.settled();
          await (await one.target()).table.refresh();
          expect(await one.rows(), `seed ${seed}`).toEqual(expectedThings(events));
        }
      } finally {
        await (await twin.lane()).close();
        twin.context.duck.close();
        await lake.close();
      }
    }
  });

  test("lands nothing after a batch that it gave up: raw has no gap", async () => {
    let faulty: FaultyStore | undefined;
    const lake = await Lake.create({
      store: (inner) => {
        faulty = new FaultyStore(inner);
        return faulty.store;
      },
    });
    try {
      const stream = new TestStream();
      const events = randomEvents(new Random(1), 20);
      const [first, second] = [stream.batch(events.slice(0, 10)), stream.batch(events.slice(10))];
      const lane = await lake.lane();
      faulty!.arm(0, "fails");
      const landings = Promise.allSettled([lane.land(first), lane.land(second)]);
      await lane.close();
      expect((await landings).map(({ status }) => status)).toEqual(["rejected", "rejected"]);
      faulty!.disarm();
      expect(await lake.rawPositions()).toEqual([]);
      await lake.abandon({ store: (inner) => inner });
      for (const batch of [first, second]) await (await lake.lane()).land(batch);
      expect(await lake.rawPositions()).toEqual([...stream.positions].sort());
      expect(await lake.rows()).toEqual(expectedThings(events));
    } finally {
      await lake.close();
    }
  });

  test("ends when log checkpoints of all its table objects are written, and leaves nothing in staging", async () => {
    for (const seat of ["raw/", "refined/"]) {
      const lake = await Lake.create({
        checkpointEvery: 1,
        store: (inner) =>
          overriding(inner, {
            adopt: async (files) => {
              if (files.some(({ key }) => key.startsWith(seat) && key.includes("checkpoint")))
                await sleep(100);
              await inner.adopt(files);
            },
          }),
      });
      try {
        const lane = await lake.lane();
        await lake.settled();
        await lane.land(new TestStream().batch(randomEvents(new Random(3), 10)));
        // What is written for the object before goes on beside the new one.
        if (seat === "raw/") await lane.reopen();
        await lane.close();
        expect(await readdir(lake.context.store.staging), seat).toEqual([]);
        lake.forget();
      } finally {
        await lake.close();
      }
    }
  });

  test("drops what its table has: the same batches again change nothing", async () => {
    const events = randomEvents(new Random(2), 40);
    const lake = await Lake.create();
    try {
      const stream = new TestStream();
      const batches = [stream.batch(events.slice(0, 20)), stream.batch(events.slice(20))];
      const lane = await lake.lane();
      for (const batch of [...batches, ...batches, batches[0]!]) await lane.land(batch);
      expect(await lake.rawPositions()).toEqual([...stream.positions].sort());
      expect(lane.raw.snapshot.version).toBe(2);
    } finally {
      await lake.close();
    }
  });
});

describe("the table of a model", () => {
  test("refuses a column of a type that Delta lacks, by name", async () => {
    const from = "from {{ source('raw', 't.v1.Thing') }}";
    const sql = `select tenant_id, entity_id, payload.amount::UBIGINT as unsigned_amount ${from}`;
    const refused = await Lake.create({ models: { things: sql } }).catch((error: unknown) => error);
    expect(refused).toBeInstanceOf(TributaryError);
    expect(refused).toMatchObject({ code: "TRB-MODEL-INVALID" });
    expect((refused as TributaryError).message).toMatch(/t\.things.*unsigned_amount.*UBIGINT/);
  });
});
