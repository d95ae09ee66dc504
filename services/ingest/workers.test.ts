import { describe, test } from "vitest";
import { Random, randomEvents, seeds } from "../../test/support/lake.js";
import { MemoryGroup } from "../../test/support/memory-group.js";
import { pipelineLake } from "../../test/support/pipeline-run.js";
import { runWorkers } from "../../test/support/workers.js";

describe("workers that share a stream and a lake", () => {
  test.each(seeds(2))(
    "lose nothing and double nothing, whoever comes, goes, dies or freezes (seed %i)",
    async (seed) => {
      console.info(`TRIBUTARY_SEED=${seed}`);
      const random = new Random(seed);
      const lake = await pipelineLake({ compactAfterFiles: 6, keyIndexBytes: 8 * 1024 * 1024 });
      const group = new MemoryGroup("shared", 1 + random.below(8), random);
      const events = randomEvents(random, 300);
      try {
        await runWorkers({ lake, group, random, events, troubles: 12, most: 4, note: `seed ${seed}` });
      } finally {
        await lake.close();
      }
    },
    120_000,
  );
});
