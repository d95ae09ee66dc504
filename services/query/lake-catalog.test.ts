import { readFileSync, writeFileSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { setImmediate } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, onTestFinished, test, vi } from "vitest";
import { CountingStore } from "../../test/support/counting-store.js";
import { encodeTestEvent, Lake, type TestEvent, THING, writeProject } from "../../test/support/lake.js";
import { rowsOf } from "../base/duckdb.js";
import { EventBatch } from "../ingest/event-batch.js";
import { rawRoot } from "../ingest/raw-table.js";
import { type BoundModel, bindModel } from "../models/bind.js";
import { loadModels } from "../models/project.js";
import { writeWorkerStatus } from "../status/ingest-status.js";
import type { StreamBatch } from "../stream/change-stream.js";
import { setLogAside } from "../table/repair.js";
import { type CatalogTable, visibleColumns } from "./catalog.js";
import { LakeCatalog } from "./lake-catalog.js";
import { lookForWaiting } from "./waiting-events.js";

const STREAM = "log";
const MODELS = {
  things: `select tenant_id, entity_id, payload.name as name, payload.labels as labels,
    cast(payload.amount as decimal(12, 2)) as amount, {'low': version, 'High': [operation]} as nested,
    map {'k': payload.number} as m from {{ source('raw', 't.v1.Thing') }}`,
  broken: `select tenant_id, entity_id, payload.name as name from {{ source('raw', 't.v1.Thing') }}`,
};
const SCHEMA = `version: 2
models:
  - name: things
    description: things as they are
    columns: [{ name: name, description: what it is called }]
`;

let lake: Lake;
let catalog: LakeCatalog;
let stream: Stream;
/** Other types than the models': their events wait for nobody. */
const OTHER = "t.v1.Else";

/** A stream of one partition that keeps what the test appended, and hands out what stands behind its record. */
class Stream {
  readonly name = STREAM;
  lowWater = 0;
  looks = 0;
  private readonly events: { bytes: Buffer; receivedAt: number }[] = [];

  append(event: TestEvent, receivedAt: number, type = THING): string {
    const bytes = encodeTestEvent(event);
    if (type !== THING) bytes.write(type, bytes.indexOf(THING), "latin1");
    this.events.push({ bytes, receivedAt });
    return positionOf(this.events.length);
  }

  async *waiting(): AsyncGenerator<StreamBatch> {
    this.looks++;
    for (let at = this.lowWater; at < this.events.length; at++) {
      const { bytes, receivedAt } = this.events[at]!;
      yield {
        bytes,
        count: 1,
        starts: Uint32Array.of(0),
        ends: Uint32Array.of(bytes.length),
        names: ["0"],
        partitions: Uint16Array.of(0),
        positions: [positionOf(at + 1)],
        receivedAt: Float64Array.of(receivedAt),
      };
    }
  }

  /** What the lane is to land: the events after `done`, up to the newest. */
  batch(done: number): EventBatch {
    const batch = new EventBatch(THING, STREAM);
    this.events.slice(done).forEach(({ bytes, receivedAt }, at) => {
      if (bytes.includes(THING))
        batch.add(bytes, 0, bytes.length, "0", positionOf(done + at + 1), receivedAt);
    });
    return batch;
  }
}

const positionOf = (n: number): string => String(n).padStart(12, "0");
const thing = (tenant: string, id: string): TestEvent => ({
  tenant,
  id,
  operation: 1,
  version: 1n,
  thing: { name: `${tenant}'s`, amount: 3, labels: ["a"], number: "1" },
});

const openCatalog = (store = lake.context.store) =>
  new LakeCatalog({
    store,
    duck: lake.context.duck,
    table: { checkpointEvery: 7 },
    streams: { nameOf: () => STREAM, stream: () => stream },
    consumer: "ingest",
    models: () => lake.context.models,
  });

beforeEach(async () => {
  lake = await Lake.create({ models: MODELS, schema: SCHEMA });
  stream = new Stream();
  catalog = openCatalog();
});
afterEach(() => lake.close());

const things = async (): Promise<CatalogTable> =>
  (await catalog.tables()).find(({ model }) => model === "things")!;

