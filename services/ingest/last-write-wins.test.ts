import { describe, expect, test } from "vitest";
import {
  expectedThings,
  Lake,
  Random,
  randomEvents,
  seeds,
  type TestEvent,
  TestStream,
} from "../../test/support/lake.js";
import { compactUpserted } from "../table/compact.js";

interface Way {
  readonly name: string;
  readonly keyIndexBytes: number;
  /** Done after every batch. */
  readonly between: (lake: Lake, random: Random) => Promise<void>;
}

const forget = async (lake: Lake) => (await lake.target()).writer.locator.forget();

async function compact(lake: Lake, random: Random): Promise<void> {
  const { table, writer } = await lake.target();
  for (const tombstones of [false, true]) {
    const files = table.snapshot.files.filter((file) => file.tombstones === tombstones);
    const some = files.filter(() => random.chance(0.7));
    if (some.length === 0) continue;
    const result = await lake.context.duck.with((connection) => compactUpserted(writer, connection, some));
    expect(result.kind).toBe("compacted");
  }
}

const INDEX = 64 * 1024 * 1024;
const WAYS: readonly Way[] = [
  { name: "with the key index", keyIndexBytes: INDEX, between: async () => undefined },
  { name: "with the key index thrown away between batches", keyIndexBytes: INDEX, between: forget },
  { name: "by semi-join, without an index", keyIndexBytes: 0, between: async () => undefined },
  { name: "with compactions between batches", keyIndexBytes: INDEX, between: compact },
  { name: "with compactions and no index", keyIndexBytes: 0, between: compact },
  {
    name: "with whatever happens between batches",
    keyIndexBytes: INDEX,
    between: async (lake, random) => {
      const step = random.below(5);
      if (step === 0) await forget(lake);
      else if (step === 1) await compact(lake, random);
      else if (step === 2) await lake.reopen();
      else if (step === 3) await lake.reopen({ keyIndexBytes: random.chance(0.5) ? 0 : INDEX });
    },
  },
];

async function deliver(lake: Lake, events: readonly TestEvent[], way: Way, random: Random): Promise<void> {
  const stream = new TestStream();
  for (let at = 0; at < events.length; ) {
    const size = 1 + random.below(random.pick([2, 10, 60]));
    const batch = stream.batch(events.slice(at, at + size), ({ id }) => String(id.length % 3));
    await (await lake.lane()).land(batch);
    await way.between(lake, random);
    at += size;
  }
}

describe("last write wins, whatever the order, the batches and the state of the index", () => {
  for (const way of WAYS) {
    test(way.name, async () => {
      for (const seed of seeds(1)) {
        const random = new Random(seed);
        const events = randomEvents(random, 20 + random.below(80));
        const lake = await Lake.create({ keyIndexBytes: way.keyIndexBytes });
        try {
          await deliver(lake, random.shuffle(events), way, random);
          expect(await lake.rows(), `seed ${seed}`).toEqual(expectedThings(events));
          await lake.reopen();
          expect(await lake.rows(), `seed ${seed}, reopened`).toEqual(expectedThings(events));
        } finally {
          await lake.close();
        }
      }
    });
  }
});
