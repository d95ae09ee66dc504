import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { bootstrapOf } from "../../../test/support/jobs.js";
import {
  encodeTestEvent,
  expectedThings,
  Lake,
  NOTE,
  Random,
  randomEvents,
  seeds,
  type TestEvent,
  TestStream,
  THING,
} from "../../../test/support/lake.js";
import { sha256, varint } from "../../../test/support/large-payloads.js";
import { rawZstd } from "../../../test/support/sources.js";
import { loadConfig } from "../../base/config.js";
import { type EventInit, encodeEvent } from "../../contracts/encode-event.js";
import { uriOf } from "../../contracts/payload-reference.js";
import { rawRoot } from "../../ingest/raw-table.js";
import type { Reject } from "../../sources/formats.js";
import { inspect } from "../../sources/inspect.js";
import { Sources } from "../../sources/sources.js";
import { DeltaTable } from "../../table/delta-table.js";
import { withScan } from "../../table/scan.js";
import { Bootstrap } from "../bootstrap/bootstrap.js";
import { runHere } from "../job-here.js";
import type { Told } from "../jobs/job-report.js";
import { JobStore } from "../jobs/job-store.js";
import { type EventShare, sharesOf } from "./event-types.js";

vi.mock("../../sources/source-process.js", () => import("../../../test/support/readers-here.js"));

const delimited = (events: readonly Uint8Array[]): Buffer =>
  Buffer.concat(events.flatMap((event) => [Buffer.from(varint(event.length)), event]));

let lake: Lake;
let folder: string;
let sources: Sources;
beforeEach(async () => {
  lake = await Lake.create();
  folder = mkdtempSync(join(tmpdir(), "tributary-export-"));
  const config = loadConfig({ data: lake.folder, bulk: { sources: { exports: folder } } }, { env: {} });
  sources = await Sources.open(config, join(lake.folder, "scratch"));
  return async () => {
    sources.close();
    await lake.close();
    rmSync(folder, { recursive: true, force: true });
  };
});
afterEach(() => {
  // Whatever became of a chunk, nothing of it lies about.
  expect(readdirSync(lake.context.store.staging).filter((name) => name.startsWith("chunk-"))).toEqual([]);
});

interface Run {
  readonly tenant?: string;
  readonly chunks?: number;
  readonly rows?: number;
  readonly share?: EventShare;
}

async function run(more: Run = {}) {
  let { chunks = Number.POSITIVE_INFINITY } = more;
  const place = sources.at("exports");
  const stop = new AbortController();
  const rejects: Reject[] = [];
  /** Of the chunk with the most of them. */
  let most = 0;
  let rows = 0;
  const done = await Bootstrap.run(
    lake.context,
    {
      job: "whole",
      entityType: more.share?.entityType ?? THING,
      share: more.share,
      tenant: more.tenant,
      mapping: undefined,
      place,
      manifest: await inspect(place, {}, lake.context.config.bulk),
      limits: lake.context.config.bulk,
      chunk: { rows: more.rows ?? 1000, bytes: 1 << 20 },
    },
    {
      landed: (chunk) => {
        rows += chunk.rows;
        if (--chunks === 0) stop.abort();
      },
      reject: async (_, some) => {
        for (const reject of some) rejects.push(reject);
        most = Math.max(most, some.length);
      },
      pace: async () => undefined,
      calm: async () => undefined,
      behind: async () => undefined,
      signal: stop.signal,
    },
  );
  return { done, rows, rejects, most };
}

