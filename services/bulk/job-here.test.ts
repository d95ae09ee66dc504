import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test, vi } from "vitest";
import { bootstrapOf, replayOf } from "../../test/support/jobs.js";
import { Lake } from "../../test/support/lake.js";
import { Duck } from "../base/duckdb.js";
import { DeltaTable } from "../table/delta-table.js";
import { runHere } from "./job-here.js";
import { jobOrder } from "./jobs/job.js";
import { JobStore } from "./jobs/job-store.js";

vi.mock("../sources/source-process.js", () => import("../../test/support/readers-here.js"));

const exports = mkdtempSync(join(tmpdir(), "tributary-export-"));
afterAll(() => rmSync(exports, { recursive: true, force: true }));

test("a verification whose tables are replaced and vacuumed meanwhile is tried again, and tells of no difference", async () => {
  writeFileSync(join(exports, "a.ndjson"), '{"customer":"acme","id":"a","rev":1}');
  const lake = await Lake.create({ sources: { exports } });
  const { context } = lake;
  const { store, duck, tableOptions } = context;
  try {
    const jobs = new JobStore(store);
    const order = bootstrapOf("b", { source: "exports" });
    await jobs.order(order);
    await jobs.order(jobOrder.parse({ kind: "verify", id: "v", of: "b", by: order.by, at: order.at }));
    await jobs.order(replayOf({ id: "r", action: "swap" }));
    const run = async (id: string, after: () => Promise<void>) =>
      runHere(context, await jobs.get(id), {
        signal: new AbortController().signal,
        pace: { after, calm: async () => undefined, yieldedMs: 0 },
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
    await jobs.order(bootstrapOf("large", { source: "exports" }));
    const logged: unknown[] = [];
    const beyond = async () =>
      small.with(
        async (connection) => void (await connection.run("SELECT list(n) FROM range(10_000_000) t(n)")),
      );
    const outcome = await runHere(lake.context, await jobs.get("large"), {
      signal: new AbortController().signal,
      pace: { after: beyond, calm: async () => undefined, yieldedMs: 0 },
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