async function rows(table: CatalogTable, tenant: string): Promise<unknown[][]> {
  return table.withRows(["tenant_id", "entity_id", "name"], tenant, (sql) =>
    lake.context.duck.with((connection) =>
      rowsOf(connection, `SELECT * FROM (${sql}) WHERE tenant_id = '${tenant}' ORDER BY ALL`),
    ),
  );
}

/** All that a tenant can see of a table without reading rows. */
const shown = (tables: readonly CatalogTable[]) =>
  tables.map((table) => ({
    name: `${table.domain}.${table.model}`,
    description: table.description,
    columns: visibleColumns(table),
  }));

test("a table whose log a repair has set aside is read from its new one, never from both", async () => {
  const land = async (events: readonly TestEvent[]) => {
    const done = landed;
    for (const event of events) stream.append(event, 1);
    landed += events.length;
    await (await lake.lane()).land(stream.batch(done));
  };
  let landed = 0;
  for (const id of ["1", "2", "3"]) await land([thing("acme", id)]);
  await lake.settled();
  expect(await rows(await things(), "acme")).toHaveLength(3);
  await lake.reopen();
  await setLogAside(lake.context.store, "refined/t/things");
  for (const id of ["1", "2", "4"]) {
    await land([thing("acme", id)]);
    await lake.settled();
    const there = (await rows(await things(), "acme")).map(([, entity]) => entity);
    expect(there).toEqual(id === "4" ? ["1", "2", "3", "4"] : ["1", "2", "3"]);
  }
});

describe("tables are the project's models", () => {
  test("from the first minute, empty, and the same once another tenant has rows", async () => {
    const before = await catalog.tables();
    expect(before.map(({ model }) => model).sort()).toEqual(["broken", "things"]);
    expect(shown(before).find(({ name }) => name === "t.things")).toMatchObject({
      description: "things as they are",
      columns: [
        { name: "tenant_id", type: "VARCHAR" },
        { name: "entity_id", type: "VARCHAR" },
        { name: "name", type: "VARCHAR", description: "what it is called" },
        { name: "labels", type: "VARCHAR[]" },
        { name: "amount", type: "DECIMAL(12,2)" },
        { name: "nested", type: 'STRUCT("low" BIGINT, "High" VARCHAR[])' },
        { name: "m", type: "MAP(VARCHAR, VARCHAR)" },
      ],
    });
    expect(await rows(await things(), "acme")).toEqual([]);

    stream.append(thing("globex", "1"), Date.now());
    await lake.land(stream.batch(0));
    await lake.settled();
    const after = await catalog.tables();
    expect(shown(after)).toEqual(shown(before));
    expect(await rows(await things(), "acme")).toEqual([]);
    expect(await rows(await things(), "globex")).toEqual([["globex", "1", "globex's"]]);
    expect(await (await things()).freshness("acme")).toBe(0);
  });

  test("a table of an older version of its model serves its own columns until it is rebuilt", async () => {
    stream.append(thing("acme", "1"), Date.now());
    await lake.land(stream.batch(0));
    await lake.settled();
    const folder = join(lake.folder, "changed");
    const fresh = "select tenant_id, entity_id, 1 as fresh from {{ source('raw', 't.v1.Thing') }}";
    writeProject(folder, { ...MODELS, things: fresh });
    const changed: BoundModel[] = [];
    await lake.context.duck.with(async (connection) => {
      for (const model of loadModels(folder)) {
        changed.push(await bindModel(connection, lake.context.registry, model));
      }
    });
    const later = new LakeCatalog({
      store: lake.context.store,
      duck: lake.context.duck,
      table: { checkpointEvery: 7 },
      streams: { nameOf: () => STREAM, stream: () => stream },
      consumer: "ingest",
      models: () => changed,
    });
    const table = (await later.tables()).find(({ model }) => model === "things")!;
    expect(visibleColumns(table).map(({ name }) => name)).toContain("labels");
    expect(await rows(table, "acme")).toEqual([["acme", "1", "acme's"]]);
  });

  /** Gives back what mends it. */
  async function breakTable(): Promise<() => void> {
    stream.append(thing("acme", "1"), Date.now());
    await lake.land(stream.batch(0));
    await lake.settled();
    const log = join(lake.folder, "lake", "refined", "t", "broken", "_delta_log");
    const paths = (await readdir(log))
      .filter((name) => name.endsWith(".json"))
      .map((name) => join(log, name));
    const commits = paths.map((path) => readFileSync(path));
    for (const path of paths) writeFileSync(path, "no commit");
    return () => {
      for (const [at, path] of paths.entries()) writeFileSync(path, commits[at]!);
    };
  }

  test("a table that cannot be read fails its own queries and no other's", async () => {
    await breakTable();
    const tables = await catalog.tables();
    expect(tables).toHaveLength(2);
    const broken = tables.find(({ model }) => model === "broken")!;
    expect(visibleColumns(broken).map(({ name }) => name)).toEqual(["tenant_id", "entity_id", "name"]);
    expect(await broken.freshness("acme")).toBeNull();
    await expect(rows(broken, "acme")).rejects.toMatchObject({
      code: "TRB-QUERY-UNREADABLE",
      message: "t.broken: the table cannot be read now",
    });
    expect(await rows(await things(), "acme")).toHaveLength(1);
  });

  test("not each query pays for opening a table that cannot be, and once it can it is", async () => {
    const mend = await breakTable();
    const counted = new CountingStore(lake.context.store);
    catalog = openCatalog(counted.store);
    vi.useFakeTimers({ toFake: ["performance"] });
    onTestFinished(() => void vi.useRealTimers());
    const ask = async () => rows((await catalog.tables()).find(({ model }) => model === "broken")!, "acme");
    const failed = { code: "TRB-QUERY-UNREADABLE" };
    await expect(ask()).rejects.toMatchObject(failed);
    const paid = counted.below("refined/t/broken/");
    expect(paid).toBeGreaterThan(0);
    mend();
    for (let i = 0; i < 5; i++) await expect(ask()).rejects.toMatchObject(failed);
    expect(counted.below("refined/t/broken/")).toBe(paid);
    vi.advanceTimersByTime(1000);
    expect(await ask()).toHaveLength(1);
  });
});

