import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test, vi } from "vitest";
import { Lake, THING } from "../../test/support/lake.js";
import { Duck } from "../base/duckdb.js";
import { runHere } from "./job-here.js";
import { jobOrder } from "./jobs/job.js";
import { JobStore } from "./jobs/job-store.js";

vi.mock("../sources/source-process.js", () => import("../../test/support/readers-here.js"));

const exports = mkdtempSync(join(tmpdir(), "tributary-export-"));
afterAll(() => rmSync(exports, { recursive: true, force: true }));

test("a job whose engine has no memory left is not tried again as it is", async () => {
  writeFileSync(join(exports, "a.ndjson"), '{"customer":"acme","id":"a","rev":1}');
  const lake = await Lake.create({ sources: { exports } });
  const small = await Duck.create({ memoryBytes: 16 * 1024 * 1024 });
  try {
    const jobs = new JobStore(lake.context.store);
    const mapping = { tenant: "customer", entityId: "id", version: "rev" };
    await jobs.order(
      jobOrder.parse({
        ...{ kind: "bootstrap", id: "large", by: "ops", at: "2026-01-02T03:04:05Z" },
        ...{ source: "exports", entityType: THING, mapping, through: "files" },
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
