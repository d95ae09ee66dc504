import { describe, expect, test } from "vitest";
import { eachOperation, FaultyStore } from "../../../test/support/faulty-store.js";
import { injure as injureTable } from "../../../test/support/injure.js";
import { hostOf, replayOf } from "../../../test/support/jobs.js";
import {
  expectedThings,
  Lake,
  liveRows,
  Random,
  randomEvents,
  seeds,
  type TestEvent,
  TestStream,
  THING,
  winnersOf,
} from "../../../test/support/lake.js";
import { encodeEvent } from "../../contracts/encode-event.js";
import { EventBatch } from "../../ingest/event-batch.js";
import { Offloaded } from "../../offload/offloaded.js";
import { DeltaTable } from "../../table/delta-table.js";
import { progressOf } from "../../table/progress.js";
import { verifyTable } from "../../table/verify.js";
import { type Job, jobState, type Phase, type ReplayJob } from "../jobs/job.js";
import { JobStore } from "../jobs/job-store.js";
import { CancelledReplays } from "./cancelled-replays.js";
import { runReplay } from "./replay-job.js";
import { type ReplayReport, replayReport } from "./replay-report.js";

const MODEL = "t.things";
const GREATEST = (1n << 63n) - 1n;

async function replay(lake: Lake, words: Partial<ReplayJob>, host = hostOf()): Promise<ReplayReport> {
  const order = replayOf(words);
  expect(await runReplay(lake.context, order, host)).toBe(true);
  return (await replayReport(lake.context.store, order.id))!;
}

async function landAll(lake: Lake, stream: TestStream, events: readonly TestEvent[], size = 15) {
  for (let at = 0; at < events.length; at += size) await lake.land(stream.batch(events.slice(at, at + size)));
}

const openTable = async ({ context }: Lake): Promise<DeltaTable> =>
  (await DeltaTable.open(context.store, "refined/t/things", context.duck, context.tableOptions))!;

async function servedRows(lake: Lake): Promise<string[]> {
  const table = await openTable(lake);
  const columns = lake.context.models.find(({ name }) => name === MODEL)!.columns.map(({ name }) => name);
  return lake.context.duck.with((connection) => liveRows(connection, table, columns));
}

const injure = (lake: Lake, events: readonly TestEvent[], sql?: (sql: string) => string) =>
  injureTable(lake.context, MODEL, new TestStream("nowhere").batch(events), sql);

const tenantOf = (row: string): string => (JSON.parse(row) as string[])[0]!;
const keyOf = (row: string): string => JSON.stringify((JSON.parse(row) as string[]).slice(0, 2));

/** What a comparison must tell of live rows. */
function differences(served: readonly string[], right: readonly string[]) {
  const byKey = (rows: readonly string[]) => new Map(rows.map((row) => [keyOf(row), row]));
  const [a, b] = [byKey(served), byKey(right)];
  const found: string[] = [];
  for (const key of new Set([...a.keys(), ...b.keys()])) {
    const kind = !a.has(key) ? "missing" : !b.has(key) ? "extra" : a.get(key) === b.get(key) ? "" : "changed";
    if (kind !== "") found.push(`${kind} ${key}`);
  }
  return found.sort();
}

const told = ({ difference }: ReplayReport): string[] =>
  difference.keys
    .filter(({ kind }) => kind !== "tombstone")
    .map(({ kind, tenant, entityId }) => `${kind} ${JSON.stringify([tenant, entityId])}`)
    .sort();

/** Events that no stream has brought: they win over all that it will. */
const phantoms = (random: Random, events: readonly TestEvent[], count: number): TestEvent[] =>
  Array.from({ length: count }, () => {
    const { tenant, id } = random.pick(events);
    return random.chance(0.4)
      ? { tenant, id, operation: 3, version: GREATEST, thing: {} }
      : {
          tenant,
          id: random.chance(0.5) ? id : `new-${id}`,
          operation: 2,
          version: GREATEST,
          thing: { name: "phantom" },
        };
  });

