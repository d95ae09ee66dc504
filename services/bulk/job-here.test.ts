import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test, vi } from "vitest";
import { Lake, THING } from "../../test/support/lake.js";
import { Duck } from "../base/duckdb.js";
import { DeltaTable } from "../table/delta-table.js";
import { runHere } from "./job-here.js";
import { jobOrder } from "./jobs/job.js";
import { JobStore } from "./jobs/job-store.js";

vi.mock("../sources/source-process.js", () => import("../../test/support/readers-here.js"));

const exports = mkdtempSync(join(tmpdir(), "tributary-export-"));
afterAll(() => rmSync(exports, { recursive: true, force: true }));

const MAPPING = { tenant: "customer", entityId: "id", version: "rev" };

test("a verification whose tables are replaced and vacuumed meanwhile is tried again, and tells of no difference", async () => {
  writeFileSync(join(exports, "a.ndjson"), '{"customer":"acme","id":"a","rev":1}');
  const lake = await Lake.create({ sources: { exports } });
  const { context } = lake;
  const { store, duck, tableOptions } = context;
  try {
    const jobs = new JobStore(store);
    const common = { by: "ops", at: "2026-01-02T03:04:05Z" };
    const source = { source: "exports", entityType: THING, mapping: MAPPING, through: "files" };
    await jobs.order(jobOrder.parse({ ...common, ...source, kind: "bootstrap", id: "b" }));
    await jobs.order(jobOrder.parse({ ...common, kind: "verify", id: "v", of: "b" }));
    const swap = { kind: "replay", id: "r", model: "t.things", action: "swap" };
    await jobs.order(jobOrder.parse({ ...common, ...swap }));
    const run = async (id: string, after: () => Promise<void>) =>
      runHere(context, await jobs.get(id), {
        signal: new AbortController().signal,
        pace: { after, calm: async () => undefined },
        tell: () => undefined,
        log: () => undefined,
      });
    expect(await run("b", async () => undefined)).toEqual({ kind: "done" });
    const table = (await DeltaTable.open(store, "refined/t/things", duck, tableOptions))!;
    const before = table.snapshot.files.map(({ path }) => `${table.root}/${path}`);
    let paces = 0;
    const outcome = await run("v", async () => {
      // The source has been read, and the table is about to be.
      if (++paces !== 2) return;
      expect(await run("r", async () => undefined)).toEqual({ kind: "done" });
      await store.delete(before);
    });
    expect(outcome).toMatchObject({ kind: "failed", code: "TRB-JOB-FILES", retryable: true });
    expect(await run("v", async () => undefined)).toEqual({ kind: "done" });
  } finally {
    await lake.close();
  }
});

test("a job whose engine has no memory left is not tried again as it is", async () => {
  writeFileSync(join(exports, "a.ndjson"), '{"customer":"acme","id":"a","rev":1}');
  const lake = await Lake.create({ sources: { exports } });
  const small = await Duck.create({ memoryBytes: 16 * 1024 * 1024 });
  try {
    const jobs = new JobStore(lake.context.store);
    await jobs.order(
      jobOrder.parse({
        ...{ kind: "bootstrap", id: "large", by: "ops", at: "2026-01-02T03:04:05Z" },
        ...{ source: "exports", entityType: THING, mapping: MAPPING, through: "files" },
      }),
    );
    const logged: unknown[] = [];
    const beyond = async () =>
      small.with(
        async (connection) => void (await connection.run("SELECT list(n) FROM range(10_000_000) t(n)")),
      );
    const outcome = await runHere(lake.context, await jobs.get("large"), {
      signal: new AbortController().signal,
      pace: { after: beyond, calm: async () => undefined },
      tell: () => undefined,
      log: (error) => logged.push(error),
    });
    expect(outcome).toMatchObject({ kind: "failed", code: "TRB-JOB-MEMORY", retryable: false });
    expect(logged).toHaveLength(1);
  } finally {
    small.close();
    await lake.close();
  }
});
