import { expect, test } from "vitest";
import {
  expectedThings,
  Lake,
  Random,
  randomEvents,
  seeds,
  type TestEvent,
  TestStream,
  THING,
  winnersOf,
} from "../../../test/support/lake.js";
import { progressOf } from "../../table/progress.js";
import type { Watermark } from "../jobs/job.js";
import { streamOf } from "../jobs/job-tracks.js";
import { confirmDeletes, reconcile } from "./reconcile.js";
import { planOf, type ReconcileOrder } from "./reconcile-plan.js";

const keyOf = ({ tenant, id }: TestEvent) => `${tenant}\n${id}`;
const host = () => ({ signal: new AbortController().signal, pace: async () => undefined });
const small = { rejected: 0, rowsAtOnce: 100, chunkRows: 8 };

/** What is to be deleted, by what is known of the events alone. */
function vanished(
  events: readonly { readonly event: TestEvent; readonly older: boolean }[],
  exported: readonly TestEvent[],
): TestEvent[] {
  const held = new Set(exported.map(keyOf));
  const tenants = new Set(exported.map(({ tenant }) => tenant));
  return winnersOf(events.map(({ event }) => event))
    .filter((winner) => {
      const last = events.filter(
        ({ event }) => keyOf(event) === keyOf(winner) && event.version === winner.version,
      );
      return (
        winner.operation !== 3 &&
        !held.has(keyOf(winner)) &&
        tenants.has(winner.tenant) &&
        last.some(({ older }) => older)
      );
    })
    .map((winner) => ({
      tenant: winner.tenant,
      id: winner.id,
      operation: 3,
      version: winner.version,
      thing: {},
    }));
}

/** Runs until it is done: each time stopped after one commit, as if killed; a double beside it now and then. */
async function toTheEnd(lake: Lake, order: ReconcileOrder, random: Random): Promise<void> {
  for (let done = false; !done; ) {
    const stop = new AbortController();
    const once = { signal: stop.signal, pace: async () => stop.abort() };
    const runs = random.chance(0.5) ? [once] : [once, host()];
    const ended = await Promise.allSettled(runs.map((run) => reconcile(lake.context, order, run, small)));
    for (const one of ended) {
      if (one.status === "fulfilled") done ||= one.value;
      else expect(one.reason).toMatchObject({ code: "TRB-JOB-ELSEWHERE" });
    }
  }
}

/** Resolves to how many were to be deleted. */
async function round(lake: Lake, seed: number): Promise<number> {
  const random = new Random(seed);
  const stream = new TestStream("live");
  const lane = await lake.lane();
  // Many entities: of few there are few that nobody has written since.
  const all = randomEvents(random, 300).map((event) => ({ ...event, id: `${event.id}${random.below(9)}` }));
  const cut = 150 + random.below(100);
  const [old, young] = [all.slice(0, cut), all.slice(cut)];
  await lane.land(stream.batch(old));
  const byVersion = random.chance(0.3);
  const limit = random.pick(old).version;
  const watermark: Watermark = byVersion
    ? { version: String(limit) }
    : { positions: Object.fromEntries(progressOf((await lake.target()).table.snapshot)) };
  // The export is taken a little later than its watermark, and lacks some of what was there.
  const seen = [...old, ...young.slice(0, 10)];
  const live = winnersOf(seen).filter(({ operation }) => operation !== 3);
  const lacks = random.pick(["acme", "b.x-9", undefined]);
  const exported = live.filter(({ tenant }) => tenant !== lacks && random.chance(0.7));
  const job = `job-${seed}`;
  const tenant = random.chance(0.3) ? exported[0]?.tenant : undefined;
  const rows = exported.filter((row) => tenant === undefined || row.tenant === tenant);
  const middle = random.below(young.length);
  const order = { job, entityType: THING, tenant, watermark };
  const about = `seed ${seed}`;
  if (rows.length === 0) {
    await expect(reconcile(lake.context, order, host(), small)).rejects.toMatchObject({
      code: "TRB-RECONCILE-EXPORT",
    });
    return 0;
  }
  const batches = random.shuffle([
    () => lane.land(new TestStream(streamOf(job)).batch(rows)),
    () => lane.land(stream.batch(young.slice(0, middle))),
  ]);
  for (const land of batches) await land();
  const here = [...old, ...young.slice(0, middle)];
  const facts = [...here, ...rows].map((event, i) => ({
    event,
    older: byVersion ? event.version <= limit : i < old.length,
  }));
  const due = vanished(facts, rows).filter((one) => tenant === undefined || one.tenant === tenant);
  const told = reconcile(lake.context, order, host(), small);
  if (due.length === 0) expect(await told, about).toBe(true);
  else await expect(told, about).rejects.toMatchObject({ code: "TRB-RECONCILE-CONFIRM" });
  const plan = (await planOf(lake.context.store, job))!;
  expect(plan.deletes, about).toBe(due.length);
  // What comes between finding and landing survives by its version, or does not.
  await lane.land(stream.batch(young.slice(middle)));
  if (due.length > 0)
    await confirmDeletes(lake.context.store, job, { count: due.length, asOf: plan.version }, "ops");
  await toTheEnd(lake, order, random);
  expect(await reconcile(lake.context, order, host(), small)).toBe(true);
  await lane.look();
  await lake.settled();
  expect(await lake.rows(), about).toEqual(expectedThings([...all, ...rows, ...due]));
  const places = (await lake.rawPositions()).filter((one) => one.startsWith(`${streamOf(job)}/deletes/`));
  expect([places.length, new Set(places).size], about).toEqual([due.length, due.length]);
  return due.length;
}

test("exactly what an export lacks and nobody wrote since its watermark is deleted, in any order and overlap", async () => {
  let deleted = 0;
  for (const seed of seeds(1)) {
    const lake = await Lake.create();
    try {
      deleted += await round(lake, seed);
    } finally {
      await lake.close();
    }
  }
  // The first seed is always the same.
  if (process.env.TRIBUTARY_SEED === undefined) expect(deleted).toBeGreaterThan(10);
});

test("of an export without a row, or without one of the tenant, nothing is taken for vanished", async () => {
  const lake = await Lake.create();
  try {
    const lane = await lake.lane();
    const event = (tenant: string): TestEvent => ({ tenant, id: "1", operation: 1, version: 1n, thing: {} });
    await lane.land(new TestStream("live").batch([event("acme"), event("other")]));
    const order = { job: "j", entityType: THING, tenant: undefined, watermark: { version: 9 } };
    const refused = { code: "TRB-RECONCILE-EXPORT" };
    await expect(reconcile(lake.context, order, host(), small)).rejects.toMatchObject(refused);
    await expect(
      reconcile(lake.context, { ...order, entityType: "t.v1.Else" }, host(), small),
    ).rejects.toMatchObject(refused);
    await lane.land(new TestStream(streamOf("j")).batch([{ ...event("other"), id: "2" }]));
    await expect(reconcile(lake.context, { ...order, tenant: "acme" }, host(), small)).rejects.toMatchObject(
      refused,
    );
    await expect(reconcile(lake.context, order, host(), small)).rejects.toMatchObject({
      code: "TRB-RECONCILE-CONFIRM",
    });
    expect(await planOf(lake.context.store, "j")).toMatchObject({ deletes: 1, tenants: 1, leftAlone: 1 });
  } finally {
    await lake.close();
  }
});