describe("a replay", () => {
  test("finds what is wrong in a table, mends one tenant and no other, then all of it, beside live traffic", async () => {
    for (const seed of seeds(0)) {
      const random = new Random(seed);
      const events = randomEvents(random, 160);
      const lake = await Lake.create({ checkpointEvery: 5 });
      const other = await lake.twin();
      const note = `seed ${seed}`;
      try {
        const stream = new TestStream("test");
        await landAll(lake, stream, events.slice(0, 80));
        await lake.settled();
        expect(await replay(other, { id: "well" }), note).toMatchObject({
          difference: { missing: 0, extra: 0, changed: 0, tombstones: 0, keys: [] },
          setAside: [],
        });
        const tenant = random.pick(["acme", "acme:eu", "b.x-9"]);
        const wrong = phantoms(random, events.slice(0, 80), 12);
        await injure(other, wrong);
        const marred = winnersOf(events.slice(0, 80)).filter(
          (one) => one.tenant === tenant && one.operation !== 3 && !wrong.some((w) => w.id === one.id),
        );
        await injure(other, marred.slice(0, 2), (sql) =>
          sql.replace("payload.name as", "payload.name || '!' as"),
        );
        const right = expectedThings(events.slice(0, 80));
        const report = await replay(other, { id: "compare" });
        const expected = differences(await servedRows(other), right);
        expect(told(report), note).toEqual(expected);
        const { missing, extra, changed } = report.difference;
        expect([missing + extra + changed, report.difference.rebuilt], note).toEqual([
          expected.length,
          right.length,
        ]);
        const own = await replay(other, { id: "own", tenant });
        expect(told(own), note).toEqual(expected.filter((one) => one.includes(JSON.stringify(tenant))));

        // Live events come meanwhile, older and newer ones, of this tenant and others.
        await Promise.all([
          replay(other, { id: "repair", action: "repair", tenant }),
          landAll(lake, stream, events.slice(80, 120), 7),
        ]);
        await lake.settled();
        const some = events.slice(0, 120);
        const of = (rows: readonly string[], isOwn: boolean) =>
          rows.filter((row) => (tenantOf(row) === tenant) === isOwn);
        expect(await servedRows(lake), note).toEqual(
          [...of(expectedThings(some), true), ...of(expectedThings([...some, ...wrong]), false)].sort(),
        );

        await Promise.all([
          replay(other, { id: "swap", action: "swap" }),
          landAll(lake, stream, events.slice(120), 7),
        ]);
        await lake.settled();
        expect(await servedRows(lake), note).toEqual(expectedThings(events));
        expect(await replay(other, { id: "after" }), note).toMatchObject({
          difference: { missing: 0, extra: 0, changed: 0, tombstones: 0 },
        });
        expect((await verifyTable(await openTable(lake))).problems, note).toEqual([]);
        expect(await lake.rawPositions()).toEqual([...stream.positions].sort());
      } finally {
        other.context.duck.close();
        await lake.close();
      }
    }
  }, 120_000);

  test("never shows a table that has taken in less than it had, nor a mixture", async () => {
    const events = randomEvents(new Random(3), 120);
    const lake = await Lake.create();
    const other = await lake.twin();
    try {
      const stream = new TestStream("test");
      await landAll(lake, stream, events.slice(0, 60));
      await lake.settled();
      let done = false;
      const watch = async () => {
        const table = await openTable(other);
        let before = progressOf(table.snapshot);
        while (!done) {
          const now = progressOf(await table.refresh());
          for (const [track, position] of before) expect(position <= (now.get(track) ?? "")).toBe(true);
          before = now;
        }
      };
      const watching = watch();
      await Promise.all([
        replay(other, { id: "s1", action: "swap" }),
        landAll(lake, stream, events.slice(60), 3),
      ]).finally(() => {
        done = true;
      });
      await watching;
      await lake.settled();
      expect(await lake.rows()).toEqual(expectedThings(events));
    } finally {
      other.context.duck.close();
      await lake.close();
    }
  });

  test("killed at any operation on the store it is gone on with", async () => {
    const round = async (at: number): Promise<boolean> => {
      const random = new Random(at);
      const action = random.pick(["swap", "repair"] as const);
      const events = randomEvents(random, 30);
      const wrong = phantoms(random, events, 8).filter(
        ({ tenant }) => action === "swap" || tenant === "acme",
      );
      const lake = await Lake.create();
      let faulty: FaultyStore | undefined;
      const dying = await lake.twin({
        store: (inner) => {
          faulty = new FaultyStore(inner);
          return faulty.store;
        },
      });
      try {
        await landAll(lake, new TestStream("test"), events);
        await lake.settled();
        await injure(lake, wrong);
        const order = replayOf({ action, ...(action === "repair" ? { tenant: "acme" } : {}) });
        faulty!.arm(at, "crash");
        const crashed = await Promise.race([
          runReplay(dying.context, order, hostOf()).then(() => false),
          faulty!.gone.then(() => true),
        ]);
        const note = `${action}, crash at operation ${at} (${faulty!.victim})`;
        const right = expectedThings(events);
        const marred = expectedThings([...events, ...wrong]);
        expect([right, marred], note).toContainEqual(await servedRows(lake));
        expect(await runReplay(lake.context, order, hostOf()), note).toBe(true);
        expect(await servedRows(lake), note).toEqual(right);
        expect((await verifyTable(await openTable(lake))).problems, note).toEqual([]);
        return crashed;
      } finally {
        await lake.close();
      }
    };
    expect(await eachOperation(round, 12)).toBeGreaterThan(10);
  }, 240_000);

  test("stopped at any chunk it goes on, and says that it is not done", async () => {
    const events = randomEvents(new Random(4), 90);
    const lake = await Lake.create({ rangeEvents: 20 });
    try {
      await landAll(lake, new TestStream("test"), events);
      await lake.settled();
      const order = replayOf({ action: "swap" });
      let runs = 0;
      for (let done = false; !done; runs++) {
        const stop = new AbortController();
        done = await runReplay(
          lake.context,
          order,
          hostOf({
            signal: stop.signal,
            pace: async () => {
              stop.abort();
              stop.signal.throwIfAborted();
            },
          }),
        );
      }
      expect(runs).toBeGreaterThan(3);
      expect(await servedRows(lake)).toEqual(expectedThings(events));
    } finally {
      await lake.close();
    }
  });
});

