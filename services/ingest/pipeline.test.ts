import { rmSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, describe, expect, test, vi } from "vitest";
import { overriding } from "../../test/support/faulty-store.js";
import {
  expectedThings,
  type Lake,
  type LakeOptions,
  Random,
  randomEvents,
  THING,
} from "../../test/support/lake.js";
import { MemoryReader } from "../../test/support/memory-reader.js";
import { breakable, pipelineLake, publishTo, startPipeline, until } from "../../test/support/pipeline-run.js";
import { TributaryError } from "../base/errors.js";
import { ProgressTracker } from "./progress-tracker.js";

const lakes: Lake[] = [];
afterEach(async () => {
  for (const lake of lakes.splice(0)) {
    await lake.close().catch(() => undefined);
    rmSync(lake.folder, { recursive: true, force: true });
  }
});

async function makeLake(options: LakeOptions): Promise<Lake> {
  const lake = await pipelineLake(options);
  lakes.push(lake);
  return lake;
}

describe("a log that was restored from an older copy than the lake", () => {
  test("gives positions again: events are not taken for those that raw has at them, but kept and told of", async () => {
    const lake = await makeLake({});
    const reader = new MemoryReader("test");
    const events = randomEvents(new Random(7), 60);
    const first = startPipeline(lake, reader);
    const positions = publishTo(reader, events.slice(0, 30));
    await until("the first to land", () => reader.caughtUp);
    await first.stop();
    reader.setBack(20);
    await lake.reopen();
    const second = startPipeline(lake, reader);
    const { health } = lake.context;
    publishTo(reader, events.slice(30, 35));
    await until("it to be told", () => health.get("raw", THING) !== undefined);
    const told = { state: "quarantined", code: "TRB-STREAM-CORRUPT", remedy: /^restore from a copy/ };
    expect(health.get("raw", THING)).toMatchObject({ ...told, remedy: expect.stringMatching(told.remedy) });
    // Also once the log is past what raw has.
    publishTo(reader, events.slice(35));
    await until("the rest to be parked", () => reader.caughtUp);
    second.pipeline.hurry();
    await sleep(300);
    expect(health.get("raw", THING)).toMatchObject({ state: "quarantined", code: "TRB-STREAM-CORRUPT" });
    await second.stop();
    expect(await lake.rawPositions()).toEqual([...positions].sort());
  });
});

describe("a pipeline that has ended", () => {
  test("takes nothing from a stream that lets it in late", async () => {
    let lists = 0;
    const store: LakeOptions["store"] = (inner) =>
      overriding(inner, {
        list: (...asked) => {
          lists++;
          return inner.list(...asked);
        },
      });
    const lake = await makeLake({ store });
    const { pipeline, stop } = startPipeline(lake, new MemoryReader("test"));
    await pipeline.joined;
    await stop();
    const before = lists;
    expect(before).toBeGreaterThan(0);
    const holds = vi.spyOn(lake.context.health, "holds");
    pipeline.assigned([{ name: "0", slots: { start: 0, end: 1 } }]);
    await sleep(50);
    expect(lists).toBe(before);
    expect(holds).not.toHaveBeenCalled();
  });
});

describe("a raw table that cannot land", () => {
  test("has its events parked: the stream is free of them, and they land in order once it can", async () => {
    const state = { down: false };
    const lake = await makeLake({ store: breakable(state) });
    const reader = new MemoryReader("test");
    const events = randomEvents(new Random(3), 200);
    const { pipeline, stop } = startPipeline(lake, reader);
    const positions = publishTo(reader, events.slice(0, 50));
    await until("the first to land", () => reader.caughtUp);
    state.down = true;
    for (let at = 50; at < 150; at += 10) {
      positions.push(...publishTo(reader, events.slice(at, at + 10)));
      await sleep(20);
    }
    await until("the rest to be parked", () => reader.caughtUp);
    const { health } = lake.context;
    expect(health.get("raw", THING)).toMatchObject({
      state: "quarantined",
      code: "TRB-STORE-FAILED",
      remedy: `tributary table repair raw/${THING}`,
      held: false,
    });
    expect(health.get("raw", THING)!.parkedBytes).toBeGreaterThan(1000);
    expect(await lake.rawPositions()).toEqual(positions.slice(0, 50).sort());
    state.down = false;
    positions.push(...publishTo(reader, events.slice(150)));
    pipeline.hurry();
    await until("it to be well", () => reader.caughtUp && health.get("raw", THING) === undefined);
    await stop();
    expect(await lake.rawPositions()).toEqual([...positions].sort());
    expect(await lake.rows()).toEqual(expectedThings(events));
  });

  test("holds its type's events back only once its budget is used up, and what comes yet is parked too", async () => {
    const state = { down: true };
    const lake = await makeLake({ ingest: { parkedBytes: 3_000 } });
    await lake.reopen({ store: breakable(state) });
    // The table is there: only its commits fail.
    const reader = new MemoryReader("test");
    const { stop, pipeline } = startPipeline(lake, reader);
    const { health } = lake.context;
    const events = randomEvents(new Random(4), 400);
    publishTo(reader, events.slice(0, 4));
    await until("some to be parked", () => reader.caughtUp);
    expect(health.get("raw", THING)?.held).toBe(false);
    publishTo(reader, events.slice(4));
    await until("all to be parked", () => reader.caughtUp);
    expect(health.get("raw", THING)).toMatchObject({ held: true });
    state.down = false;
    pipeline.hurry();
    await until("it to be well", () => health.get("raw", THING) === undefined);
    await stop();
    expect(await lake.rows()).toEqual(expectedThings(events));
  });
});

