import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { Lake, TestStream, THING } from "../../../test/support/lake.js";
import { literal } from "../../base/duckdb.js";
import { inspect } from "../../sources/inspect.js";
import { LocalRoot } from "../../sources/local-root.js";
import type { BootstrapJob } from "../jobs/job.js";
import { type BootstrapCheck, checkBootstrap, requirePassed } from "./bootstrap-check.js";

vi.mock("../../sources/source-process.js", () => import("../../../test/support/readers-here.js"));

let lake: Lake;
const folder = mkdtempSync(join(tmpdir(), "tributary-check-"));
const mapping = { tenant: "customer", entityId: "id", version: "rev" };

beforeAll(async () => {
  lake = await Lake.create();
  mkdirSync(join(folder, "parts"));
  // Counters of one tenant, and of many a row.
  const lane = await lake.lane();
  const stream = new TestStream();
  const event = (id: string, version: number) => ({
    tenant: "acme",
    id,
    operation: 2 as const,
    version: BigInt(version),
    thing: { name: id },
  });
  await lane.land(stream.batch(Array.from({ length: 60 }, (_, i) => event(`e${i}`, 1 + (i % 9)))));
});
afterAll(async () => {
  await lake.close();
  rmSync(folder, { recursive: true, force: true });
});

async function check(
  path: string,
  order: Partial<Pick<BootstrapJob, "mapping" | "tenant" | "entityType" | "reconcile">> = {},
): Promise<BootstrapCheck> {
  const place = { root: new LocalRoot("exports", folder, lake.folder), path };
  const { context } = lake;
  const manifest = await inspect(place, {}, context.config.bulk);
  return checkBootstrap(context, { entityType: THING, mapping, ...order }, place, manifest);
}

const write = (name: string, rows: readonly object[]) =>
  writeFileSync(join(folder, name), rows.map((row) => `${JSON.stringify(row)}\n`).join(""));

test("versions are compared with those of the same tenant, else of the type; 0 always passes", async () => {
  const now = 1_700_000_000_000;
  const row = (customer: string, rev: number) => ({ customer, id: "x", rev, name: "n" });
  write("times.ndjson", [row("acme", now), row("zeta", 3)]);
  write("others.ndjson", [row("zeta", now)]);
  write("counters.ndjson", [row("acme", 4), row("zeta", 900)]);
  const [times, others, counters] = [
    await check("times.ndjson"),
    await check("others.ndjson"),
    await check("counters.ndjson"),
  ];
  const refused = { code: "TRB-BULK-VERSIONS", message: expect.stringContaining("10^12 in the export") };
  expect([times.refusals, others.refusals, counters.refusals]).toEqual([[refused], [refused], []]);
  expect(() => requirePassed(times)).toThrow(expect.objectContaining({ code: "TRB-BULK-VERSIONS" }));
  expect(JSON.stringify(times.refusals)).not.toContain("acme");
  expect(others.versions).toEqual([
    {
      entityType: THING,
      export: { rows: 1, median: now, high: now },
      live: { rows: 60, median: 5, high: 9 },
    },
  ]);
  const reconcile = { watermark: { version: now } };
  expect((await check("counters.ndjson", { reconcile })).refusals).toEqual([
    { code: "TRB-BULK-VERSIONS", message: expect.stringContaining("reconcile.watermark.version") },
  ]);
  const zero = await check("times.ndjson", { mapping: { ...mapping, version: { constant: 0 } } });
  expect(zero.refusals).toEqual([]);
  expect(zero.preview.map(({ version }) => version)).toEqual(["0", "0"]);
});

test("a source of many files is sampled, and its rows are counted as far as that is known", async () => {
  for (const file of [0, 1, 2, 3, 4]) {
    const to = literal(join(folder, "parts", `${file}.parquet`));
    const rows = `SELECT 'acme' AS customer, i AS id, CASE WHEN i = 7 THEN -1 ELSE 1 END AS rev, 'n' AS name, 1 AS extra`;
    await lake.query(`COPY (${rows} FROM range(100) t(i)) TO ${to} (FORMAT parquet)`);
  }
  const found = await check("parts");
  expect(found).toMatchObject({
    format: "parquet",
    files: 5,
    rowsExact: false,
    sample: { rows: 297, rejected: 3 },
    rejects: [{ code: "TRB-EVENT-VERSION", rows: 3, file: "parts/0.parquet", row: 7 }],
    leftover: { columns: ["extra"], fields: expect.arrayContaining(["amount", "hidden"]) },
    refusals: [],
  });
  expect(found.rows).toBeGreaterThan(450);
  expect(found.rows).toBeLessThan(550);
  expect(found.preview.length).toBe(10);
  expect(found.preview[0]).toMatchObject({ tenant: "acme", operation: "CREATED", payload: { name: "n" } });
});

test("rows that are of a tenant of their own each are noted: another column was meant", async () => {
  const rows = Array.from({ length: 1800 }, (_, i) => ({ customer: `c${i % 600}`, id: `e${i}`, rev: 1 }));
  write("owned.ndjson", rows);
  const told = async (tenant: string) =>
    (await check("owned.ndjson", { mapping: { ...mapping, tenant } })).notes.filter((note) =>
      /tenant/.test(note),
    );
  expect(await told("customer")).toEqual([]);
  expect(await told("id")).toEqual([expect.stringContaining("is tenant the right column?")]);
});

test("what does not fit at all is told instead", async () => {
  write("a.ndjson", [{ customer: "acme", id: "x", rev: 1, name: "n" }]);
  const fails = (order: Parameters<typeof check>[1]) => expect(check("a.ndjson", order)).rejects;
  await fails({ entityType: undefined, reconcile: { watermark: { version: 9 } } }).toMatchObject({
    code: "TRB-BULK-MAPPING",
    message: "reconcile: expected an entityType beside it",
  });
  await fails({ mapping: undefined }).toMatchObject({
    code: "TRB-BULK-MAPPING",
    message: /mapping: expected one/,
  });
  await fails({ mapping: { ...mapping, payload: { nothing: "x" } } }).toMatchObject({
    code: "TRB-BULK-MAPPING",
    message: expect.stringContaining("payload.nothing"),
  });
  const typo = await check("a.ndjson", { mapping: { ...mapping, payload: { name: "nam" } } });
  expect(typo.notes.join()).toContain('not "nam"');
});
