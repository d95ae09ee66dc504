import { mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { bootstrapOf, hostOf } from "../../../test/support/jobs.js";
import { encodeTestEvent, Lake, Random, seeds, type TestEvent, THING } from "../../../test/support/lake.js";
import { sha256, varint } from "../../../test/support/large-payloads.js";
import { Duck, literal } from "../../base/duckdb.js";
import { encodeEvent } from "../../contracts/encode-event.js";
import { uriOf } from "../../contracts/payload-reference.js";
import { rawRoot, rawSpec } from "../../ingest/raw-table.js";
import { refinedRoot } from "../../ingest/refined-table.js";
import { inspect } from "../../sources/inspect.js";
import type { Mapping } from "../../sources/mapping.js";
import { Sources } from "../../sources/sources.js";
import { append } from "../../table/append.js";
import { DeltaTable } from "../../table/delta-table.js";
import { withScan } from "../../table/scan.js";
import { NO_FILE } from "../chunks/chunk-file.js";
import { positionIn } from "../chunks/row-events.js";
import { runHere } from "../job-here.js";
import { JobStore } from "../jobs/job-store.js";
import { LANE, streamOf } from "../jobs/job-tracks.js";
import { readRejects } from "../jobs/rejects.js";
import { verificationOf } from "../verify/verification.js";
import { Bootstrap } from "./bootstrap.js";
import { runBootstrap } from "./bootstrap-job.js";

/** Sources of many small files: chunks go from one into the next. */

vi.mock("../../sources/source-process.js", () => import("../../../test/support/readers-here.js"));

let lake: Lake;
let folder: string;
let sources: Sources;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "tributary-export-"));
  mkdirSync(join(folder, "in"));
  lake = await Lake.create({ sources: { exports: folder } });
  sources = await Sources.open(lake.context.config, join(lake.folder, "scratch"));
});
afterEach(async () => {
  sources.close();
  await lake.close();
  rmSync(folder, { recursive: true, force: true });
});

/** What becomes of a record: an event, or none. */
type Record = "good" | "bad";
type Kind = "parquet" | "ndjson" | "events";
const KINDS: readonly Kind[] = ["parquet", "ndjson", "events"];
const MAPPING: Mapping = { tenant: "customer", entityId: "id", version: "rev" };

const nameOf = (file: number, extension: string) => `f-${String(file).padStart(4, "0")}.${extension}`;
const put = (file: number, extension: string, content: string | Buffer) =>
  writeFileSync(join(folder, "in", nameOf(file, extension)), content);

/** A file's record, by its place: what it is stands in what lands of it. */
const eventAt = (file: number, row: number, record: Record): TestEvent => ({
  tenant: record === "good" ? "acme" : "a b",
  id: `${file}-${row}`,
  operation: 1,
  version: 1n,
  thing: { name: `n-${file}-${row}` },
});
const delimited = (events: readonly Uint8Array[]): Buffer =>
  Buffer.concat(events.flatMap((event) => [Buffer.from(varint(event.length)), event]));
const lineOf = ({ tenant, id, version, thing }: TestEvent): string =>
  `${JSON.stringify({ customer: tenant, id, rev: Number(version), name: thing.name })}\n`;

/** Some files are packed where the format has it. */
async function write(kind: Kind, files: readonly (readonly Record[])[]): Promise<void> {
  for (const [file, records] of files.entries()) {
    const events = records.map((record, row) => eventAt(file, row, record));
    if (kind === "parquet") {
      const rows = events.map(
        ({ tenant, id, thing }) => `(${literal(tenant)}, ${literal(id)}, 1, ${literal(thing.name!)})`,
      );
      // One that is left out again, so that a file may have none.
      const all = [...rows, "('', '', 0, '')"].join(", ");
      const path = join(folder, "in", nameOf(file, "parquet"));
      await lake.query(
        `COPY (SELECT * FROM (VALUES ${all}) t(customer, id, rev, name) WHERE rev > 0) TO ${literal(path)} (FORMAT parquet)`,
      );
    } else {
      const bytes =
        kind === "events" ? delimited(events.map(encodeTestEvent)) : Buffer.from(events.map(lineOf).join(""));
      const extension = kind === "events" ? "pb" : "ndjson";
      if (file % 3 === 1) put(file, `${extension}.gz`, gzipSync(bytes));
      else put(file, extension, bytes);
    }
  }
}

