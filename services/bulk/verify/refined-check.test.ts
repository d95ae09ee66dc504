import { expect, test } from "vitest";
import {
  CAST_SQL,
  Lake,
  Random,
  randomEvents,
  seeds,
  type TestEvent,
  TestStream,
  THING,
  THINGS_SQL,
  winnersOf,
} from "../../../test/support/lake.js";
import { rawRoot } from "../../ingest/raw-table.js";
import { RawWriter } from "../../ingest/raw-writer.js";
import { Target } from "../../ingest/target.js";
import { removeOf } from "../../table/actions.js";
import { append } from "../../table/append.js";
import { stageFile } from "../../table/data-file.js";
import { DeltaTable } from "../../table/delta-table.js";
import { positionsOf } from "../../table/progress.js";
import { withScan } from "../../table/scan.js";
import { Staging } from "../../table/staging.js";
import { SHARED_PARTITION } from "../../table/upsert.js";
import { streamOf } from "../jobs/job-tracks.js";
import { folderOf } from "./key-buckets.js";
import { MadeFiles } from "./made-files.js";
import { checkRefined, type RefinedCheck } from "./refined-check.js";
import { STANDINGS, type Standing } from "./standings.js";

const JOB = { stream: streamOf("j"), tenant: undefined };
const models = { things: THINGS_SQL, numbers: CAST_SQL };
const keyOf = ({ tenant, id }: TestEvent) => `${tenant}\n${id}`;
const numbered = (random: Random) => (event: TestEvent) => ({
  ...event,
  id: `${event.id}${random.below(4)}`,
  thing: { ...event.thing, number: random.pick(["1", "2", "no"]) },
});

async function check(lake: Lake, name: string, rowsAtOnce = 60): Promise<RefinedCheck> {
  const { store, duck, tableOptions, models } = lake.context;
  const raw = (await DeltaTable.open(store, rawRoot(THING), duck, tableOptions))!;
  const model = models.find((one) => one.name === `t.${name}`)!;
  const options = { pace: async () => undefined, rowsAtOnce };
  return MadeFiles.with(folderOf(lake.context), (files) =>
    checkRefined(lake.context, JOB, raw, model, { files, whole: new Set() }, options),
  );
}

