import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test, vi } from "vitest";
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
  THINGS_SQL,
  winnersOf,
} from "../../../test/support/lake.js";
import { loadConfig } from "../../base/config.js";
import { literal } from "../../base/duckdb.js";
import { layout } from "../../base/paths.js";
import { rawRoot } from "../../ingest/raw-table.js";
import { refinedRoot } from "../../ingest/refined-table.js";
import type { Reject } from "../../sources/formats.js";
import { inspect } from "../../sources/inspect.js";
import type { Manifest } from "../../sources/manifest.js";
import { mappingShape } from "../../sources/mapping.js";
import { type Place, Sources } from "../../sources/sources.js";
import { DeltaTable } from "../../table/delta-table.js";
import { progressOf } from "../../table/progress.js";
import { Bootstrap } from "./bootstrap.js";

vi.mock("../../sources/source-process.js", () => import("../../../test/support/readers-here.js"));

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

/** The live rows that an application would export of what these events came of, as Parquet and as lines of JSON. */
const exported = (lake: Lake, folder: string, events: readonly TestEvent[]): Promise<number> =>
  written(
    lake,
    folder,
    winnersOf(events).filter(({ operation }) => operation !== 3),
  );

async function written(lake: Lake, folder: string, live: readonly TestEvent[]): Promise<number> {
  const rows = live.map(({ tenant, id, version, occurred, thing }) => {
    const micros =
      occurred === undefined ? "NULL" : `${occurred.seconds}000000 + ${Math.floor(occurred.nanos / 1000)}`;
    const labels = `[${(thing.labels ?? []).map(text).join(", ")}]::VARCHAR[]`;
    return `(${text(tenant)}, ${text(id)}, ${version}, make_timestamptz(${micros}), ${text(thing.name)},
      ${thing.amount ?? "NULL"}, ${thing.hidden ?? "NULL"}, ${text(thing.number)}, ${labels}, ${text(thing.tenant_id)},
      ${text(thing.entity_id)})`;
  });
  const names = "customer, id, rev, happened, name, amount, hidden, number, labels, tenant_id, entity_id";
  const half = rows.length >> 1;
  const copy = (some: readonly string[], file: string, options: string) =>
    lake.query(
      `COPY (SELECT * FROM (VALUES ${some.join(", ")}) t(${names})) TO ${literal(join(folder, file))} (${options})`,
    );
  for (const kind of ["parquet", "json"]) mkdirSync(join(folder, kind));
  await copy(rows.slice(0, half), "parquet/a.parquet", "FORMAT parquet");
  await copy(rows.slice(half), "parquet/b.parquet", "FORMAT parquet");
  await copy(rows.slice(0, half), "json/a.ndjson", "FORMAT json");
  await copy(rows.slice(half), "json/b.ndjson.gz", "FORMAT json, COMPRESSION gzip");
  return rows.length;
}

const mapping = mappingShape.parse({
  tenant: "customer",
  entityId: "id",
  version: "rev",
  occurredAt: "happened",
});

/** Runs a job until it has landed so many chunks; resolves to whether it is done. */
async function run(lake: Lake, place: Place, manifest: Manifest, chunks: number, rows: number) {
  const stop = new AbortController();
  const rejects: Reject[] = [];
  let landed = 0;
  let paced = 0;
  const done = await Bootstrap.run(
    lake.context,
    {
      job: manifest.format,
      entityType: THING,
      tenant: undefined,
      mapping,
      place,
      manifest,
      limits: lake.context.config.bulk,
      chunk: { rows, bytes: 1 << 20 },
    },
    {
      landed: (chunk) => {
        landed += chunk.rows;
        if (--chunks === 0) stop.abort();
      },
      reject: async (_, some) => void rejects.push(...some),
      pace: async (work) => {
        paced += work.rows;
      },
      calm: async () => undefined,
      behind: async () => undefined,
      signal: stop.signal,
    },
  );
  return { done, landed, paced, rejects };
}

