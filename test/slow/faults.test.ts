import { expect, test } from "vitest";
import { FAULTS, type FileFault } from "../support/fault-files.js";
import { FaultLake, PHASES, type Phase } from "../support/fault-lake.js";
import { Random } from "../support/lake.js";

/** All that there are when TEST_ALL_FAULTS is set; else so many, drawn by the seed. */
const CASES = 2_000;
const DRAWN = 160;
const TOGETHER = 4;
/** Failures after which there is enough to look at. */
const SHOWN = 5;

interface Case {
  readonly phase: Phase;
  readonly fault: FileFault;
  readonly at: number;
  readonly seed: number;
}

test("a fault at every file operation of landing, compaction, log checkpoint and rebuild", async () => {
  const seed = Number(process.env.TRIBUTARY_SEED ?? Math.floor(Math.random() * 2 ** 31));
  console.info(`faults: TRIBUTARY_SEED=${seed}`);
  const lake = await FaultLake.create(seed);
  try {
    const every: Case[] = [];
    const operations = new Map<Phase, number>();
    for (const phase of PHASES) operations.set(phase, await lake.operationsOf(phase));
    console.info(`faults: operations ${JSON.stringify([...operations])}`);
    const add = (faults: readonly FileFault[], round: number) => {
      for (const [phase, count] of operations)
        for (const fault of faults)
          for (let at = 0; at < count; at++) every.push({ phase, fault, at, seed: seed + round });
    };
    add(FAULTS, 0);
    // What a power loss takes is left to chance: so it comes more often.
    for (let round = 1; every.length < CASES; round++) add(["power loss"], round);
    // Rebuild takes as long as all others together, and one of its cases (EIO at operation 13 of seed 1506792570) is
    // known not to heal within the limit: it belongs to the long run until that is mended.
    const drawn = every.filter(({ phase }) => phase !== "rebuild");
    const cases =
      process.env.TEST_ALL_FAULTS === undefined ? new Random(seed).shuffle(drawn).slice(0, DRAWN) : every;
    let struck = 0;
    const failures: unknown[] = [];
    const runAll = async (left: Case[]) => {
      for (let one = left.pop(); one !== undefined && failures.length < SHOWN; one = left.pop())
        await lake.run(one).then(
          (result) => {
            if (result.struck) struck++;
          },
          (error: unknown) => {
            failures.push(error);
            console.info(`faults: ${error}`);
          },
        );
    };
    for (const phase of PHASES) {
      const left = cases.filter((one) => one.phase === phase).reverse();
      const count = left.length;
      const started = performance.now();
      await Promise.all(Array.from({ length: TOGETHER }, () => runAll(left)));
      const seconds = Math.round((performance.now() - started) / 1000);
      console.info(`faults: ${phase}, ${count} cases, ${seconds} s`);
    }
    if (failures.length > 0) throw new AggregateError(failures, failures.map(String).join("; "));
    console.info(`faults: ${struck} struck of ${cases.length} out of ${every.length}`);
    // Some runs are a little shorter than the one that was counted.
    expect(struck).toBeGreaterThan(cases.length * 0.95);
  } finally {
    await lake.close();
  }
}, 900_000);
