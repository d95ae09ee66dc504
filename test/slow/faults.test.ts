import { expect, test } from "vitest";
import { FAULTS, type FileFault } from "../support/fault-files.js";
import { FaultLake, PHASES, type Phase } from "../support/fault-lake.js";
import { Random } from "../support/lake.js";

/** All that there are when TEST_ALL_FAULTS is set; else so many, drawn by the seed: a minute on two cores. */
const CASES = 2_000;
const DRAWN = 150;
const ALL = process.env.TEST_ALL_FAULTS !== undefined;
const LIMIT_MS = ALL ? 3_600_000 : 900_000;
const TOGETHER = 4;
/** Failures after which there is enough to look at. */
const SHOWN = 5;

interface Case {
  readonly phase: Phase;
  readonly fault: FileFault;
  readonly at: number;
  readonly seed: number;
}

test(
  "a fault at every file operation of landing, compaction, log checkpoint and rebuild",
  async () => {
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
      const cases = ALL ? every : new Random(seed).shuffle(every).slice(0, DRAWN);
      let struck = 0;
      const failures: unknown[] = [];
      let slowest = 0;
      const runAll = async (left: Case[]) => {
        for (let one = left.pop(); one !== undefined && failures.length < SHOWN; one = left.pop()) {
          const started = performance.now();
          await lake.run(one).then(
            (result) => {
              if (result.struck) struck++;
            },
            (error: unknown) => {
              failures.push(error);
              console.info(`faults: ${error}: ${(error as Error).cause}`);
            },
          );
          slowest = Math.max(slowest, Math.round(performance.now() - started));
        }
      };
      for (const phase of PHASES) {
        const left = cases.filter((one) => one.phase === phase).reverse();
        const count = left.length;
        const started = performance.now();
        slowest = 0;
        await Promise.all(Array.from({ length: TOGETHER }, () => runAll(left)));
        const seconds = Math.round((performance.now() - started) / 1000);
        console.info(`faults: ${phase}, ${count} cases, ${seconds} s, the slowest ${slowest} ms`);
      }
      if (failures.length > 0) throw new AggregateError(failures, failures.map(String).join("; "));
      console.info(`faults: ${struck} struck of ${cases.length} out of ${every.length}`);
      // Some runs are a little shorter than the one that was counted.
      expect(struck).toBeGreaterThan(cases.length * 0.95);
    } finally {
      await lake.close();
    }
  },
  LIMIT_MS,
);
