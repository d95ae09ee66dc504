import { expect, test, vi } from "vitest";
import { expectedThings, Lake, Random, randomEvents, seeds, TestStream } from "../../test/support/lake.js";
import { HASH1 } from "../table/order.js";

// Every entity of every tenant hashes to one value in the first word: the others must tell them apart.
vi.mock("../table/entity-hash.js", async (original) => {
  const real = await original<typeof import("../table/entity-hash.js")>();
  const entityHash: typeof real.entityHash = (bytes, start, end, words, at) => {
    real.entityHash(bytes, start, end, words, at);
    words[at + HASH1] = 7;
  };
  return { ...real, entityHash };
});

test("hashes that collide confuse no two entities", async () => {
  for (const seed of seeds(2)) {
    const random = new Random(seed);
    const events = random.shuffle(randomEvents(random, 120));
    const lake = await Lake.create();
    try {
      const stream = new TestStream();
      for (let at = 0; at < events.length; at += 25) {
        await (await lake.lane()).land(stream.batch(events.slice(at, at + 25)));
        if (random.chance(0.3)) (await lake.target()).writer.locator.forget();
      }
      expect(await lake.rows(), `seed ${seed}`).toEqual(expectedThings(events));
    } finally {
      await lake.close();
    }
  }
});