interface Run {
  readonly chunks?: number;
  readonly rows?: number;
  readonly mapping?: Mapping | undefined;
  readonly manifest?: Awaited<ReturnType<typeof inspect>>;
}

/** Runs the job until it has landed so many chunks. */
async function run(kind: Kind, more: Run = {}) {
  const stop = new AbortController();
  const rejects: string[] = [];
  let chunks = 0;
  const place = sources.at("exports/in");
  const { bulk } = lake.context.config;
  const done = await Bootstrap.run(
    lake.context,
    {
      job: "small",
      entityType: THING,
      tenant: undefined,
      mapping: kind === "events" ? undefined : (more.mapping ?? MAPPING),
      place,
      manifest: more.manifest ?? (await inspect(place, {}, bulk)),
      limits: bulk,
      chunk: { rows: more.rows ?? 100_000, bytes: 16 << 20 },
    },
    {
      landed: () => {
        if (++chunks === more.chunks) stop.abort();
      },
      reject: async (file, some) =>
        void rejects.push(...some.map(({ row, code }) => `${file} ${row} ${code}`)),
      pace: async () => undefined,
      calm: async () => undefined,
      behind: async () => undefined,
      signal: stop.signal,
    },
  );
  return { done, chunks, rejects };
}

const rawOf = () => {
  const { store, duck, tableOptions } = lake.context;
  return DeltaTable.open(store, rawRoot(THING), duck, tableOptions);
};

/** "<position> <entity>" of every row of raw. */
async function landed(): Promise<string[]> {
  const raw = await rawOf();
  if (raw === undefined) return [];
  const rows = await withScan(raw, raw.snapshot, { columns: ["position", "entity_id"] }, (sql) =>
    lake.query(`SELECT position || ' ' || entity_id FROM (${sql}) ORDER BY 1`),
  );
  return rows.map(([row]) => row as string);
}
const places = (files: readonly (readonly Record[])[], wanted: Record) =>
  files.flatMap((records, file) =>
    records.flatMap((record, row) => (record === wanted ? [{ file, row }] : [])),
  );
const goodOf = (files: readonly (readonly Record[])[]): string[] =>
  places(files, "good").map(({ file, row }) => `${positionIn(file, row + 1)} ${file}-${row}`);

test.each(KINDS)("forty small files make few chunks, and as few files of each table (%s)", async (kind) => {
  const files = Array.from({ length: 40 }, () => Array.from({ length: 10 }, (): Record => "good"));
  await write(kind, files);
  const { done, chunks, rejects } = await run(kind, { rows: 100 });
  expect([done, rejects]).toEqual([true, []]);
  expect(chunks).toBeLessThanOrEqual(5);
  expect(await landed()).toEqual(goodOf(files));
  expect((await rawOf())!.snapshot.files.length).toBeLessThanOrEqual(chunks);
  if (kind !== "events") {
    const { store, duck, tableOptions, models } = lake.context;
    const refined = (await DeltaTable.open(store, refinedRoot(models[0]!), duck, tableOptions))!;
    expect(refined.snapshot.files.length).toBeLessThanOrEqual(chunks);
  }
  await (await lake.lane()).look();
  expect((await lake.rows()).length).toBe(400);
});