test.each(seeds(0))(
  "events of an export and the log, in any order and overlap, are all of them (seed %i)",
  async (seed) => {
    const random = new Random(seed);
    // The version 0 is a bootstrap's own.
    const own = randomEvents(random, 60).map((event) =>
      random.chance(0.3) ? { ...event, version: 0n } : event,
    );
    const events = [...randomEvents(random, 60), ...own];
    const exported = random.shuffle([...own, ...events.filter(() => random.chance(0.5))]);
    const third = Math.ceil(exported.length / 3);
    const part = (at: number) => delimited(exported.slice(at * third, (at + 1) * third).map(encodeTestEvent));
    writeFileSync(join(folder, "a.pb"), part(0));
    writeFileSync(join(folder, "b.pb.gz"), gzipSync(part(1)));
    writeFileSync(join(folder, "c.pb.zst"), rawZstd(part(2)));
    const stream = new TestStream();
    const lane = await lake.lane();
    const late = random.shuffle(events.filter(({ version }) => version > 0n));
    let done = false;
    while (late.length > 0 || !done) {
      const live = late.splice(0, 20 + random.below(60));
      const [ran]: [Awaited<ReturnType<typeof run>> | undefined, unknown] = await Promise.all([
        done || random.below(2) === 0 ? undefined : run({ chunks: 1 + random.below(3), rows: 30 }),
        live.length === 0 ? undefined : lane.land(stream.batch(live)),
      ]);
      expect(ran?.rejects ?? []).toEqual([]);
      done ||= ran?.done === true;
    }
    expect(await run()).toEqual({ done: true, rows: 0, rejects: [], most: 0 });
    const places = (await lake.rawPositions()).filter((one) => one.startsWith("bootstrap-"));
    expect([places.length, new Set(places).size]).toEqual([exported.length, exported.length]);
    await lane.look();
    expect(await lake.rows()).toEqual(expectedThings(events));
  },
);

const at = (id: string, more: Partial<TestEvent> = {}): TestEvent => ({
  tenant: "acme",
  id,
  operation: 1,
  version: 7n,
  thing: { name: id },
  ...more,
});
const init = (id: string, more: EventInit): Buffer =>
  encodeEvent({ tenantId: "acme", entityType: THING, entityId: id, operation: 1, version: 7, ...more });

test("what the bus would not take is rejected one by one, with its place and bytes", async () => {
  const value = encodeEvent({});
  const refer = (tenant: string, bytes: Buffer) => ({
    uri: uriOf(tenant, sha256(bytes)),
    typeUrl: `type.googleapis.com/${THING}`,
    sizeBytes: bytes.length,
    sha256: sha256(bytes),
  });
  const held = Buffer.alloc(99_999, "\n\u0001x");
  await lake.context.store.put(uriOf("acme", sha256(held)), held);
  const wrong: Record<string, Buffer> = {
    "TRB-BULK-TENANT": encodeTestEvent(at("x", { tenant: "other" })),
    "TRB-BULK-TYPE": init("x", { entityType: NOTE, payload: { value } }),
    "TRB-EVENT-ENTITY-TYPE": init("x", { entityType: "t.v1.None", payload: { value } }),
    "TRB-EVENT-TENANT": encodeTestEvent(at("x", { tenant: "a b" })),
    "TRB-EVENT-ENTITY-ID": encodeTestEvent(at("")),
    "TRB-EVENT-OPERATION": encodeTestEvent(at("x", { operation: 9 })),
    "TRB-EVENT-VERSION": encodeTestEvent(at("x", { version: -1n })),
    "TRB-EVENT-CONTENT": init("x", {}),
    "TRB-EVENT-MALFORMED": Buffer.from("no event at all"),
    "TRB-EVENT-PAYLOAD-DECODE": init("x", { payload: { value: Buffer.from([0x0a, 9]) } }),
    "TRB-EVENT-PAYLOAD-TYPE": init("x", { payload: { typeUrl: "x/y", value } }),
    "TRB-EVENT-COMPRESSION": init("x", { payload: { value: Buffer.from("no gzip") }, compression: 1 }),
    "TRB-EVENT-PAYLOAD-SIZE": init("x", {
      payload: { value: gzipSync(Buffer.alloc(2_000_000)) },
      compression: 1,
    }),
    "TRB-EVENT-PAYLOAD-MISSING": init("x", { reference: refer("acme", Buffer.alloc(100_000)) }),
    "TRB-EVENT-REFERENCE": init("x", { reference: refer("other", held) }),
  };
  const good = [
    encodeTestEvent(at("a")),
    encodeTestEvent(at("gone", { operation: 3 })),
    init("packed", { payload: { value: gzipSync(Buffer.from("\n\u0001x")) }, compression: 1 }),
    init("held", { reference: refer("acme", held) }),
  ];
  const events = Object.values(wrong).flatMap((event, i) => [event, good[i]!].filter(Boolean));
  writeFileSync(join(folder, "all.pb"), delimited(events));
  const { done, rows, rejects } = await run({ tenant: "acme" });
  expect([done, rows]).toEqual([true, good.length]);
  const byRow = [...rejects].sort((a, b) => a.row - b.row);
  expect(byRow.map(({ code }) => code)).toEqual(Object.keys(wrong));
  for (const { row, bytes } of byRow) expect(Buffer.from(bytes)).toEqual(events[row]);
  await (await lake.lane()).look();
  expect((await lake.rows()).length).toBe(3);
  expect(await lake.deadLetters()).toEqual([]);
});