test("what a cancelled replay was building goes; of one that has failed, or another one's, it stays", async () => {
  const lake = await Lake.create({ rangeEvents: 20 });
  const { context } = lake;
  try {
    await landAll(lake, new TestStream("test"), randomEvents(new Random(5), 60));
    await lake.settled();
    const begin = async (id: string): Promise<ReplayJob> => {
      const stop = new AbortController();
      const pace = async () => {
        stop.abort();
        stop.signal.throwIfAborted();
      };
      const order = replayOf({ id, action: "swap" });
      expect(await runReplay(context, order, hostOf({ signal: stop.signal, pace }))).toBe(false);
      return order;
    };
    const beside = async (): Promise<number> => {
      let count = 0;
      for await (const { key } of context.store.list("refined/t/things/rebuilt-"))
        count += Number(key !== "");
      return count;
    };
    const inPhase = (order: ReplayJob, phase: Phase): Job => ({
      order,
      wish: "run",
      state: jobState.parse({ phase, writtenAt: order.at }),
    });
    const cancelled = new CancelledReplays(context);
    const rows = await servedRows(lake);
    const first = await begin("r1");
    await cancelled.tidy([inPhase(first, "failed"), inPhase(replayOf({ id: "r0" }), "cancelled")]);
    expect(await beside()).toBeGreaterThan(0);
    await cancelled.tidy([inPhase(first, "cancelled")]);
    expect(await beside()).toBe(0);
    const second = await begin("r2");
    await cancelled.tidy([inPhase(first, "cancelled"), inPhase(second, "paused")]);
    expect(await beside()).toBeGreaterThan(0);
    expect(await runReplay(context, second, hostOf())).toBe(true);
    expect(await servedRows(lake)).toEqual(rows);
  } finally {
    await lake.close();
  }
});

test("payloads that lie elsewhere are fetched and checked; events whose payload is missing or rotten are told", async () => {
  const lake = await Lake.create();
  try {
    const { store } = lake.context;
    const batch = new EventBatch(THING, "test");
    const keys: string[] = [];
    for (const [i, name] of ["whole", "missing", "rotten"].entries()) {
      const payload = Buffer.concat([Buffer.from([10, name.length]), Buffer.from(name)]);
      const reference = await new Offloaded(store, 1e9).put("acme", `type.googleapis.com/${THING}`, payload);
      keys.push(reference.uri);
      const event = { tenantId: "acme", entityType: THING, entityId: name, operation: 1, version: 1 };
      const bytes = encodeEvent({ ...event, reference });
      batch.add(bytes, 0, bytes.length, "0", String(i + 1).padStart(12, "0"), 1_700_000_000_000);
    }
    await lake.land(batch);
    await lake.settled();
    expect((await servedRows(lake)).length).toBe(3);
    expect(await replay(lake, { id: "well" })).toMatchObject({ setAside: [], difference: { keys: [] } });
    await store.delete([keys[1]!]);
    await store.put(keys[2]!, Buffer.from("nnrotten"));
    const found = await replay(lake, { id: "ill" });
    expect(found.setAside.map(({ code, events, places }) => [code, events, places.length]).sort()).toEqual([
      ["TRB-EVENT-PAYLOAD-CORRUPT", 1, 1],
      ["TRB-EVENT-PAYLOAD-MISSING", 1, 1],
    ]);
    expect(told(found)).toEqual(['extra ["acme","missing"]', 'extra ["acme","rotten"]']);
    expect(await lake.deadLetters()).toEqual([]);
    // No row goes for that by itself, whoever goes on with the job.
    const order = replayOf({ id: "swap", action: "swap" });
    for (let run = 0; run < 2; run++)
      await expect(runReplay(lake.context, order, hostOf())).rejects.toMatchObject({
        code: "TRB-REPLAY-PAYLOADS",
      });
    expect((await servedRows(lake)).length).toBe(3);
    const jobs = new JobStore(store);
    await jobs.order(order);
    await jobs.tell("swap", { ...(await jobs.get("swap")).state, phase: "failed" });
    // Where somebody says so what is lacking is kept, to be redriven once the payload is back.
    await replay(lake, { id: "lossy", action: "swap", incomplete: true });
    expect((await servedRows(lake)).length).toBe(1);
    expect((await lake.deadLetters()).map((letter) => letter.split(" ")[1]).sort()).toEqual([
      "TRB-EVENT-PAYLOAD-CORRUPT",
      "TRB-EVENT-PAYLOAD-MISSING",
    ]);
  } finally {
    await lake.close();
  }
});