describe("freshness is the tenant's own", () => {
  const freshness = async (tenant: string): Promise<number | null> => {
    // One look answers all that ask within a moment; here each is to be its own.
    catalog = openCatalog();
    return (await things()).freshness(tenant);
  };

  test("0 while nothing of the tenant waits, however old its rows and whatever others send", async () => {
    const longAgo = Date.now() - 26 * 60_000;
    stream.append(thing("acme", "1"), longAgo);
    await lake.land(stream.batch(0));
    await lake.settled();
    expect(await freshness("acme")).toBe(0);
    stream.append(thing("globex", "1"), Date.now() - 5_000);
    stream.append(thing("acme2", "1"), Date.now() - 4_000);
    stream.append(thing("acme", "2"), Date.now() - 60_000, OTHER);
    expect(await freshness("acme")).toBe(0);
    expect(await freshness("globex")).toBeGreaterThanOrEqual(5_000);
    expect(await freshness("globex")).toBeLessThan(15_000);
  });

  test("the age of the oldest that waits, not of the newest row", async () => {
    stream.append(thing("acme", "1"), Date.now() - 26 * 60_000);
    await lake.land(stream.batch(0));
    await lake.settled();
    stream.append(thing("acme", "2"), Date.now() - 3_000);
    stream.append(thing("acme", "3"), Date.now() - 1_000);
    const fresh = await freshness("acme");
    expect(fresh).toBeGreaterThanOrEqual(3_000);
    expect(fresh).toBeLessThan(13_000);
    await lake.land(stream.batch(1));
    await lake.settled();
    // The record lags: what stands behind it is in the table all the same.
    expect(stream.lowWater).toBe(0);
    expect(await freshness("acme")).toBe(0);
  });

  test("events wait for a table that does not exist yet", async () => {
    stream.append(thing("acme", "1"), Date.now() - 2_000);
    expect(await freshness("acme")).toBeGreaterThanOrEqual(2_000);
    expect(await freshness("globex")).toBe(0);
  });

  test("not known while the stream cannot be read", async () => {
    stream.waiting = async function* () {
      yield* [];
      throw new Error("the log could not be read");
    };
    expect(await freshness("acme")).toBeNull();
  });

  test("not known when more waits than one look reads, but for what was found", async () => {
    stream.append(thing("acme", "1"), Date.now() - 2_000);
    stream.append(thing("globex", "1"), Date.now() - 1_000);
    const tables = [{ name: "t.things", entityType: THING, positions: new Map<string, string>() }];
    const some = await lookForWaiting(stream, "ingest", tables, 1);
    expect(some.complete).toBe(false);
    expect(some.oldest("acme", "t.things")).toBeGreaterThan(0);
    expect(some.oldest("globex", "t.things")).toBeUndefined();
    const all = await lookForWaiting(stream, "ingest", tables);
    expect(all.complete).toBe(true);
    expect(all.oldest("globex", "t.things")).toBeGreaterThan(0);
  });

  test("one look answers for all tables and all who ask within a moment", async () => {
    stream.append(thing("acme", "1"), Date.now() - 2_000);
    const tables = await catalog.tables();
    await Promise.all(tables.flatMap((table) => ["acme", "globex", "x"].map((one) => table.freshness(one))));
    expect(stream.looks).toBe(1);
  });

  test("while a look takes long, who asks shares the next one, which sees what has come since", async () => {
    vi.useFakeTimers({ toFake: ["Date"] });
    onTestFinished(() => {
      vi.useRealTimers();
    });
    let release: () => void = () => undefined;
    const slow = new Promise<void>((resolve) => {
      release = resolve;
    });
    const waiting = stream.waiting.bind(stream);
    let running = 0;
    let most = 0;
    stream.waiting = async function* () {
      most = Math.max(most, ++running);
      const there = [];
      for await (const batch of waiting()) there.push(batch);
      await slow;
      running--;
      yield* there;
    };
    const table = await things();
    const first = table.freshness("acme");
    await expect.poll(() => running).toBe(1);
    stream.append(thing("acme", "1"), Date.now());
    const later: Promise<number | null>[] = [];
    for (let i = 0; i < 20; i++) {
      vi.setSystemTime(Date.now() + 1_000);
      later.push(table.freshness("acme"));
    }
    await setImmediate();
    release();
    expect(await first).toBe(0);
    expect(await Promise.all(later)).toEqual(Array.from({ length: 20 }, (_, i) => (i + 1) * 1_000));
    expect([stream.looks, most]).toEqual([2, 1]);
  });
});