test.each(KINDS)(
  "a job that stops anywhere among small files is gone on with: each record once (%s)",
  async (kind) => {
    for (const seed of seeds(0)) {
      console.info(`small files (${kind}): TRIBUTARY_SEED=${seed}`);
      const random = new Random(seed);
      rmSync(join(folder, "in"), { recursive: true });
      mkdirSync(join(folder, "in"));
      const files = Array.from({ length: 20 + random.below(20) }, () =>
        Array.from({ length: random.below(9) }, (): Record => (random.chance(0.1) ? "bad" : "good")),
      );
      await write(kind, files);
      const rejects: string[] = [];
      let runs = 0;
      for (let done = false; !done; runs++) {
        const ran = await run(kind, { chunks: 1, rows: 1 + random.below(15) });
        rejects.push(...ran.rejects);
        done = ran.done;
      }
      expect(runs).toBeGreaterThan(1);
      expect(await landed(), `seed ${seed}`).toEqual(goodOf(files));
      const bad = places(files, "bad").map(({ file, row }) => `${file} ${row} TRB-EVENT-TENANT`);
      // What was made ahead when a run ended is told again.
      expect([...new Set(rejects)].sort()).toEqual(bad.sort());
      expect(await run(kind)).toEqual({ done: true, chunks: 0, rejects: [] });
    }
  },
);

test.each(KINDS)(
  "a job that was left amid a file goes on there, and into the files behind it (%s)",
  async (kind) => {
    const files = Array.from({ length: 6 }, () => Array.from({ length: 5 }, (): Record => "good"));
    await write(kind, files);
    const { store, duck, tableOptions } = lake.context;
    const raw = await DeltaTable.openOrCreate(store, rawRoot(THING), duck, tableOptions, rawSpec(THING));
    const to = new Map([[LANE, positionIn(2, 3)]]);
    await append(raw, streamOf("small"), new Map(), async () => ({ file: NO_FILE, to }));
    expect(await run(kind)).toEqual({ done: true, chunks: 1, rejects: [] });
    expect(await landed()).toEqual(
      goodOf(files)
        .filter((place) => place > positionIn(2, 3))
        .slice(1),
    );
  },
);

test("rejects are told of their own file and record, whenever they are found", async () => {
  Object.assign(lake.context.config.bus, { maxPayloadBytes: 1_000, maxOffloadBytes: 2_000 });
  const line = (file: number, row: number, name: string) =>
    lineOf({ ...eventAt(file, row, "good"), thing: { name } });
  put(0, "ndjson", line(0, 0, "x"));
  put(1, "ndjson", `${line(1, 0, "x")}{"no": json}\n${line(1, 2, "y".repeat(3_000))}`);
  put(2, "ndjson", "");
  put(3, "ndjson", `${line(3, 0, "z".repeat(1_500))}${lineOf(eventAt(3, 1, "bad"))}${line(3, 2, "x")}`);
  put(4, "ndjson", `${line(4, 0, "y".repeat(2_500))}[]\n`);
  const jobs = new JobStore(lake.context.store);
  await jobs.order(bootstrapOf("told", { source: "exports/in" }));
  const outcome = await runHere(lake.context, await jobs.get("told"), {
    signal: new AbortController().signal,
    pace: { after: async () => undefined, calm: async () => undefined, yieldedMs: 0 },
    tell: () => undefined,
    log: (error: unknown) => expect(error).toBeUndefined(),
  });
  expect(outcome).toEqual({ kind: "done" });
  const { rejects } = await readRejects(lake.context, "told", { limit: 100 });
  expect(rejects.map(({ source, row, code }) => `${source} ${row} ${code}`)).toEqual([
    "exports/in/f-0001.ndjson 1 TRB-ROW-JSON",
    "exports/in/f-0001.ndjson 2 TRB-EVENT-PAYLOAD-SIZE",
    "exports/in/f-0003.ndjson 1 TRB-EVENT-TENANT",
    "exports/in/f-0004.ndjson 0 TRB-EVENT-PAYLOAD-SIZE",
    "exports/in/f-0004.ndjson 1 TRB-ROW-JSON",
  ]);
  expect((await landed()).map((row) => row.split(" ")[1])).toEqual(["0-0", "1-0", "3-0", "3-2"]);
});

