import { expect, test } from "vitest";
import { FAULTS, type FileFault } from "../support/fault-files.js";
import { FaultLake, PHASES, type Phase } from "../support/fault-lake.js";

const CASES = 2_000;
const TOGETHER = 4;
/** Failures after which there is enough to look at. */
const SHOWN = 5;

test("a fault at every file operation of landing, compaction, log checkpoint and rebuild", async () => {
  const seed = Number(process.env.TRIBUTARY_SEED ?? Math.floor(Math.random() * 2 ** 31));
  console.info(`faults: TRIBUTARY_SEED=${seed}`);
  const lake = await FaultLake.create(seed);
  try {
    const cases: { phase: Phase; fault: FileFault; at: number; seed: number }[] = [];
    const operations = new Map<Phase, number>();
    for (const phase of PHASES) operations.set(phase, await lake.operationsOf(phase));
    const every = (faults: readonly FileFault[], round: number) => {
      for (const [phase, count] of operations)
        for (const fault of faults)
          for (let at = 0; at < count; at++) cases.push({ phase, fault, at, seed: seed + round });
    };
    every(FAULTS, 0);
    // What a power loss takes is left to chance: so it comes more often.
    for (let round = 1; cases.length < CASES; round++) every(["power loss"], round);
    let struck = 0;
    const failures: unknown[] = [];
    const left = [...cases].reverse();
    await Promise.all(
      Array.from({ length: TOGETHER }, async () => {
        for (let one = left.pop(); one !== undefined; one = left.pop())
          await lake.run(one).then(
            (result) => {
              if (result.struck) struck++;
            },
            (error: unknown) => {
              failures.push(error);
              if (failures.length >= SHOWN) left.length = 0;
            },
          );
      }),
    );
    if (failures.length > 0) throw new AggregateError(failures, failures.map(String).join("; "));
    console.info(`faults: ${struck} of ${cases.length}, operations ${JSON.stringify([...operations])}`);
    // Some runs are a little shorter than the one that was counted.
    expect(struck).toBeGreaterThan(CASES * 0.95);
  } finally {
    await lake.close();
  }
}, 900_000);
