import { existsSync, readdirSync, rmSync, truncateSync } from "node:fs";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import type { FileOps, OpenFile } from "../../services/base/files.js";
import { layout } from "../../services/base/paths.js";
import { overriding } from "../support/faulty-store.js";
import { Random, randomEvents, seeds, THING, unsyncedFiles } from "../support/lake.js";
import { MemoryReader } from "../support/memory-reader.js";
import { breakable, pipelineLake, publishTo, startPipeline, until } from "../support/pipeline-run.js";

const never = new Promise<never>(() => undefined);

/** Everything that a process does to the world passes here, until it dies at one of the steps. */
class Doom {
  count = 0;
  dead = false;
  private tell: () => void = () => undefined;
  /** Resolves once nothing that it had begun is still to happen. */
  readonly gone = new Promise<void>((resolve) => {
    this.tell = resolve;
  });
  private readonly running = new Set<Promise<unknown>>();
  /** What the process has open: the system closes it when that dies. */
  private readonly open = new Set<OpenFile>();
  /** Path → bytes that a power loss leaves. */
  private readonly synced = new Map<string, number>();
  /** Files that a power loss takes as a whole. */
  private readonly unlisted = new Set<string>();

  /** `powerLoss`: what was written and not synced is gone as well; else it stays, the last of it by half. */
  constructor(
    private readonly at: number,
    private readonly powerLoss: boolean,
  ) {}

  async step<T>(run: () => Promise<T>, torn: () => Promise<unknown> = async () => undefined): Promise<T> {
    if (this.dead) return never;
    if (this.count++ !== this.at) {
      const running = run();
      this.running.add(running);
      return running.finally(() => this.running.delete(running));
    }
    this.dead = true;
    await torn();
    await Promise.allSettled(this.running);
    for (const file of this.open) await file.close();
    if (this.powerLoss) {
      for (const path of this.unlisted) rmSync(path, { force: true });
      for (const [path, bytes] of this.synced) if (existsSync(path)) truncateSync(path, bytes);
    }
    this.tell();
    return never;
  }

  files(): FileOps {
    const wrap = (path: string, file: OpenFile): OpenFile => {
      this.open.add(file);
      return {
        read: (into, at) => this.step(() => file.read(into, at)),
        write: (from, at) =>
          this.step(
            () => file.write(from, at),
            () => file.write(from.subarray(0, from.length >> 1), at),
          ),
        truncate: (bytes) => this.step(() => file.truncate(bytes)),
        dataSync: () => this.step(async () => void this.synced.set(path, await file.size())),
        size: () => (this.dead ? never : file.size()),
        close: async () => {
          if (this.open.delete(file)) await file.close();
        },
      };
    };
    return {
      ...unsyncedFiles,
      open: (path, how) =>
        this.step(async () => {
          const file = await unsyncedFiles.open(path, how);
          if (how === "create") {
            this.unlisted.add(path);
            this.synced.set(path, 0);
          }
          return wrap(path, file);
        }),
      unlink: (path) => this.step(() => unsyncedFiles.unlink(path)),
      makeFolder: (path) => this.step(() => unsyncedFiles.makeFolder(path)),
      syncFolder: (folder) =>
        this.step(async () => {
          for (const path of this.unlisted) if (dirname(path) === folder) this.unlisted.delete(path);
        }),
    };
  }
}

describe("a process that dies at any step of parking and landing", () => {
  /** Fails, parks, heals, drains; dies at step `at`. False when it has fewer steps. */
  const round = async (at: number, base: number): Promise<boolean> => {
    const seed = base + at;
    const random = new Random(seed);
    const events = randomEvents(random, 60);
    const state = { down: false };
    const doom = new Doom(at, seed % 2 === 0);
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
    const note = `seed ${base}, step ${at}`;
    const first = startPipeline(lake, reader);
    const healAt = 20 + random.below(30);
    const downAt = random.below(20);
    const life = (async () => {
      for (let i = 0; i < 50; i += 5) {
        // What comes from here on comes after the crash.
        if (doom.dead) return;
        if (i <= downAt && downAt < i + 5) state.down = true;
        if (i <= healAt && healAt < i + 5) {
          // Some are parked by then, and some come while those land.
          await sleep(300);
          state.down = false;
          if (doom.dead) return;
        }
        publishTo(reader, events.slice(i, i + 5));
        await sleep(random.below(15));
      }
      first.pipeline.hurry();
      await until("all to land", () => reader.caughtUp, 30_000);
      await until("it to be well", () => lake.context.health.get("raw", THING) === undefined, 30_000);
      // Which is full of steps at which it may die, too.
      await first.stop();
    })();
    const crashed = await Promise.race([life.then(() => doom.dead), doom.gone.then(() => true)]);
    if (crashed) {
      await doom.gone;
      life.catch(() => undefined);
      // Nothing that it does counts any more; this only ends its reading.
      first.pipeline.stop();
    }
    state.down = false;
    reader.beforeCommit = async () => undefined;
    await lake.abandon({ store: (inner) => inner, files: unsyncedFiles });
    // What was acknowledged after the crash is in the stream as well.
    publishTo(reader, events.slice(50));
    const second = startPipeline(lake, reader);
    await until(`${note}: the low-water record to reach the head`, () => reader.caughtUp, 60_000);
    // What is parked counts as settled for the stream; it is in raw once its log is gone.
    const parked = join(layout(lake.folder).parked, THING);
    const nothingParked = () => !existsSync(parked) || readdirSync(parked).length === 0;
    await until(`${note}: nothing to be parked`, nothingParked, 60_000);
    await second.stop();
    // So nothing more is to come: what is not in raw now is lost.
    const all = reader.events
      .map(({ partition, position }) => `${reader.name}/${partition}/${position}`)
      .sort();
    expect(await lake.rawPositions(), note).toEqual(all);
    await lake.close();
    return crashed;
  };

  test("loses nothing and doubles nothing", async () => {
    let crashes = 0;
    let tried = 0;
    for (const [n, seed] of seeds(1).entries()) {
      // A run has about 32 steps; each round has a seed of its own. Of a seed by chance every other step is enough.
      const stride = n === 0 ? 1 : 2;
      const steps = Array.from({ length: 32 / stride }, (_, i) => i * stride + (seed % stride));
      console.log(`seed ${seed}, steps ${steps[0]} to ${steps.at(-1)} by ${stride}`);
      while (steps.length > 0) {
        const rounds = steps.splice(0, 8).map((at) => round(at, seed));
        tried += rounds.length;
        crashes += (await Promise.all(rounds)).filter(Boolean).length;
      }
    }
    expect(crashes, "rounds that died on the way").toBeGreaterThan(tried / 2);
  });
});