const OF_PATH: Mapping = {
  tenant: { constant: "acme" },
  entityId: { path: "f-(.*)\\." },
  version: { constant: 1 },
  payload: {},
};
test.each([
  ["that the engine meets as it maps them", MAPPING],
  ["that nothing is wanted of", OF_PATH],
])("lines that are no JSON, %s, are rejected, and no other ones of their batch", async (_, mapping) => {
  const isWrong = (file: number, row: number) => file !== 1 && row % 500 === 7 + file;
  const places = [0, 1, 2].flatMap((file) => Array.from({ length: 2_000 }, (_, row) => ({ file, row })));
  for (const file of [0, 1, 2]) {
    const lines = places.flatMap((at) =>
      at.file !== file
        ? []
        : isWrong(file, at.row)
          ? `{"id": ${at.row},}}\n`
          : lineOf(eventAt(file, at.row, "good")),
    );
    put(file, "ndjson", lines.join(""));
  }
  const { done, rejects } = await run("ndjson", { mapping });
  expect(done).toBe(true);
  const wrong = places.filter(({ file, row }) => isWrong(file, row));
  expect(rejects).toEqual(wrong.map(({ file, row }) => `${file} ${row} TRB-ROW-JSON`));
  const right = places.filter(({ file, row }) => !isWrong(file, row));
  const at = (await landed()).map((row) => row.split(" ")[0]);
  expect(at).toEqual(right.map(({ file, row }) => positionIn(file, row + 1)));
});

test("an event whose payload is not there is rejected at its own place, and no other one's", async () => {
  const missing = (file: number, row: number) => {
    const bytes = Buffer.alloc(100_000);
    const { tenant: tenantId, id: entityId } = eventAt(file, row, "good");
    const reference = {
      uri: uriOf(tenantId, sha256(bytes)),
      typeUrl: `type.googleapis.com/${THING}`,
      sizeBytes: bytes.length,
      sha256: sha256(bytes),
    };
    return encodeEvent({ tenantId, entityId, entityType: THING, operation: 1, version: 1, reference });
  };
  const good = (file: number, row: number) => encodeTestEvent(eventAt(file, row, "good"));
  put(0, "pb", delimited([good(0, 0), good(0, 1)]));
  put(1, "pb", delimited([good(1, 0), missing(1, 1)]));
  put(2, "pb", delimited([missing(2, 0), good(2, 1), Buffer.from("no event")]));
  const { done, chunks, rejects } = await run("events");
  expect([done, chunks]).toEqual([true, 1]);
  expect(rejects).toEqual([
    "1 1 TRB-EVENT-PAYLOAD-MISSING",
    "2 2 TRB-EVENT-MALFORMED",
    "2 0 TRB-EVENT-PAYLOAD-MISSING",
  ]);
  expect((await landed()).map((row) => row.split(" ")[1])).toEqual(["0-0", "0-1", "1-0", "2-1"]);
});

test.each(["parquet", "ndjson"] as const)(
  "what precedes a file that cannot be read lands, and the error names it (%s)",
  async (kind) => {
    const files = Array.from({ length: 12 }, () => ["good", "good", "good"] as const);
    await write(kind, files);
    // Amid the files: nothing looks at it before.
    rmSync(join(folder, "in", kind === "parquet" ? nameOf(7, "parquet") : nameOf(7, "ndjson.gz")));
    const name = kind === "parquet" ? nameOf(7, "parquet") : nameOf(7, "ndjson.gz");
    put(7, name.slice(name.indexOf(".") + 1), gzipSync(Buffer.alloc(100)).subarray(0, -9));
    const failure = {
      code: "TRB-SOURCE-DAMAGED",
      message: expect.stringContaining(`exports/in/${name}: `),
    };
    for (let round = 0; round < 2; round++) {
      await expect(run(kind)).rejects.toMatchObject(failure);
      expect(await landed()).toEqual(goodOf(files.slice(0, 7)));
    }
  },
);

