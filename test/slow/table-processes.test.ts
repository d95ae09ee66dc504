import { type ChildProcess, spawn } from "node:child_process";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { afterAll, afterEach, expect, test } from "vitest";
import { Duck } from "../../services/base/duckdb.js";
import { packageRoot } from "../../services/base/paths.js";
import { progressOf } from "../../services/table/progress.js";
import { Sweep } from "../../services/table/sweep.js";
import { verifyTable } from "../../services/table/verify.js";
import { fileStore, Random, seeds, temporaryFolder } from "../support/lake.js";
import { expectedRows, TableWriter, type Write } from "../support/table-writers.js";
import { NEVER } from "../support/tables.js";
import { writersRound } from "../support/writers-round.js";

/** Writers of one table in processes of their own; they are killed and suspended for longer than orphans live. */

const duck = await Duck.create({ memoryBytes: 256 * 1024 * 1024 });
const folders: string[] = [];
const children = new Set<ChildProcess>();
afterEach(() => {
  for (const child of children) child.kill("SIGKILL");
});
afterAll(() => {
  duck.close();
  for (const folder of folders) rmSync(folder, { recursive: true, force: true });
});

const PARTITIONS = 6;
const BATCHES = 40;
const ORPHAN_AGE_MS = 4_000;
const ROOT = "refined/t/things";

interface Told {
  readonly n?: number;
  readonly writes?: readonly (Omit<Write, "content"> & { readonly content: number })[];
  readonly ms?: number;
  readonly overtaken?: number;
  readonly conflicts?: Readonly<Record<string, number>>;
  readonly loads?: number;
}

test("six processes upsert into one table: killed, suspended, compacting and sweeping, they lose and double nothing", async () => {
  const [seed] = seeds(0);
  console.info(`table processes: TRIBUTARY_SEED=${seed}`);
  const random = new Random(seed!);
  const folder = temporaryFolder();
  folders.push(folder);
  const store = await fileStore(folder);
  const looking = await TableWriter.open(store, duck, ROOT, NEVER);
  const batches = new Map<string, readonly Write[]>();
  const running = new Map<number, ChildProcess>();
  let overtaken = 0;
  const loads: number[] = [];
  let longest = 0;
  const suspended = new Set<ChildProcess>();

  const dist = pathToFileURL(join(packageRoot, "dist/")).href;
  const script = join(packageRoot, "test/support/table-writer.mjs");
  /** Resolves when the process has landed its last batch; one that is killed is replaced. */
  const land = async (partition: number): Promise<void> => {
    for (;;) {
      const args = [script, dist, folder, ROOT, partition, seed, BATCHES, ORPHAN_AGE_MS].map(String);
      const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "inherit"] });
      children.add(child);
      running.set(partition, child);
      const ended = new Promise<number | null>((resolve) => child.on("close", resolve));
      let slept = false;
      for await (const line of createInterface({ input: child.stdout })) {
        const told = JSON.parse(line) as Told;
        slept ||= suspended.has(child);
        if (told.writes !== undefined) {
          const writes = told.writes.map((write) => ({ ...write, content: BigInt(write.content) }));
          batches.set(`${partition}/${told.n}`, writes);
        }
        if (told.ms !== undefined && !slept) longest = Math.max(longest, told.ms);
        overtaken += told.overtaken ?? 0;
        if (told.loads !== undefined) loads.push(told.loads);
      }
      const code = await ended;
      children.delete(child);
      running.delete(partition);
      if (code === 0) return;
      expect(code, "killed by the test, or in trouble").toBeNull();
    }
  };

  let all = true;
  const landed = Promise.all(Array.from({ length: PARTITIONS }, (_, i) => land(i))).finally(() => {
    all = false;
  });
  const disturb = async (): Promise<void> => {
    const sweep = new Sweep(looking.table);
    for (let round = 0; all && round < 6; round++) {
      await sleep(500 + random.below(1000));
      const victim = random.pick([...running.values()]);
      if (victim === undefined) continue;
      if (round % 3 === 2) {
        victim.kill("SIGKILL");
        continue;
      }
      suspended.add(victim);
      victim.kill("SIGSTOP");
      await sleep(ORPHAN_AGE_MS * 1.5);
      await sweep.run(ORPHAN_AGE_MS);
      victim.kill("SIGCONT");
    }
  };
  await Promise.all([landed, disturb()]);

  await looking.table.refresh();
  expect(batches.size).toBe(PARTITIONS * BATCHES);
  const reached = progressOf(looking.table.snapshot);
  expect([...reached.values()]).toEqual(Array(PARTITIONS).fill(String(BATCHES).padStart(6, "0")));
  expect((await verifyTable(looking.table)).problems).toEqual([]);
  expect(await looking.rows()).toEqual(expectedRows([...batches.values()].flat()));
  expect(overtaken).toBeGreaterThan(0);
  // Each process reads its index once, however often the others come first.
  expect(loads).toEqual(loads.map(() => 1));
  console.info(`overtaken ${overtaken} times, longest upsert ${Math.round(longest)} ms`);
  await looking.close();
}, 300_000);

test("many interleavings of writers, compactions and sweeps, step by step", async () => {
  const folder = temporaryFolder();
  folders.push(folder);
  const store = await fileStore(folder);
  const [first] = seeds(0);
  for (let seed = first!; seed < first! + 60; seed++) {
    try {
      await writersRound(seed, store, duck, `tables/${seed}`);
    } catch (error) {
      throw new Error(`TRIBUTARY_SEED=${seed}`, { cause: error });
    }
  }
}, 600_000);