test("what is no event is told chunk by chunk, however little of the file it takes", async () => {
  // Each zero is a record without a byte.
  const nothing = Buffer.alloc(300_000);
  writeFileSync(join(folder, "a.pb"), Buffer.concat([nothing, delimited([encodeTestEvent(at("one"))])]));
  const { done, rows, rejects, most } = await run();
  expect([done, rows, rejects.length]).toEqual([true, 1, nothing.length]);
  expect(most).toBeLessThan(nothing.length / 2);
});

test("payloads that are too large for a row go to the object store first, and refine from there", async () => {
  const name = "n".repeat(1_500_000);
  const large = [at("large", { thing: { name } }), at("twin", { thing: { name } })];
  const packed = gzipSync(Buffer.from("\n\u0001x"));
  writeFileSync(
    join(folder, "all.pb"),
    delimited([
      ...large.map(encodeTestEvent),
      init("small", { payload: { value: packed }, compression: 1 }),
      // More than may be one payload, though less than may be a record.
      encodeTestEvent(at("huge", { thing: { name: "h".repeat(3_000_000) } })),
    ]),
  );
  lake.context.config.bus.maxOffloadBytes = 2_000_000;
  const { done, rows, rejects } = await run();
  expect([done, rows]).toEqual([true, 3]);
  expect(rejects.map(({ code, row }) => [code, row])).toEqual([["TRB-EVENT-PAYLOAD-SIZE", 3]]);
  const raw = (await DeltaTable.open(lake.context.store, rawRoot(THING), lake.context.duck, {
    checkpointEvery: 1000,
  }))!;
  const columns = ["entity_id", "payload", "payload_uri"];
  const found = await withScan(raw, raw.snapshot, { columns }, (sql) =>
    lake.query(`SELECT entity_id, payload IS NULL, payload_uri FROM (${sql}) ORDER BY 1`),
  );
  const uri = (found[0] as string[])[2]!;
  expect(uri).toMatch(/^offload\/acme\/[0-9a-f]{64}$/);
  expect(found).toEqual([
    ["large", true, uri],
    ["small", false, null],
    ["twin", true, uri],
  ]);
  await (await lake.lane()).look();
  expect(await lake.rows()).toEqual(expectedThings([...large, at("small", { thing: { name: "x" } })]));
});

test("of a source of several types each record is landed, or rejected, once", async () => {
  const note = (id: string) => init(id, { entityType: NOTE, payload: { value: Buffer.from("\n\u0001x") } });
  const broken = init("b", { entityType: NOTE, payload: { value: Buffer.from([0x0a, 9]) } });
  const alien = init("c", { entityType: "t.v1.None", payload: { value: Buffer.alloc(0) } });
  const foreign = encodeTestEvent(at("d", { tenant: "other" }));
  const file = (name: string, events: readonly Uint8Array[]) =>
    writeFileSync(join(folder, name), delimited(events));
  file("a.pb", [encodeTestEvent(at("a")), note("a"), Buffer.from("no event"), foreign]);
  file("b.pb", [encodeTestEvent(at("b")), alien]);
  file("c.pb", [note("c"), broken]);
  const manifest = await inspect(sources.at("exports"), {}, lake.context.config.bulk);
  const { config, registry } = lake.context;
  const shares = await sharesOf(sources.at("exports"), manifest, config.bulk, registry);
  expect(shares).toEqual([
    { entityType: NOTE, files: [0, 1, 2], leaves: { types: [THING], rest: false } },
    { entityType: THING, files: [0, 1], leaves: { types: [NOTE], rest: true } },
  ]);
  const told: unknown[] = [];
  for (const share of shares) {
    const { done, rows, rejects } = await run({ share, tenant: "acme" });
    told.push([done, rows, rejects.map(({ code, row }) => `${code} ${row}`)]);
    expect(await run({ share, tenant: "acme" })).toEqual({ done: true, rows: 0, rejects: [], most: 0 });
  }
  expect(told).toEqual([
    [true, 2, ["TRB-EVENT-MALFORMED 2", "TRB-EVENT-ENTITY-TYPE 1", "TRB-EVENT-PAYLOAD-DECODE 1"]],
    [true, 2, ["TRB-BULK-TENANT 3"]],
  ]);
  rmSync(join(folder, "a.pb"));
  rmSync(join(folder, "c.pb"));
  file("b.pb", [alien]);
  const left = await inspect(sources.at("exports"), {}, config.bulk);
  await expect(sharesOf(sources.at("exports"), left, config.bulk, registry)).rejects.toMatchObject({
    code: "TRB-BULK-TYPE",
  });
});