describe("what a tenant is told of a table that does not go on", () => {
  const status = (kind: "raw" | "model", name: string, state: "quarantined" | "catching-up") => ({
    kind,
    name,
    entityType: THING,
    state,
    since: "2026-01-02T03:04:05.000Z",
    code: "TRB-TABLE-CORRUPT",
    reason: `raw table ${rawRoot(THING)}: line 3`,
    remedy: `run tributary table repair ${rawRoot(THING)}`,
    attempts: 2,
    parkedBytes: 5,
    held: false,
  });

  test("nothing when ingest has not run or all is well", async () => {
    expect([...(await catalog.states())]).toEqual([]);
    await writeWorkerStatus(lake.context.store, "ingest", {
      writtenAt: new Date().toISOString(),
      tables: [],
    });
    expect([...(await catalog.states())]).toEqual([]);
  });

  test("state, since, code and a remedy, without a word of the raw table", async () => {
    const tables = [status("model", "t.things", "catching-up"), status("model", "t.unknown", "quarantined")];
    await writeWorkerStatus(lake.context.store, "ingest", { writtenAt: new Date().toISOString(), tables });
    const states = await catalog.states();
    expect([...states.keys()]).toEqual(["t.things"]);
    expect(states.get("t.things")).toMatchObject({
      state: "catching-up",
      since: "2026-01-02T03:04:05.000Z",
      code: "TRB-TABLE-CORRUPT",
    });
    expect(JSON.stringify([...states])).not.toMatch(/raw|t\.v1|Thing|line 3|repair/);
  });

  test("a raw table that is held up holds up its models, and that is told first", async () => {
    const tables = [status("model", "t.things", "catching-up"), status("raw", THING, "quarantined")];
    await writeWorkerStatus(lake.context.store, "ingest", { writtenAt: new Date().toISOString(), tables });
    const states = await catalog.states();
    expect([...states].map(([name, { state }]) => `${name} ${state}`)).toEqual([
      "t.broken quarantined",
      "t.things quarantined",
    ]);
    expect(JSON.stringify([...states])).not.toMatch(/t\.v1|Thing/);
  });
});
