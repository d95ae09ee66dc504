import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test, vi } from "vitest";
import { bootstrapOf, hostOf, replayOf } from "../../../test/support/jobs.js";
import {
  expectedThings,
  Lake,
  Random,
  randomEvents,
  seeds,
  type TestEvent,
  TestStream,
  winnersOf,
} from "../../../test/support/lake.js";
import { TributaryError } from "../../base/errors.js";
import { runBootstrap } from "../bootstrap/bootstrap-job.js";
import { runReplay } from "./replay-job.js";

vi.mock("../../sources/source-process.js", () => import("../../../test/support/readers-here.js"));

const FILES = 8;

/** As an export has it: no times, and no field that only says its zero. */
function plain({ occurred: _, payload: __, ...event }: TestEvent): TestEvent {
  const said = Object.entries(event.thing).filter(
    ([, value]) => value !== "" && value !== 0 && value !== false,
  );
  // Small ones: a job whose versions are on another scale is refused.
  return { ...event, version: 1n + (event.version % 7n), thing: Object.fromEntries(said) };
}

const lineOf = ({ tenant, id, version, thing }: TestEvent): string =>
  JSON.stringify({ customer: tenant, id, rev: Number(version), ...thing });

/** Undefined where who runs jobs tries again. */
async function tried<T>(run: () => Promise<T>): Promise<T | undefined> {
  try {
    return await run();
  } catch (error) {
    if (error instanceof TributaryError && error.retryable) return undefined;
    throw error;
  }
}

test("what was deleted stays so beside a bootstrap that still has it, repairs and swaps, in any order", async () => {
  for (const seed of seeds(0)) {
    const random = new Random(seed);
    const events = randomEvents(random, 150).map(plain);
    const exports = mkdtempSync(join(tmpdir(), "tributary-export-"));
    const lake = await Lake.create({ checkpointEvery: 5, sources: { exports } });
    const [lands, replays] = [await lake.twin(), await lake.twin()];
    try {
      mkdirSync(join(exports, "old"));
      const rows = winnersOf(events.slice(0, 100)).filter(({ operation }) => operation !== 3);
      for (let file = 0; file < FILES; file++) {
        const some = rows.filter((_, at) => at % FILES === file).map(lineOf);
        writeFileSync(join(exports, "old", `${file}.ndjson`), some.join("\n"));
      }
      const stream = new TestStream("live");
      const late = random.shuffle(events);
      await lake.land(stream.batch(late.splice(0, 10)));
      await lake.settled();
      let done = false;
      const live = async () => {
        while (late.length > 0) await lake.land(stream.batch(late.splice(0, 1 + random.below(9))));
      };
      const bring = async () => {
        for (;;) {
          const ran = await tried(() => runBootstrap(lands.context, bootstrapOf("old"), hostOf()));
          if (ran !== undefined) return expect(ran).toBe(true);
        }
      };
      let replayed = 0;
      const again = async () => {
        for (let at = 0; !done || replayed === 0; at++) {
          const words = random.chance(0.5)
            ? ({ action: "swap" } as const)
            : ({ action: "repair", tenant: random.pick(events).tenant } as const);
          const order = replayOf({ id: `r${at}`, ...words });
          if ((await tried(() => runReplay(replays.context, order, hostOf()))) === true) replayed++;
        }
      };
      const replaying = again();
      replaying.catch(() => undefined);
      await Promise.all([live(), bring()]).finally(async () => {
        done = true;
        await replaying;
      });
      await (await lake.lane()).look();
      await lake.settled();
      expect(await lake.rows(), `seed ${seed}`).toEqual(expectedThings(events));
    } finally {
      lands.context.duck.close();
      replays.context.duck.close();
      await lake.close();
      rmSync(exports, { recursive: true, force: true });
    }
  }
}, 60_000);