describe("a raw table that is slow", () => {
  test("has what lands and what waits behind it parked, in this order, so that reading goes on", async () => {
    let hold: Promise<void> | undefined;
    let release: () => void = () => undefined;
    const lake = await makeLake({ ingest: { flushBytes: 4_000, parkedBytes: 5_000 } });
    await lake.reopen({
      store: (inner) =>
        overriding(inner, {
          adopt: async (files) => {
            if (files.some(({ key }) => key.startsWith("raw/"))) await hold;
            return inner.adopt(files);
          },
        }),
    });
    const reader = new MemoryReader("test");
    const { stop } = startPipeline(lake, reader);
    const events = randomEvents(new Random(6), 300);
    const positions = publishTo(reader, events.slice(0, 10));
    await until("the first to land", () => reader.caughtUp);
    hold = new Promise((resolve) => {
      release = resolve;
    });
    positions.push(...publishTo(reader, events.slice(10, 30)));
    await sleep(100);
    positions.push(...publishTo(reader, events.slice(30)));
    // Nothing lands meanwhile; the stream forgets it all the same.
    await until("the rest to be parked", () => reader.caughtUp);
    expect((await lake.rawPositions()).length).toBe(10);
    // It may hang for ever: its producers are held back as those of one that fails.
    const { health } = lake.context;
    expect(health.get("raw", THING)).toMatchObject({ state: "catching-up", held: true });
    release();
    hold = undefined;
    await until("all to land", async () => (await lake.rawPositions()).length === positions.length);
    await until("it to be well", () => health.get("raw", THING) === undefined);
    await stop();
    expect(await lake.rawPositions()).toEqual([...positions].sort());
    expect(await lake.rows()).toEqual(expectedThings(events));
  });
});

describe("events that are none", () => {
  test("are parked while the dead-letter table cannot take them, and hold up nobody", async () => {
    const state = { down: true };
    const lake = await makeLake({});
    await lake.reopen({
      store: (inner) =>
        overriding(inner, {
          putIfAbsent: async (key, bytes) => {
            if (state.down && key.startsWith("dead_letters/")) throw new TributaryError("TRB-STORE-FAILED");
            return inner.putIfAbsent(key, bytes);
          },
        }),
    });
    const reader = new MemoryReader("test");
    const events = randomEvents(new Random(5), 40);
    const { stop, pipeline } = startPipeline(lake, reader);
    publishTo(reader, events.slice(0, 20));
    reader.append(0, Buffer.from("no event"));
    publishTo(reader, events.slice(20));
    reader.append(1, Buffer.alloc(0));
    await until("all to land or be parked", () => reader.caughtUp);
    const { health } = lake.context;
    expect(health.get("dead-letters", "dead_letters")).toMatchObject({ state: "quarantined" });
    expect(await lake.rows()).toEqual(expectedThings(events));
    state.down = false;
    pipeline.hurry();
    await until("the letters", () => health.get("dead-letters", "dead_letters") === undefined);
    await stop();
    expect(await lake.deadLetters()).toHaveLength(2);
  });
});

describe("events without a single byte", () => {
  test("count for memory: reading waits for the dead letters to take them", async () => {
    let release: () => void = () => undefined;
    const hanging = new Promise<void>((resolve) => {
      release = resolve;
    });
    const lake = await makeLake({ ingest: { flushEvents: 10, flushBytes: 4_000 } });
    await lake.reopen({
      store: (inner) =>
        overriding(inner, {
          adopt: async (files) => {
            await hanging;
            return inner.adopt(files);
          },
          put: async (key, bytes) => {
            if (key.startsWith("parked/")) await hanging;
            return inner.put(key, bytes);
          },
        }),
    });
    const reader = new MemoryReader("test");
    for (let i = 0; i < 300; i++) reader.append(0, Buffer.alloc(0));
    const begin = vi.spyOn(ProgressTracker.prototype, "begin");
    const { stop } = startPipeline(lake, reader);
    await until("some to be read", () => begin.mock.calls.length > 0);
    await sleep(300);
    expect(begin.mock.calls.length).toBeLessThan(10);
    begin.mockRestore();
    release();
    // Some by way of what was parked.
    await until("all to be dead letters", async () => (await lake.deadLetters()).length === 300);
    await stop();
  });
});

describe("an engine that is gone", () => {
  test.each(["raw/", "refined/", "dead_letters/"])(
    "ends ingest, which a new process follows, though only %s meets it",
    async (table) => {
      const words = "FATAL Error: Failed: database has been invalidated because of a previous fatal error.";
      const lake = await makeLake({
        store: (inner) =>
          overriding(inner, {
            putIfAbsent: async (key, bytes) => {
              if (key.startsWith(table)) throw new Error(words);
              return inner.putIfAbsent(key, bytes);
            },
          }),
      });
      const reader = new MemoryReader("test");
      const { done } = startPipeline(lake, reader);
      publishTo(reader, randomEvents(new Random(7), 3));
      reader.append(0, Buffer.from("no event"));
      await expect(done).rejects.toThrow();
    },
  );
});