describe("a replay of some events", () => {
  test("finds and mends what they say, and leaves what others say", async () => {
    for (const seed of seeds(0)) {
      const random = new Random(seed);
      const events = randomEvents(random, 90).map((event, i) => ({ ...event, version: BigInt(i + 1) }));
      const lake = await Lake.create();
      try {
        await landAll(lake, new TestStream("test"), events);
        await lake.settled();
        const best = winnersOf(events).filter(
          ({ operation, thing }) => operation !== 3 && thing.hidden !== true,
        );
        const louder = (sql: string) => sql.replace("payload.name as", "payload.name || '!' as");
        await injure(lake, best, louder);
        const range = { from: 30, until: 61 };
        const within = best.filter(({ version }) => version >= 30n && version < 61n);
        const report = await replay(lake, { id: "c", ...range });
        expect(told(report), `seed ${seed}`).toEqual(
          within.map(({ tenant, id }) => `changed ${JSON.stringify([tenant, id])}`).sort(),
        );
        for (const { columns } of report.difference.keys) expect(columns).toEqual(["name"]);
        await replay(lake, { id: "r", ...range, action: "repair", tenant: "acme" });
        const right = new Map(expectedThings(events).map((row) => [keyOf(row), row]));
        const mended = new Set(
          within
            .filter(({ tenant }) => tenant === "acme")
            .map(({ tenant, id }) => JSON.stringify([tenant, id])),
        );
        const mendedRows = await servedRows(lake);
        for (const row of mendedRows)
          expect(row === right.get(keyOf(row)), `seed ${seed} ${row}`).toBe(mended.has(keyOf(row)));
        expect(mendedRows.length).toBe(right.size);
      } finally {
        await lake.close();
      }
    }
  });

  test("by the time they were received", async () => {
    const events = randomEvents(new Random(7), 40).map((event, i) => ({ ...event, version: BigInt(i + 1) }));
    const lake = await Lake.create();
    try {
      await landAll(lake, new TestStream("test"), events);
      await lake.settled();
      // The test's stream receives an event a millisecond, in their order.
      const at = (number: number) => new Date(1_700_000_000_000 + number).toISOString();
      expect((await replay(lake, { id: "a", from: at(12), until: at(20) })).events).toBe(8);
      const late = await replay(lake, { id: "b", from: at(31) });
      expect([late.events, late.plan.rows < events.length]).toEqual([events.length - 30, true]);
    } finally {
      await lake.close();
    }
  });

  test.each([
    [{ action: "swap", from: 3 }, "from, until"],
    [{ action: "swap", tenant: "acme" }, "tenant"],
    [{ action: "repair" }, "tenant"],
    [{ from: 3, until: "2026-01-01T00:00:00.000Z" }, "from, until"],
    [{ from: 3, until: 3 }, "from, until"],
    [{ model: "t.none" }, "model"],
  ] as const)("is refused where it makes no sense: %j", async (words, field) => {
    const lake = await Lake.create();
    try {
      await expect(runReplay(lake.context, replayOf(words), hostOf())).rejects.toMatchObject({
        code: "TRB-REPLAY-ORDER",
        message: expect.stringContaining(field),
      });
    } finally {
      await lake.close();
    }
  });
});
