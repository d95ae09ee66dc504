import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test, vi } from "vitest";
import { bootstrapOf, hostOf } from "../../../test/support/jobs.js";
import {
  CAST_SQL,
  Lake,
  Random,
  seeds,
  type TestEvent,
  TestStream,
  THING,
  THINGS_SQL,
} from "../../../test/support/lake.js";
import { rawRoot } from "../../ingest/raw-table.js";
import { DeltaTable } from "../../table/delta-table.js";
import { streamOf } from "../jobs/job-tracks.js";
import { folderOf } from "../verify/key-buckets.js";
import { type Made, MadeFiles } from "../verify/made-files.js";
import { checkRefined, type RefinedCheck } from "../verify/refined-check.js";
import { sourceFacts } from "../verify/source-facts.js";
import { runBootstrap } from "./bootstrap-job.js";
import { landingsOf, sourceOf, withPlace } from "./job-source.js";

vi.mock("../../sources/source-process.js", () => import("../../../test/support/readers-here.js"));

const exports = mkdtempSync(join(tmpdir(), "tributary-export-"));
afterAll(() => rmSync(exports, { recursive: true, force: true }));

test("what models make of a source is what they make of it from raw, and is told in the same words", async () => {
  for (const seed of seeds(0)) {
    const random = new Random(seed);
    const lake = await Lake.create({
      models: { things: THINGS_SQL, numbers: CAST_SQL },
      sources: { exports },
    });
    try {
      const job = bootstrapOf(`s-${seed}`);
      mkdirSync(join(exports, job.id));
      for (const file of ["a", "b"]) {
        // The same entities in both, and some twice in one.
        const rows = Array.from({ length: 30 }, () => {
          const id = random.below(25);
          const hidden = random.below(4) === 0;
          const number = random.pick(["1", "2", "no"]);
          return { customer: "acme", id: `t-${id}`, rev: random.below(5), name: `n${id}`, hidden, number };
        });
        const lines = rows.map((row) => JSON.stringify(row)).join("\n");
        writeFileSync(join(exports, job.id, `${file}.ndjson`), lines);
      }
      const lane = await lake.lane();
      const live = new TestStream("live");
      const some = (count: number): TestEvent[] =>
        Array.from({ length: count }, () => {
          const id = random.below(30);
          const operation = random.pick([1, 2, 3]);
          const thing = operation === 3 ? {} : { name: `n${id}`, number: random.pick(["3", "no"]) };
          return { tenant: "acme", id: `t-${id}`, operation, version: BigInt(1 + random.below(6)), thing };
        });
      await lane.land(live.batch(some(15)));
      await runBootstrap(lake.context, job, hostOf());
      // The last ones are older, or of the same version, as often as they are newer.
      await lane.land(live.batch([...some(15), { ...some(1)[0]!, version: 9n }]));
      await lake.settled();
      const { store, duck, tableOptions } = lake.context;
      const raw = (await DeltaTable.open(store, rawRoot(THING), duck, tableOptions))!;
      const check = (name: string, made: Made): Promise<RefinedCheck> => {
        const model = lake.context.models.find((one) => one.name === name)!;
        const of = { stream: streamOf(job.id), tenant: undefined };
        return checkRefined(lake.context, of, raw, model, made, { pace: async () => undefined });
      };
      const folder = folderOf(lake.context);
      await MadeFiles.with(folder, (files) =>
        withPlace(lake.context, job, async (place) => {
          const [landing] = landingsOf(
            lake.context,
            job,
            place,
            (await sourceOf(lake.context.store, job.id))!,
          );
          const { made } = (await sourceFacts(lake.context, landing!, hostOf(), files))!;
          // It fails on some of the rows.
          expect(made.whole).toEqual(new Set(["t.things"]));
          for (const name of ["t.things", "t.numbers"]) {
            const found = await check(name, made);
            const fromRaw = await MadeFiles.with(folder, (others) =>
              check(name, { files: others, whole: new Set() }),
            );
            expect(found, `seed ${seed}`).toEqual(fromRaw);
            expect(found.keys).toEqual([]);
            const { entities, made: digests, found: table } = found.tenants.get("acme")!;
            expect(entities.winning).toBeGreaterThan(0);
            expect(entities.overtaken + entities.deleted).toBeGreaterThan(0);
            expect(digests).toEqual(table);
          }
        }),
      );
    } finally {
      await lake.close();
    }
  }
});
