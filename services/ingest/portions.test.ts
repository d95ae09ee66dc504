import { expect, test } from "vitest";
import { overriding } from "../../test/support/faulty-store.js";
import {
  expectedThings,
  Lake,
  Random,
  randomEvents,
  seeds,
  TestStream,
  THINGS_SQL,
} from "../../test/support/lake.js";
import type { ObjectStore } from "../storage/object-store.js";

/** What is lent may be much smaller than a table: copies on local disk are bounded. */
test("catching up, rebuilding and upserts beyond the key index lend no more at once than the store wants", async () => {
  let most = 0;
  const sparing = (inner: ObjectStore) =>
    overriding(inner, {
      leaseBytes: 1,
      withLocal: (keys, use, options) => {
        most = Math.max(most, keys.length);
        return inner.withLocal(keys, use, options);
      },
    });
  for (const seed of seeds(1)) {
    const options = { compactAfterFiles: 1_000, keyIndexBytes: 0, rangeEvents: 40 };
    const lake = await Lake.create({ ...options, store: sparing });
    try {
      const stream = new TestStream();
      const events = randomEvents(new Random(seed), 80);
      const lane = await lake.lane();
      for (let at = 0; at < events.length; at += 20)
        await lane.land(stream.batch(events.slice(at, at + 20), ({ id }) => String(id.length % 2)));
      await lake.settled();
      expect(lane.raw.snapshot.files.length).toBeGreaterThan(2);
      expect(await lake.target().then(({ table }) => table.snapshot.files.length)).toBeGreaterThan(2);
      await lake.reopen({ models: { things: THINGS_SQL, others: THINGS_SQL } });
      await lake.settled();
      expect(most, `seed ${seed}`).toBe(1);
      for (const name of ["t.things", "t.others"])
        expect(await lake.rows(name), `seed ${seed}`).toEqual(expectedThings(events));
    } finally {
      await lake.close();
    }
    most = 0;
  }
});
