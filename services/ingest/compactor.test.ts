import { describe, expect, test } from "vitest";
import { expectedThings, Lake, Random, randomEvents, TestStream, THING } from "../../test/support/lake.js";
import { until } from "../../test/support/pipeline-run.js";
import { Compactor } from "./compactor.js";

describe("compaction of a lane", () => {
  test("gives refined tables their turn however often raw wants one", async () => {
    const lake = await Lake.create({ compactAfterFiles: 3 });
    const stream = new TestStream();
    const events = randomEvents(new Random(11), 120);
    let next = 0;
    const landSome = async () => {
      for (let i = 0; i < 3 && next < events.length; i++) {
        await lake.land(stream.batch(events.slice(next, next + 2)));
        next += 2;
      }
    };
    const order: string[] = [];
    const log = {
      ...lake.context.log,
      info: (about: { table?: string }) => {
        if (about.table !== undefined) order.push(about.table);
      },
    };
    const compactor = new Compactor({ ...lake.context, log } as typeof lake.context);
    try {
      const lane = await lake.lane();
      await lake.settled();
      await landSome();
      await landSome();
      compactor.consider(lane);
      // Raw is hot: whenever something was compacted, it wants to be again.
      for (let seen = 0; order.length < 8 && next < events.length; seen = order.length) {
        await until("a compaction", () => order.length > seen);
        await landSome();
        compactor.consider(lane);
      }
      const refined = order.indexOf("t.things");
      expect(refined, order.join()).toBeGreaterThanOrEqual(0);
      expect(refined, order.join()).toBeLessThanOrEqual(2);
      expect(order).toContain(`raw/${THING}`);
      await compactor.close();
      expect(await lake.rawPositions()).toEqual([...stream.positions].sort());
      expect(await lake.rows()).toEqual(expectedThings(stream.events));
    } finally {
      await compactor.close();
      await lake.close();
    }
  });
});