test("a file that is gone for a while ends the job where it stood; once it is back the job goes on", async () => {
  const files = Array.from({ length: 12 }, () => ["good", "good", "bad"] as const);
  await write("ndjson", files);
  const manifest = await inspect(sources.at("exports/in"), {}, lake.context.config.bulk);
  const [here, away] = [join(folder, "in", nameOf(5, "ndjson")), join(folder, "away")];
  renameSync(here, away);
  await expect(run("ndjson", { manifest })).rejects.toMatchObject({
    code: "TRB-SOURCE-CHANGED",
    message: expect.stringContaining(`exports/in/${nameOf(5, "ndjson")}: it is gone`),
  });
  expect(await landed()).toEqual(goodOf(files.slice(0, 5)));
  renameSync(away, here);
  expect(await run("ndjson", { manifest })).toMatchObject({ done: true, chunks: 1 });
  expect(await landed()).toEqual(goodOf(files));
});

test("files whose columns differ are mapped each as it is, also by its path", async () => {
  const types = ["BIGINT", "BIGINT", "VARCHAR", "VARCHAR", "BIGINT"];
  for (const [file, type] of types.entries()) {
    const path = join(folder, "in", nameOf(file, "parquet"));
    await lake.query(
      `COPY (SELECT '${file}-' || i AS id, 1 AS rev, (${file} * 10 + i)::${type} AS amount FROM range(3) t(i))
       TO ${literal(path)} (FORMAT parquet)`,
    );
  }
  const mapping: Mapping = {
    tenant: { path: "f-000(.)" },
    entityId: "id",
    version: "rev",
    payload: { amount: "amount" },
  };
  expect(await run("parquet", { mapping })).toEqual({ done: true, chunks: 3, rejects: [] });
  const files = types.map(() => ["good", "good", "good"] as const);
  expect(await landed()).toEqual(goodOf(files));
  const rows = (await lake.rows()).map((row) => JSON.parse(row) as unknown[]);
  expect(rows.map(([tenant, id, , , , , amount]) => `${tenant}/${id}/${amount}`)).toEqual(
    types.flatMap((_, file) => [0, 1, 2].map((row) => `${file}/${file}-${row}/${file * 10 + row}`)),
  );
});

test("how much of its files a job has landed is told as they are listed, chunk by chunk", async () => {
  const files = Array.from({ length: 40 }, () => ["good", "good", "good"] as const);
  await write("ndjson", files);
  const { bulk } = lake.context.config;
  const manifest = await inspect(sources.at("exports/in"), {}, bulk);
  // Room for copies that makes stretches of some files.
  bulk.scratchBytes = manifest.bytes;
  const told: number[] = [];
  const host = hostOf({ tell: ({ bytesDone }) => void (bytesDone === undefined || told.push(bytesDone)) });
  expect(await runBootstrap(lake.context, bootstrapOf("all", { source: "exports/in" }), host)).toBe(true);
  const sums = manifest.files.map((_, at) =>
    manifest.files.slice(0, at).reduce((sum, { bytes }) => sum + bytes, 0),
  );
  expect([...sums, manifest.bytes]).toEqual(expect.arrayContaining(told));
  expect(told).toEqual([...told].sort((a, b) => a - b));
  expect(new Set(told).size).toBeGreaterThan(3);
  expect(told.at(-1)).toBe(manifest.bytes);
});

test("at its end a job reads small files together, too, and finds that all is there", async () => {
  const files = Array.from({ length: 40 }, () => ["good", "good", "bad"] as const);
  await write("ndjson", files);
  const engines = vi.spyOn(Duck, "sealed");
  try {
    expect(await runBootstrap(lake.context, bootstrapOf("all", { source: "exports/in" }), hostOf())).toBe(
      true,
    );
    // For samples, landing, and looking at it again.
    expect(engines.mock.calls.length).toBeLessThan(12);
  } finally {
    engines.mockRestore();
  }
  expect(await verificationOf(lake.context.store, "all", THING)).toMatchObject({
    equal: true,
    rejected: 40,
    source: { rows: 80 },
    raw: { rows: 80 },
  });
});
