import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import type { FileOps, OpenFile } from "../../services/base/files.js";
import { layout } from "../../services/base/paths.js";
import { overriding } from "../support/faulty-store.js";
import { Random, randomEvents, seeds, THING, unsyncedFiles } from "../support/lake.js";
import { MemoryReader } from "../support/memory-reader.js";
import { breakable, pipelineLake, publishTo, startPipeline, until } from "../support/pipeline-run.js";

/** Everything that a process does to the world passes here, until it dies at one of the steps. */
class Doom {
  count = 0;
  dead = false;
  private tell: () => void = () => undefined;
  readonly gone = new Promise<void>((resolve) => {
    this.tell = resolve;
  });

  constructor(private readonly at: number) {}

  async step<T>(run: () => Promise<T>, torn: () => Promise<unknown> = async () => undefined): Promise<T> {
    const never = new Promise<never>(() => undefined);
    if (this.dead) return never;
    if (this.count++ !== this.at) return run();
    this.dead = true;
    await torn();
    this.tell();
    return never;
  }

  files(): FileOps {
    const wrap = (file: OpenFile): OpenFile => ({
      read: (into, at) => this.step(() => file.read(into, at)),
      write: (from, at) =>
        this.step(
          () => file.write(from, at),
          () => file.write(from.subarray(0, from.length >> 1), at),
        ),
      truncate: (bytes) => this.step(() => file.truncate(bytes)),
      dataSync: () => this.step(() => file.dataSync()),
      size: () => file.size(),
      close: () => file.close(),
    });
    return {
      ...unsyncedFiles,
      open: (path, how) => this.step(async () => wrap(await unsyncedFiles.open(path, how))),
      unlink: (path) => this.step(() => unsyncedFiles.unlink(path)),
      makeFolder: (path) => this.step(() => unsyncedFiles.makeFolder(path)),
      syncFolder: (path) => this.step(() => unsyncedFiles.syncFolder(path)),
    };
  }
}

describe("a process that dies at any step of parking and landing", () => {
  /** Fails, parks, heals, drains; dies at step `at`. False when it has fewer steps. */
  const round = async (at: number, seed: number): Promise<boolean> => {
    const random = new Random(seed);
    const events = randomEvents(random, 60);
    const state = { down: false };
    const doom = new Doom(at);
    const reader = new MemoryReader("test");
    reader.beforeCommit = () => doom.step(async () => undefined);
    const lake = await pipelineLake({});
    await lake.reopen({
      files: doom.files(),
      store: (inner) => {
        const broken = breakable(state)(inner);
        return overriding(broken, {
          putIfAbsent: (key, bytes) => doom.step(() => broken.putIfAbsent(key, bytes)),
          adopt: (files) => doom.step(() => broken.adopt(files)),
          delete: (keys) => doom.step(() => broken.delete(keys)),
        });
      },
    });
    const note = `seed ${seed}, step ${at}`;
    const first = startPipeline(lake, reader);
    const healAt = 20 + random.below(30);
    const downAt = random.below(20);
    const life = (async () => {
      for (let i = 0; i < 50; i += 5) {
        if (i <= downAt && downAt < i + 5) state.down = true;
        if (i <= healAt && healAt < i + 5) {
          // Some are parked by then, and some come while those land.
          await sleep(300);
          state.down = false;
        }
        publishTo(reader, events.slice(i, i + 5));
        await sleep(random.below(15));
      }
      first.pipeline.hurry();
      await until("all to land", () => reader.caughtUp, 30_000);
      await until("it to be well", () => lake.context.health.get("raw", THING) === undefined, 30_000);
    })();
    const crashed = await Promise.race([life.then(() => false), doom.gone.then(() => true)]);
    if (!crashed) await first.stop();
    life.catch(() => undefined);
    state.down = false;
    // What was acknowledged after the crash is in the stream as well.
    publishTo(reader, events.slice(50));
    reader.beforeCommit = async () => undefined;
    await lake.abandon({ store: (inner) => inner, files: unsyncedFiles });
    const second = startPipeline(lake, reader);
    await until(`${note}: all to land after the crash`, () => reader.caughtUp, 30_000);
    // What is parked counts as settled for the stream; it is in raw once its log is gone.
    const parked = join(layout(lake.folder).parked, THING);
    await until(`${note}: nothing parked`, () => !existsSync(parked) || readdirSync(parked).length === 0);
    await second.stop();
    const all = reader.events
      .map(({ partition, position }) => `${reader.name}/${partition}/${position}`)
      .sort();
    expect(await lake.rawPositions(), note).toEqual(all);
    await lake.close();
    return crashed;
  };

  test("loses nothing and doubles nothing", async () => {
    let crashes = 0;
    for (const seed of seeds(1)) {
      // A run has 10 to 50 steps, as its seed has it; each round has a seed of its own.
      for (let at = 0; at < 40; at += 8) {
        const rounds = Array.from({ length: 8 }, (_, i) => round(at + i, seed + at + i));
        crashes += (await Promise.all(rounds)).filter(Boolean).length;
      }
    }
    expect(crashes, "rounds that died on the way").toBeGreaterThan(25);
  });
});
