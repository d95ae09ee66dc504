import { expect, test } from "vitest";
import { overriding } from "../../test/support/faulty-store.js";
import { Lake, Random, randomEvents, TestStream, THING } from "../../test/support/lake.js";
import { TributaryError } from "../base/errors.js";
import { Envelope } from "../contracts/envelope.js";
import { LaneKeeper } from "./lane-keeper.js";

test("events that were to be parked behind others do not land without these when their partition went and came back", async () => {
  const lake = await Lake.create({});
  try {
    const events = randomEvents(new Random(3), 40);
    const batch = new TestStream("s").batch(events);
    let isOurs = true;
    let away: Promise<void> | undefined;
    let rebalanced = false;
    const { store: inner } = lake.context;
    const store = overriding(inner, {
      adopt: async (files) => {
        if (away === undefined) return inner.adopt(files);
        await away;
        away = undefined;
        throw new TributaryError("TRB-STORE-FAILED");
      },
      get: async (key) => {
        // The first batch was looked at, and was another's; a request later the partition is ours again.
        if (key === "closed.json" && !isOurs) {
          keeper.forget(new Set(["0"]));
          isOurs = true;
          rebalanced = true;
          keeper.assigned();
        }
        return inner.get(key);
      },
    });
    const ours = { has: () => isOurs, slots: undefined };
    const context = { ...lake.context, store, stream: "s", ours };
    const host = {
      settled: () => undefined,
      freed: () => undefined,
      landed: () => undefined,
      ready: () => undefined,
      fatal: (error: unknown) => expect.unreachable(String(error)),
    };
    const keeper = new LaneKeeper(context, THING, host, 1_000_000);
    const envelope = new Envelope();
    const gather = (read: number, from: number, to: number) => {
      const gathered = keeper.gather(read, () => undefined);
      for (let i = from; i < to; i++) {
        batch.read(i, envelope);
        gathered.take(batch, i, envelope);
      }
    };
    await expect.poll(() => keeper.lands).toBe(true);
    let fail: () => void = () => undefined;
    away = new Promise((resolve) => {
      fail = resolve;
    });
    gather(0, 0, 10);
    void keeper.flush();
    gather(1, 10, 20);
    // The partition is taken away while the one lands and the other waits.
    isOurs = false;
    await keeper.setAside();
    expect(rebalanced).toBe(true);
    fail();
    await expect.poll(() => away).toBeUndefined();
    await expect.poll(() => keeper.lands, { timeout: 5_000 }).toBe(true);
    // Now it is read from where it stood.
    gather(2, 0, batch.count);
    await keeper.flush();
    await expect.poll(() => lake.rawPositions(), { timeout: 5_000 }).toHaveLength(batch.count);
    await keeper.close();
  } finally {
    await lake.close();
  }
});
