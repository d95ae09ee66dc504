import { describe, expect, test } from "vitest";
import { FaultyStore } from "../../test/support/faulty-store.js";
import {
  expectedThings,
  fileStore,
  Lake,
  Random,
  randomEvents,
  seeds,
  TestStream,
  temporaryFolder,
} from "../../test/support/lake.js";
import type { ObjectStore } from "../storage/object-store.js";
import { commitKey } from "../table/actions.js";
import { listLog } from "../table/delta-log.js";
import { hintKey } from "../table/log-checkpoint.js";
import { copyLake } from "./lake-copy.js";

const closed = { code: "TRB-LAKE-CLOSED" };
const diverged = { code: "TRB-LAKE-DIVERGED" };

/** A lake on `target`, as a process with the new configuration opens it. */
const moved = (target: ObjectStore) => Lake.create({ checkpointEvery: 3, store: () => target });

describe("a lake that moves while it is written", () => {
  test("has every event once, wherever it landed, and the old one takes nothing any more", async () => {
    for (const seed of seeds(1)) {
      const random = new Random(seed);
      const events = randomEvents(random, 240);
      const stream = new TestStream("log");
      const batches = Array.from({ length: Math.ceil(events.length / 10) }, (_, i) =>
        stream.batch(events.slice(i * 10, (i + 1) * 10)),
      );
      const lake = await Lake.create({ checkpointEvery: 3 });
      const target = await fileStore(temporaryFolder());
      const copy = (close: boolean) =>
        copyLake({ source: lake.context.store, target, duck: lake.context.duck, close });
      try {
        const lane = await lake.lane();
        let copying: Promise<unknown> = Promise.resolve();
        let refused: unknown;
        for (const [i, batch] of batches.entries()) {
          if (i % 5 === 4) {
            await copying;
            copying = copy(i === 14);
          }
          refused = await lane.land(batch).then(
            () => undefined,
            (error: unknown) => error,
          );
          if (refused !== undefined) break;
        }
        expect(refused, `seed ${seed}`).toMatchObject(closed);
        await copying;
        const { closed: done, tables } = await copy(true);
        expect(done, `seed ${seed}`).toBe(true);
        expect(tables.map(({ root }) => root)).toEqual([
          "dead_letters",
          "raw/t.v1.Thing",
          "refined/t/things",
        ]);
        const after = await moved(target);
        try {
          // Its ingest begins where the low-water record stands, which is at the beginning here.
          for (const batch of batches) await after.land(batch);
          expect(await after.rawPositions(), `seed ${seed}`).toEqual([...stream.positions].sort());
          expect(await after.rows(), `seed ${seed}`).toEqual(expectedThings(events));
          // The old one can still be read, and holds what it held.
          await expect(lane.reopen()).rejects.toMatchObject(closed);
          expect((await lake.rawPositions()).length).toBeGreaterThan(100);
          // What has gone on by itself is not copied over.
          await expect(copy(true)).rejects.toMatchObject(diverged);
        } finally {
          await after.close();
        }
      } finally {
        await lake.close();
      }
    }
  });

  test("is whole after faults at any operations of copies, once one is run to its end", async () => {
    for (const seed of seeds(2)) {
      const random = new Random(seed);
      const events = randomEvents(random, 60);
      const stream = new TestStream("log");
      const batches = [stream.batch(events.slice(0, 30)), stream.batch(events.slice(30))];
      const lake = await Lake.create({ checkpointEvery: 3 });
      const target = await fileStore(temporaryFolder());
      const sides = [new FaultyStore(lake.context.store), new FaultyStore(target)] as const;
      try {
        for (const batch of batches) await lake.land(batch);
        const positions = await lake.rawPositions();
        const rows = await lake.rows();
        const copy = (close: boolean) =>
          copyLake({ source: sides[0].store, target: sides[1].store, duck: lake.context.duck, close });
        let struck = 0;
        for (let tries = 0; tries < 12; tries++) {
          const side = sides[random.below(2)]!;
          side.arm(random.below(25), random.chance(0.5) ? "fails" : "happens-and-fails");
          await copy(random.chance(0.7)).catch((error: unknown) =>
            expect(error, `seed ${seed}`).toMatchObject({ code: "TRB-STORE-FAILED" }),
          );
          if (side.disarm()) struck++;
        }
        expect(struck, `seed ${seed}`).toBeGreaterThan(3);
        await copy(true);
        const after = await moved(target);
        expect(await after.rawPositions(), `seed ${seed}`).toEqual(positions);
        expect(await after.rows(), `seed ${seed}`).toEqual(rows);
        await after.close();
      } finally {
        await lake.close();
      }
    }
  });

  test("takes its jobs along as they are at the last copy, whatever they were at the first", async () => {
    const lake = await Lake.create({ checkpointEvery: 3 });
    const target = await fileStore(temporaryFolder());
    const { store: source, duck } = lake.context;
    try {
      await lake.land(new TestStream("log").batch(randomEvents(new Random(7), 5)));
      const state = "jobs/states/a.json";
      for (const [phase, close] of [
        ["landing", false],
        // As long as the other.
        ["waiting", true],
      ] as const) {
        await source.put(state, Buffer.from(phase));
        await copyLake({ source, target, duck, close });
        expect(String(await target.get(state))).toBe(phase);
      }
    } finally {
      await lake.close();
    }
  });

  test("is copied with a log checkpoint in parts, as other engines write them, and no commits before it", async () => {
    const lake = await Lake.create({ checkpointEvery: 3 });
    const folder = temporaryFolder();
    const target = await fileStore(folder);
    const { store, duck } = lake.context;
    const root = "raw/t.v1.Thing";
    try {
      const stream = new TestStream("log");
      const events = randomEvents(new Random(5), 60);
      for (let i = 0; i < 6; i++) await lake.land(stream.batch(events.slice(i * 10, (i + 1) * 10)));
      const positions = await lake.rawPositions();
      const place = { store, root, duck };
      const { commits, checkpoints } = await listLog(place);
      const { version, keys } = checkpoints[0]!;
      const part = keys[0]!.replace(/parquet$/, "0000000001.0000000001.parquet");
      await store.put(part, (await store.get(keys[0]!))!);
      const gone = commits.filter((each) => each <= version).map((each) => commitKey(root, each));
      await store.delete([...checkpoints.flatMap((each) => each.keys), hintKey(root), ...gone]);
      await copyLake({ source: store, target, duck, close: true });
      const after = await moved(target);
      expect(await after.rawPositions()).toEqual(positions);
      await after.close();
    } finally {
      await lake.close();
    }
  });

  test("is no place to make a table in, however late", async () => {
    const lake = await Lake.create();
    const target = await fileStore(temporaryFolder());
    try {
      await copyLake({ source: lake.context.store, target, duck: lake.context.duck, close: true });
      await expect(lake.lane()).rejects.toMatchObject(closed);
    } finally {
      await lake.close();
    }
  });
});