test.each(["parquet", "json"])(
  "the export (%s) of a log's final state and the log itself, in any order and overlap, are the log alone",
  async (kind) => {
    for (const seed of seeds(0)) {
      const random = new Random(seed);
      const events = randomEvents(random, 120).map(canonical);
      const lake = await Lake.create();
      const folder = mkdtempSync(join(tmpdir(), "tributary-export-"));
      const config = loadConfig({ data: lake.folder, bulk: { sources: { exports: folder } } }, { env: {} });
      const sources = await Sources.open(config, join(lake.folder, "scratch"));
      try {
        const rows = await exported(lake, folder, events.slice(0, 90));
        const place = sources.at(`exports/${kind}`);
        const manifest = await inspect(place, {}, config.bulk);
        const stream = new TestStream();
        const lane = await lake.lane();
        const late = random.shuffle(events);
        let done = false;
        while (late.length > 0 || !done) {
          const live = late.splice(0, 1 + random.below(40));
          const [ran]: [Awaited<ReturnType<typeof run>> | undefined, unknown] = await Promise.all([
            done || random.below(2) === 0
              ? undefined
              : run(lake, place, manifest, 1 + random.below(3), 5 + random.below(30)),
            live.length === 0 ? undefined : lane.land(stream.batch(live)),
          ]);
          expect(ran?.rejects ?? []).toEqual([]);
          done ||= ran?.done === true;
        }
        expect(await run(lake, place, manifest, 9, 100)).toEqual({
          done: true,
          landed: 0,
          paced: 0,
          rejects: [],
        });
        // Each row is in raw, once.
        const places = (await lake.rawPositions()).filter((one) => one.startsWith("bootstrap-"));
        expect([places.length, new Set(places).size]).toEqual([rows, rows]);
        await lane.look();
        await lake.settled();
        expect(await lake.rows(), `seed ${seed}`).toEqual(expectedThings(events));
      } finally {
        sources.close();
        await lake.close();
        rmSync(folder, { recursive: true, force: true });
      }
    }
  },
);

const WHOLE_SQL = `select tenant_id, entity_id, operation, version, occurred_at, payload.name as name,
  payload.amount as amount, payload.hidden as hidden, payload.number as number, payload.labels as labels,
  payload.at as at, payload.ratio as ratio, payload.tenant_id as tenant, payload as thing
  from {{ source('raw', 't.v1.Thing') }}`;

test("each chunk is in the models' tables with raw, row for row what a rebuild makes of raw", async () => {
  for (const seed of seeds(0)) {
    const random = new Random(seed);
    const lake = await Lake.create({ models: { things: THINGS_SQL, whole: WHOLE_SQL } });
    const folder = mkdtempSync(join(tmpdir(), "tributary-export-"));
    const config = loadConfig({ data: lake.folder, bulk: { sources: { exports: folder } } }, { env: {} });
    const sources = await Sources.open(config, join(lake.folder, "scratch"));
    const { store, duck, tableOptions } = lake.context;
    try {
      // Not their winners alone: keys come again within chunks and in later ones, with ties.
      const events = randomEvents(random, 200).filter(({ operation }) => operation !== 3);
      const rows = await written(lake, folder, events.map(canonical));
      const place = sources.at("exports/parquet");
      const manifest = await inspect(place, {}, config.bulk);
      const chunk = 7 + random.below(40);
      // Limits hold for all of it, the last chunks of its files among them.
      expect(await run(lake, place, manifest, 99, chunk)).toEqual({
        done: true,
        landed: rows,
        paced: rows,
        rejects: [],
      });
      const roots = lake.context.models.map(refinedRoot);
      const raw = (await DeltaTable.open(store, rawRoot(THING), duck, tableOptions))!;
      const read = (name: string) =>
        duck.with(async (connection) => {
          const table = (await DeltaTable.open(store, name, duck, tableOptions))!;
          expect(progressOf(table.snapshot), name).toEqual(progressOf(raw.snapshot));
          const columns = table.snapshot.columns.map((column) => column.name);
          return liveRows(connection, table, columns);
        });
      const made = await Promise.all(roots.map(read));
      expect(made[1]!.length).toBeGreaterThan(made[0]!.length);
      for (const root of roots) rmSync(join(layout(lake.folder).lake, root), { recursive: true });
      await lake.settled();
      expect(await Promise.all(roots.map(read)), `seed ${seed}`).toEqual(made);
    } finally {
      sources.close();
      await lake.close();
      rmSync(folder, { recursive: true, force: true });
    }
  }
});
