import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { runBootstrap } from "../../services/bulk/bootstrap/bootstrap-job.js";
import type { Told } from "../../services/bulk/jobs/job-report.js";
import { LANE, streamOf } from "../../services/bulk/jobs/job-tracks.js";
import { refinedRoot } from "../../services/ingest/refined-table.js";
import type { ObjectStore } from "../../services/storage/object-store.js";
import { DeltaTable } from "../../services/table/delta-table.js";
import { positionsOf } from "../../services/table/progress.js";
import { overriding } from "../support/faulty-store.js";
import { bootstrapOf, hostOf } from "../support/jobs.js";
import {
  CAST_SQL,
  expectedThings,
  Lake,
  Random,
  seeds,
  type TestEvent,
  TestStream,
  THING,
} from "../support/lake.js";

/** Jobs whose commits of raw and of models' tables others come between, or that end between them. */

const FILES = 3;
const ROWS = 8;
const ORDER = bootstrapOf("a", { source: "exports" });

const thing = (id: number, version: bigint, operation = 1): TestEvent => ({
  tenant: "acme",
  id: `t-${id}`,
  operation,
  version,
  thing: operation === 3 ? {} : { name: `n${id} of ${version}`, amount: id + 1 },
});
/** As `put` writes them: of equal versions the payload's hash decides, so the oracle knows all of it. */
const EXPORTED = Array.from({ length: FILES * ROWS }, (_, id): TestEvent => {
  const event = thing(id, 5n);
  return { ...event, thing: { ...event.thing, number: "1" } };
});

let exports: string;
const lakes: Lake[] = [];
beforeEach(() => {
  exports = mkdtempSync(join(tmpdir(), "tributary-export-"));
});
afterEach(async () => {
  for (const lake of lakes.splice(0).reverse()) await lake.close();
  rmSync(exports, { recursive: true, force: true });
});

/** A chunk a file: each is read by a process of its own. */
function put(numberOf: (id: number) => string = () => "1"): void {
  mkdirSync(exports, { recursive: true });
  for (let file = 0; file < FILES; file++) {
    const lines = EXPORTED.slice(file * ROWS, (file + 1) * ROWS).map(
      ({ tenant, id, version, thing: { name, amount } }, i) =>
        JSON.stringify({
          customer: tenant,
          id,
          rev: `${version}`,
          name,
          amount,
          number: numberOf(file * ROWS + i),
        }),
    );
    writeFileSync(join(exports, `${file}.ndjson`), lines.join("\n"));
  }
}

async function lakeOf(models?: Readonly<Record<string, string>>): Promise<Lake> {
  const lake = await Lake.create({ sources: { exports }, ...(models === undefined ? {} : { models }) });
  lakes.push(lake);
  return lake;
}

/** Runs the job over a store of its own; what it told last while it landed. */
async function run(lake: Lake, store: (inner: ObjectStore) => ObjectStore = (inner) => inner): Promise<Told> {
  const job = await lake.twin({ store });
  lakes.push(job);
  // Without room for copies of two each file is read by itself.
  job.context.config.bulk.scratchBytes = 1;
  let phase: string | undefined;
  let landing: Told = {};
  const host = hostOf({
    tell: (told) => {
      phase = told.phase ?? phase;
      if (phase === "landing") landing = { ...landing, ...told };
    },
  });
  expect(await runBootstrap(job.context, ORDER, host)).toBe(true);
  return landing;
}

const isCommitOf = (layer: "raw" | "refined", key: string): boolean =>
  key.startsWith(`${layer}/t`) && key.endsWith(".json") && !key.endsWith("00000.json");

test("a run that ends between raw's commit of a chunk and the model's is gone on with, each chunk in both", async () => {
  put();
  const lake = await lakeOf();
  let refined = 0;
  await expect(
    run(lake, (inner) =>
      overriding(inner, {
        putIfAbsent: async (key, bytes) => {
          if (isCommitOf("refined", key) && ++refined > 1) throw new Error("the process is gone");
          return inner.putIfAbsent(key, bytes);
        },
      }),
    ),
  ).rejects.toThrow();
  const { store, duck, tableOptions, models } = lake.context;
  const at = async (root: string) => {
    const table = await DeltaTable.open(store, root, duck, tableOptions);
    return positionsOf(table!.snapshot, streamOf(ORDER.id)).get(LANE);
  };
  const [raw, model] = [await at(`raw/${THING}`), await at(refinedRoot(models[0]!))];
  expect(raw! > model!).toBe(true);
  expect(await run(lake)).toMatchObject({ rowsLanded: EXPORTED.length, rowsRefined: EXPORTED.length });
  expect(await lake.rows()).toEqual(expectedThings(EXPORTED));
});

test("live batches about the same entities may come before every commit of a job", async () => {
  for (const seed of seeds(0)) {
    const random = new Random(seed);
    put();
    const lake = await lakeOf();
    const lane = await lake.lane();
    const live = new TestStream("live");
    const landed: TestEvent[] = [];
    let left = 6;
    const between = async () => {
      const batch = Array.from({ length: 1 + random.below(4) }, () =>
        thing(random.below(EXPORTED.length + 3), BigInt(3 + random.below(6)), random.pick([1, 2, 3])),
      );
      await lane.land(live.batch(batch));
      landed.push(...batch);
    };
    await between();
    const told = await run(lake, (inner) =>
      overriding(inner, {
        putIfAbsent: async (key, bytes) => {
          const isCommit = isCommitOf("raw", key) || isCommitOf("refined", key);
          if (isCommit && random.chance(0.7) && left-- > 0) await between();
          return inner.putIfAbsent(key, bytes);
        },
      }),
    );
    expect(told, `seed ${seed}`).toMatchObject({ rowsLanded: EXPORTED.length, rowsRefined: EXPORTED.length });
    await lane.look();
    await lake.settled();
    expect(await lake.rows(), `seed ${seed}`).toEqual(expectedThings([...EXPORTED, ...landed]));
  }
});

test("a model that cannot take in one chunk with raw is brought along, and takes in those that follow", async () => {
  put((id) => (id === 2 ? "none" : "1"));
  const lake = await lakeOf({ things: CAST_SQL });
  expect(await run(lake)).toMatchObject({ rowsLanded: EXPORTED.length, rowsRefined: EXPORTED.length });
});