describe("a copy is refused", () => {
  test("onto the lake itself, and to one that is closed", async () => {
    const lake = await Lake.create();
    try {
      const { store, duck } = lake.context;
      await expect(copyLake({ source: store, target: store, duck, close: false })).rejects.toMatchObject(
        diverged,
      );
      const target = await fileStore(temporaryFolder());
      await copyLake({ source: store, target, duck, close: true });
      await expect(copyLake({ source: target, target: store, duck, close: false })).rejects.toMatchObject(
        diverged,
      );
    } finally {
      await lake.close();
    }
  });

  test("when a copied file turns out not to be what it was", async () => {
    const lake = await Lake.create();
    const folder = temporaryFolder();
    const target = await fileStore(folder);
    try {
      const events = randomEvents(new Random(3), 30);
      await lake.land(new TestStream("log").batch(events));
      const copy = (close: boolean) =>
        copyLake({ source: lake.context.store, target, duck: lake.context.duck, close });
      await copy(false);
      let spoilt: string | undefined;
      for await (const { key, bytes } of target.list("raw/")) {
        if (!key.endsWith(".parquet") || key.includes("_delta_log")) continue;
        spoilt = key;
        await target.delete([key]);
        await target.put(key, Buffer.alloc(bytes, 1));
      }
      expect(spoilt).toBeDefined();
      await expect(copy(true)).rejects.toMatchObject({
        code: "TRB-STORE-FAILED",
        message: expect.stringContaining("differs"),
      });
    } finally {
      await lake.close();
    }
  });
});