test("a job that is bound to no type lands all of them, and is told of as one", async () => {
  const note = (id: string) => init(id, { entityType: NOTE, payload: { value: Buffer.from("\n\u0001x") } });
  const events = [at("a"), at("b"), at("c")];
  writeFileSync(
    join(folder, "a.pb"),
    delimited([note("a"), ...events.map(encodeTestEvent), note("b"), Buffer.from("no event")]),
  );
  writeFileSync(join(folder, "b.pb.gz"), gzipSync(delimited([note("c")])));
  lake.context.config.bulk.sources = { exports: { url: folder, forcePathStyle: false, timeoutMs: 1_000 } };
  const jobs = new JobStore(lake.context.store);
  await jobs.order(bootstrapOf("all", { source: "exports", entityType: undefined, mapping: undefined }));
  const told: Told[] = [];
  const here = {
    signal: new AbortController().signal,
    tell: (one: Told) => told.push(one),
    log: (error: unknown) => expect(error).toBeUndefined(),
    pace: { after: async () => undefined, calm: async () => undefined, yieldedMs: 0 },
  };
  for (let run = 0; run < 2; run++) {
    expect(await runHere(lake.context, await jobs.get("all"), here)).toEqual({ kind: "done" });
  }
  const state = Object.assign({}, ...told) as Told;
  const bytes = 2 * statSync(join(folder, "a.pb")).size + statSync(join(folder, "b.pb.gz")).size;
  expect(state).toMatchObject({ rowsLanded: 6, rowsRefined: 6, files: 2, bytes, bytesDone: bytes });
  expect(told.some(({ rejected }) => rejected === 1)).toBe(true);
  expect(await lake.rows()).toEqual(expectedThings(events));
});

test("a source of whole events takes no mapping, and one of rows needs one", async () => {
  writeFileSync(join(folder, "all.pb"), delimited([encodeTestEvent(at("a"))]));
  const place = sources.at("exports");
  const order = {
    job: "whole",
    entityType: THING,
    tenant: undefined,
    mapping: { tenant: "a", entityId: "b", version: "c" },
    place,
    manifest: await inspect(place, {}, lake.context.config.bulk),
    limits: lake.context.config.bulk,
  };
  const host = {
    landed: () => undefined,
    reject: async () => undefined,
    pace: async () => undefined,
    calm: async () => undefined,
    behind: async () => undefined,
    signal: new AbortController().signal,
  };
  await expect(Bootstrap.run(lake.context, order, host)).rejects.toMatchObject({ code: "TRB-BULK-MAPPING" });
  mkdirSync(join(folder, "lines"));
  writeFileSync(join(folder, "lines", "a.ndjson"), '{"a":1}\n');
  const lines = sources.at("exports/lines");
  const manifest = await inspect(lines, {}, lake.context.config.bulk);
  await expect(
    Bootstrap.run(lake.context, { ...order, mapping: undefined, place: lines, manifest }, host),
  ).rejects.toMatchObject({ code: "TRB-BULK-MAPPING" });
});
