import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { parkedTables } from "../../services/ingest/parked-log.js";
import { overriding } from "../support/faulty-store.js";
import { Random, randomEvents, seeds, THING } from "../support/lake.js";
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

  constructor(private readonly at: number) {}

  async step<T>(run: () => Promise<T>): Promise<T> {
    if (this.dead) return never;
    if (this.count++ !== this.at) {
      const running = run();
      this.running.add(running);
      return running.finally(() => this.running.delete(running));
    }
    this.dead = true;
    // The answer of what has happened is lost every other time.
    if (this.at % 2 === 0) this.running.add(run());
    await Promise.allSettled(this.running);
    this.tell();
    return never;
  }
}

describe("a process that dies at any step of parking and landing", () => {
  /** Fails, parks, heals, drains; dies at step `at`. False when it has fewer steps. */
  const round = async (at: number, base: number): Promise<boolean> => {
    const seed = base + at;
    const random = new Random(seed);
    const events = randomEvents(random, 60);
    const state = { down: false };
    const doom = new Doom(at);
    const reader = new MemoryReader("test");
    reader.beforeCommit = () => doom.step(async () => undefined);
    const lake = await pipelineLake({});
    await lake.reopen({
      store: (inner) => {
        const broken = breakable(state)(inner);
        return overriding(broken, {
          put: (key, bytes) => doom.step(() => broken.put(key, bytes)),
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
    await lake.abandon({ store: (inner) => inner });
    // What was acknowledged after the crash is in the stream as well.
    publishTo(reader, events.slice(50));
    const second = startPipeline(lake, reader);
    await until(`${note}: the low-water record to reach the head`, () => reader.caughtUp, 60_000);
    // What is parked counts as settled for the stream; it is in raw once its log is gone.
    const nothingParked = async () => (await parkedTables(lake.context.store)).length === 0;
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
