import { afterEach, expect, test } from "vitest";
import { Lake, Random, randomEvents, TestStream, THINGS_SQL } from "../../test/support/lake.js";
import { until } from "../../test/support/pipeline-run.js";
import type { Crew } from "./crew.js";
import { Lane } from "./lane.js";

const OLD = { things: THINGS_SQL };
const NEW = {
  things:
    "select tenant_id, entity_id, version, payload.name as shout from {{ source('raw', 't.v1.Thing') }}",
};
const TYPE = "t.v1.Thing";

const lanes: Lane[] = [];
const lakes: Lake[] = [];
afterEach(async () => {
  for (const lane of lanes.splice(0)) await lane.close();
  for (const lake of lakes.splice(0)) await lake.close();
});

/** A worker beside others; what runs elsewhere is what the test says. */
async function worker(lake: Lake, running: ReadonlySet<string>): Promise<Lane> {
  const crew: Crew = {
    tends: () => true,
    isFree: () => true,
    runs: (fingerprint) => running.has(fingerprint),
    lookMs: undefined,
  };
  const lane = await Lane.open({ ...lake.context, crew }, TYPE, () => undefined);
  lanes.push(lane);
  return lane;
}

const modelOf = (lake: Lake) => lake.context.models.find(({ entityType }) => entityType === TYPE)!;

test("the newer release takes the table over once; the older one lands raw and gives way while that one runs", async () => {
  const old = await Lake.create({ models: OLD });
  lakes.push(old);
  const next = await old.twin({ models: NEW });
  lakes.push(next);
  const running = new Set([modelOf(old).fingerprint, modelOf(next).fingerprint]);
  const events = randomEvents(new Random(5), 60);
  const stream = new TestStream();
  const older = await worker(old, running);
  await older.land(stream.batch(events.slice(0, 20)));
  await until("the old model to be in step", () => !older.behind);
  const newer = await worker(next, running);
  await until("the new model to be in step", () => !newer.behind);
  const { health } = old.context;
  await older.land(stream.batch(events.slice(20, 40)));
  await until(
    "the old release to give way",
    () => health.get("model", "t.things")?.code === "TRB-MODEL-SUPERSEDED",
  );
  // What it lands the new one takes in.
  await newer.look();
  await until("the new model to be in step again", () => !newer.behind);
  const [target] = newer.targets;
  const before = (await target!.table.refresh()).version;
  expect(target!.outdated).toBe(false);
  older.seat("t.things")!.hurry();
  await until("another try", () => (health.get("model", "t.things")?.attempts ?? 0) >= 2);
  expect((await target!.table.refresh()).version).toBe(before);

  // Nobody runs the new one any more: going back is a rebuild, and only then.
  await newer.close();
  lanes.splice(lanes.indexOf(newer), 1);
  running.delete(modelOf(next).fingerprint);
  older.seat("t.things")!.hurry();
  await until("the old model to be in force again", () => !older.behind);
  expect(older.targets[0]!.outdated).toBe(false);
}, 60_000);