/** "tenant/standing" → how many; of what the model can digest. */
function expected(
  events: readonly TestEvent[],
  rows: readonly TestEvent[],
  isHidden: (e: TestEvent) => boolean,
) {
  const winners = new Map(winnersOf(events).map((event) => [keyOf(event), event]));
  const counts = new Map<string, number>();
  for (const row of winnersOf(rows)) {
    const winner = winners.get(keyOf(row))!;
    const level = winnersOf([row, winner])[0] === row && winnersOf([winner, row])[0] === winner;
    const standing: Standing =
      winner.operation === 3 ? "deleted" : !level ? "overtaken" : isHidden(row) ? "hidden" : "winning";
    const key = `${row.tenant}/${standing}`;
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  return counts;
}

const told = ({ tenants }: RefinedCheck) =>
  new Map<string, number>(
    [...tenants].flatMap(([tenant, { entities }]) =>
      STANDINGS.filter((one) => entities[one] > 0).map((one) => [`${tenant}/${one}`, entities[one]] as const),
    ),
  );

test("each entity of a job stands in a model's table as all events together say", async () => {
  for (const seed of seeds(0)) {
    const lake = await Lake.create({ models });
    try {
      const random = new Random(seed);
      const events = randomEvents(random, 150).map(numbered(random));
      const rows = winnersOf(randomEvents(random, 150).map(numbered(random))).filter(
        ({ operation }) => operation !== 3,
      );
      const lane = await lake.lane();
      const stream = new TestStream("live");
      await lane.land(stream.batch(events.slice(0, 90)));
      await lane.land(new TestStream(JOB.stream).batch(rows));
      await lane.land(stream.batch(events.slice(90)));
      await lake.settled();
      const all = [...events, ...rows];
      const things = await check(lake, "things");
      expect(told(things), `seed ${seed}`).toEqual(expected(all, rows, ({ thing }) => thing.hidden === true));
      expect(things.keys).toEqual([]);
      for (const { made, found, differing } of things.tenants.values()) {
        expect(found).toEqual(made);
        expect(differing).toEqual({});
      }
      const digestible = ({ operation, thing }: TestEvent) => operation === 3 || thing.number !== "no";
      const numbers = expected(all.filter(digestible), rows.filter(digestible), () => false);
      const found = await check(lake, "numbers");
      for (const [key, count] of numbers)
        expect(told(found).get(key) ?? 0, key).toBeGreaterThanOrEqual(count);
      // Of which there is no other event: else that one stands.
      const some = new Set(all.filter(digestible).map(keyOf));
      const aside = [...told(found)].filter(([key]) => key.endsWith("/setAside"));
      expect(aside.length > 0, `seed ${seed}`).toBe(rows.some((row) => !some.has(keyOf(row))));
      expect(found.keys).toEqual([]);
    } finally {
      await lake.close();
    }
  }
});

test("a table that is amid its catching up, with rows before its positions, differs in nothing", async () => {
  const lake = await Lake.create({ models });
  try {
    const random = new Random(1);
    const rows = winnersOf(randomEvents(random, 60)).filter(({ operation }) => operation !== 3);
    const stream = new TestStream("live");
    const lane = await lake.lane();
    await lane.land(stream.batch(randomEvents(random, 10)));
    await lane.land(new TestStream(JOB.stream).batch(rows));
    await lake.settled();
    const { raw } = lane;
    const late = stream.batch(randomEvents(random, 60));
    await append(raw, "live", positionsOf(raw.snapshot, "live"), async (path) => ({
      file: await new RawWriter(await lake.context.duck.connect()).write(late, path),
      to: late.reached(),
    }));
    const context = { ...lake.context, decoding: { ...lake.context.decoding, sliceBytes: 400 } };
    const target = await Target.open(context, context.models.find(({ name }) => name === "t.things")!);
    const { writer } = target;
    const upsert = writer.upsert.bind(writer);
    const checks: RefinedCheck[] = [];
    writer.upsert = async (one) => {
      // Before the last one of the range, which moves the table's positions.
      if (one.to.size > 0) checks.push(await check(lake, "things"));
      return upsert(one);
    };
    await target.catchUp(raw, new AbortController().signal);
    await target.close();
    expect(checks.length).toBeGreaterThan(0);
    expect([...told(checks[0]!).keys()].some((key) => key.endsWith("/overtaken"))).toBe(true);
    for (const { keys } of checks) expect(keys).toEqual([]);
  } finally {
    await lake.close();
  }
});

/** Writes the live rows of the table anew, as SQL over them has it. */
async function damage(lake: Lake, sql: (rows: string) => string): Promise<void> {
  const { table } = await lake.target("t.things");
  const { snapshot } = table;
  const live = snapshot.files.filter(({ tombstones }) => !tombstones);
  await lake.context.duck.with((connection) =>
    Staging.run(table, async (staging) => {
      const file = await withScan(table, snapshot, {}, (rows) =>
        stageFile(staging, connection, `SELECT * EXCLUDE (tenant_partition) FROM (${sql(rows)})`, {
          partition: SHARED_PARTITION,
        }),
      );
      await staging.publish([file]);
      await staging.commit({
        operation: "OPTIMIZE",
        actions: [...live.map(({ add }) => ({ remove: removeOf(add, 0, true) })), { add: file.add }],
        expect: new Map(),
        basedOn: snapshot.version,
        serializable: false,
      });
    }),
  );
}

const row = (id: string, name: string): TestEvent => ({
  tenant: "acme",
  id,
  operation: 1,
  version: 5n,
  thing: { name, amount: 7 },
});
const DAMAGES: readonly (readonly [why: string, sql: (rows: string) => string, keys: readonly string[]])[] = [
  ["missing", (rows) => `FROM (${rows}) WHERE entity_id <> 'b'`, ["b missing"]],
  ["wrong", (rows) => `FROM (${rows}) UNION ALL FROM (${rows}) WHERE entity_id = 'c'`, ["c wrong"]],
  [
    "stale",
    (rows) =>
      `SELECT * REPLACE (if(entity_id = 'a', 4, _tributary_version) AS _tributary_version) FROM (${rows})`,
    ["a stale"],
  ],
  [
    "unexplained",
    (rows) =>
      `SELECT * REPLACE (if(entity_id = 'a', 6, _tributary_version) AS _tributary_version) FROM (${rows})`,
    ["a unexplained"],
  ],
  [
    "another value",
    (rows) => `SELECT * REPLACE (if(entity_id = 'a', 8, amount) AS amount) FROM (${rows})`,
    ["a amount"],
  ],
  [
    "values that have changed places",
    (rows) =>
      `SELECT * REPLACE (CASE entity_id WHEN 'a' THEN 'bob' WHEN 'b' THEN 'ann' ELSE name END AS name) FROM (${rows})`,
    ["a name", "b name"],
  ],
];

test.each(DAMAGES)("a table that is damaged shows, by its keys: %s", async (_, sql, keys) => {
  const lake = await Lake.create({ models: { things: THINGS_SQL } });
  try {
    const lane = await lake.lane();
    await lane.land(new TestStream(JOB.stream).batch([row("a", "ann"), row("b", "bob"), row("c", "zoë")]));
    await lake.settled();
    expect((await check(lake, "things")).keys).toEqual([]);
    await damage(lake, sql);
    const found = await check(lake, "things", 1);
    expect(found.keys.map(({ id, why }) => `${id} ${why}`)).toEqual(keys);
    const { made, found: table, differing } = found.tenants.get("acme")!;
    const columns = keys.filter((key) => / (amount|name)$/.test(key)).map((key) => key.split(" ")[1]!);
    expect(Object.keys(differing)).toEqual([...new Set(columns)]);
    for (const name of Object.keys(made))
      expect(made[name] === table[name], name).toBe(!columns.includes(name));
  } finally {
    await lake.close();
  }
});
