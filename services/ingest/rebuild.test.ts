import { describe, expect, test } from "vitest";
import { eachOperation, FaultyStore } from "../../test/support/faulty-store.js";
import {
  expectedThings,
  Lake,
  liveRows,
  Random,
  randomEvents,
  seeds,
  type TestEvent,
  TestStream,
  THINGS_SQL,
  winnersOf,
} from "../../test/support/lake.js";
import { DeltaTable } from "../table/delta-table.js";
import { FINGERPRINT } from "./refined-table.js";

const FIRST = { things: THINGS_SQL };
const SECOND = {
  things: `select tenant_id, entity_id, version, upper(payload.name) as shout
    from {{ source('raw', 't.v1.Thing') }} where payload.amount >= 0`,
};
const COLUMNS = ["tenant_id", "entity_id", "version", "shout"];

const expectedSecond = (events: readonly TestEvent[]): string[] =>
  winnersOf(events)
    .filter(({ operation, thing }) => operation !== 3 && (thing.amount ?? 0) >= 0)
    .map(({ tenant, id, version, thing }) =>
      JSON.stringify([tenant, id, String(version), (thing.name ?? "").toUpperCase()]),
    )
    .sort();

async function landAll(
  lake: Lake,
  stream: TestStream,
  events: readonly TestEvent[],
  size = 15,
): Promise<void> {
  const lane = await lake.lane();
  for (let at = 0; at < events.length; at += size) await lane.land(stream.batch(events.slice(at, at + size)));
}

/** The table as another process sees it: rows by the columns that its own schema has. */
async function observe(lake: Lake): Promise<{ fingerprint: string; rows: string[] }> {
  const { context } = lake;
  const table = await DeltaTable.open(context.store, "refined/t/things", context.duck, context.tableOptions);
  const { columns, properties } = table!.snapshot;
  const names = columns
    .map(({ name }) => name)
    .filter((name) => !name.startsWith("_tributary_") && name !== "tenant_partition");
  const rows = await context.duck.with((connection) => liveRows(connection, table!, names));
  return { fingerprint: properties.get(FINGERPRINT)!, rows };
}

describe("a model that has changed", () => {
  test("is rebuilt from raw and swapped in one commit, while readers see the old rows or the new ones", async () => {
    for (const seed of seeds(1)) {
      const random = new Random(seed);
      const events = randomEvents(random, 120);
      const stream = new TestStream();
      const lake = await Lake.create({ models: FIRST, checkpointEvery: 3 });
      try {
        await landAll(lake, stream, events.slice(0, 80));
        await lake.settled();
        const old = await observe(lake);
        expect(old.rows).toEqual(expectedThings(events.slice(0, 80)));
        await lake.reopen({ models: SECOND });
        const lane = await lake.lane();
        const seen = new Set<string>();
        while (lane.behind) {
          const { fingerprint, rows } = await observe(lake);
          seen.add(fingerprint);
          const right = fingerprint === old.fingerprint ? old.rows : expectedSecond(events.slice(0, 80));
          expect(rows, `seed ${seed}`).toEqual(right);
        }
        expect(seen).toContain(old.fingerprint);
        await landAll(lake, stream, events.slice(80));
        expect(await lake.rows(), `seed ${seed}`).toEqual(expectedSecond(events));
        await lake.reopen();
        expect(await lake.rows(), `seed ${seed}, reopened`).toEqual(expectedSecond(events));
        expect((await lake.target()).model.columns.map(({ name }) => name)).toEqual(COLUMNS);
        // And back again: the first rebuild's leftovers are in nobody's way.
        await lake.reopen({ models: FIRST });
        expect(await lake.rows(), `seed ${seed}, changed back`).toEqual(expectedThings(events));
        await lake.reopen({ models: SECOND });
        expect(await lake.rows(), `seed ${seed}, and forth`).toEqual(expectedSecond(events));
      } finally {
        await lake.close();
      }
    }
  });

  test("takes in what lands meanwhile", async () => {
    for (const seed of seeds(1)) {
      const events = randomEvents(new Random(seed), 150);
      const stream = new TestStream();
      const lake = await Lake.create({ models: FIRST });
      try {
        await landAll(lake, stream, events.slice(0, 50));
        await lake.reopen({ models: SECOND });
        // Without waiting for the rebuild.
        await landAll(lake, stream, events.slice(50), 5);
        expect(await lake.rows(), `seed ${seed}`).toEqual(expectedSecond(events));
        expect(await lake.rawPositions()).toEqual([...stream.positions].sort());
      } finally {
        await lake.close();
      }
    }
  });

  test("is rebuilt by whoever comes after a crash at any operation on the store", async () => {
    const round = async (at: number): Promise<boolean> => {
      const events = randomEvents(new Random(at), 60);
      const lake = await Lake.create({ models: FIRST });
      try {
        const stream = new TestStream();
        await landAll(lake, stream, events.slice(0, 40));
        await lake.settled();
        const before = (await observe(lake)).fingerprint;
        let faulty: FaultyStore | undefined;
        await lake.reopen({
          models: SECOND,
          store: (inner) => {
            faulty = new FaultyStore(inner);
            return faulty.store;
          },
        });
        faulty!.arm(at, "crash");
        const crashed = await Promise.race([lake.settled().then(() => false), faulty!.gone.then(() => true)]);
        const note = `crash at operation ${at} (${faulty!.victim})`;
        await lake.abandon({ store: (inner) => inner });
        const between = await observe(lake);
        const right = between.fingerprint === before ? expectedThings : expectedSecond;
        expect(between.rows, note).toEqual(right(events.slice(0, 40)));
        await landAll(lake, stream, events.slice(40));
        expect(await lake.rows(), note).toEqual(expectedSecond(events));
        return crashed;
      } finally {
        await lake.close();
      }
    };
    expect(await eachOperation(round)).toBeGreaterThan(10);
  }, 180_000);

  test("a new model of an entity type that raw has is filled from raw", async () => {
    const events = randomEvents(new Random(5), 60);
    const lake = await Lake.create({ models: FIRST });
    try {
      await landAll(lake, new TestStream(), events);
      await lake.reopen({ models: { ...FIRST, loud: SECOND.things } });
      expect(await lake.rows("t.loud")).toEqual(expectedSecond(events));
      expect(await lake.rows("t.things")).toEqual(expectedThings(events));
    } finally {
      await lake.close();
    }
  });
});
