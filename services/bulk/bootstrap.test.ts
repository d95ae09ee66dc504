import { join } from "node:path";
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
} from "../../test/support/lake.js";
import { chunksOf, literal } from "../base/duckdb.js";
import { EventBatch } from "../ingest/event-batch.js";
import { CheckedMapping, mappingShape } from "../sources/mapping.js";
import { ChunkLander, streamOf } from "./chunk-lander.js";
import { positionIn, RowEvents, type RowFault } from "./row-events.js";

/** Canonical: no field that only says its zero, so that bytes do not tell an export's row from the event it came of. */
const canonical = (event: TestEvent): TestEvent => {
  const { payload: _, ...rest } = event;
  const said = Object.entries(event.thing).filter(
    ([, value]) => value !== "" && value !== 0 && value !== false,
  );
  return { ...rest, thing: Object.fromEntries(said) };
};

/** Ids hold zero bytes too. */
const text = (value: string | undefined) =>
  value === undefined ? "NULL" : `decode(unhex('${Buffer.from(value).toString("hex")}'))`;

/** The live rows that an application would export of what these events came of, in two files. */
async function exported(lake: Lake, events: readonly TestEvent[]): Promise<string[]> {
  const live = winnersOf(events).filter(({ operation }) => operation !== 3);
  const rows = live.map(({ tenant, id, version, occurred, thing }) => {
    const micros =
      occurred === undefined ? "NULL" : `${occurred.seconds}000000 + ${Math.floor(occurred.nanos / 1000)}`;
    const labels = `[${(thing.labels ?? []).map(text).join(", ")}]::VARCHAR[]`;
    return `(${text(tenant)}, ${text(id)}, ${version}, make_timestamptz(${micros}), ${text(thing.name)},
      ${thing.amount ?? "NULL"}, ${thing.hidden ?? "NULL"}, ${text(thing.number)}, ${labels}, ${text(thing.tenant_id)},
      ${text(thing.entity_id)})`;
  });
  const names = "customer, id, rev, happened, name, amount, hidden, number, labels, tenant_id, entity_id";
  const files: string[] = [];
  for (const [i, some] of [rows.slice(0, rows.length >> 1), rows.slice(rows.length >> 1)].entries()) {
    if (some.length === 0) continue;
    files.push(join(lake.folder, `export-${i}.parquet`));
    await lake.query(
      `COPY (SELECT * FROM (VALUES ${some.join(", ")}) t(${names})) TO ${literal(files.at(-1)!)}`,
    );
  }
  return files;
}

const mapping = mappingShape.parse({
  tenant: "customer",
  entityId: "id",
  version: "rev",
  occurredAt: "happened",
});

/** Lands the rows of a file in chunks of so many; goes on where an earlier try has stopped. */
async function bootstrap(
  lake: Lake,
  file: number,
  path: string,
  rows: number,
  faults: RowFault[] = [],
): Promise<number> {
  const { context } = lake;
  const type = context.registry.entityType(THING)!;
  const lander = await ChunkLander.open(context, THING);
  let landed = 0;
  try {
    await context.duck.with(async (connection) => {
      const relation = `(SELECT *, file_row_number AS tributary_ordinal FROM read_parquet(${literal(path)}, file_row_number=true))`;
      const columns = await connection.runAndReadAll(`DESCRIBE SELECT * FROM ${relation}`);
      const described = columns.getRows().map(([name, kind]) => ({ name: String(name), type: String(kind) }));
      const bound = new CheckedMapping(mapping, described, type).of("");
      const order = { type, types: context.registry.types };
      const events = await RowEvents.bind(connection, relation, bound, order);
      const fresh = () => new EventBatch(THING, streamOf("test"));
      let batch = fresh();
      const place = { partition: "0", receivedAt: Date.now() };
      for await (const chunk of chunksOf(connection, events.sql(relation))) {
        events.read(
          chunk,
          batch,
          place,
          (ordinal) => positionIn(file, ordinal + 1),
          (_, fault) => faults.push(fault),
        );
      }
      for (let at = 0; at < batch.count; at += rows) {
        const part = batch.filter((i) => i >= at && i < at + rows);
        landed += await lander.land(part);
      }
      batch = fresh();
    });
  } finally {
    await lander.close();
  }
  return landed;
}

test("the export of a log's final state and the log itself, in any order and overlap, are the log alone", async () => {
  for (const seed of seeds(2)) {
    const random = new Random(seed);
    const events = randomEvents(random, 120).map(canonical);
    const lake = await Lake.create();
    try {
      const files = await exported(lake, events.slice(0, 90));
      const stream = new TestStream();
      const lane = await lake.lane();
      const late = random.shuffle(events);
      const jobs = files.flatMap((path, file) => [
        () => bootstrap(lake, file, path, 1 + random.below(20)),
        // Run twice: what has landed stays.
        async () => expect(await bootstrap(lake, file, path, 7)).toBe(0),
      ]);
      while (late.length > 0 || jobs.length > 0) {
        const job = random.below(3) === 0 || late.length === 0 ? jobs.shift() : undefined;
        const live = late.splice(0, 1 + random.below(30));
        await Promise.all([job?.(), live.length === 0 ? undefined : lane.land(stream.batch(live))]);
      }
      await lane.look();
      await lake.settled();
      const rows = (await lake.rows()).map(String);
      expect(rows, `seed ${seed}`).toEqual(expectedThings(events));
    } finally {
      await lake.close();
    }
  }
});
