import { expect, test } from "vitest";
import { FAULTS } from "./support/fault-files.js";
import { FaultLake, PHASES } from "./support/fault-lake.js";
import { Random, seeds } from "./support/lake.js";

/** A few of what test/slow/faults.test.ts does at every operation. */
test("a fault at some file operation loses, doubles, brings back and leaves nothing", async () => {
  const seed = seeds(0)[0]!;
  console.info(`faults: TRIBUTARY_SEED=${seed}`);
  const random = new Random(seed);
  const lake = await FaultLake.create(seed);
  try {
    let struck = 0;
    for (const phase of PHASES) {
      const operations = await lake.operationsOf(phase);
      for (const fault of random.shuffle(FAULTS).slice(0, 2)) {
        const at = random.below(Math.floor(operations * 0.9));
        if ((await lake.run({ phase, fault, at, seed })).struck) struck++;
      }
    }
    expect(struck).toBeGreaterThan(PHASES.length);
  } finally {
    await lake.close();
  }
}, 180_000);
