import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test, vi } from "vitest";
import { bootstrapOf } from "../../../test/support/jobs.js";
import { Lake, THING } from "../../../test/support/lake.js";
import { rawRoot } from "../../ingest/raw-table.js";
import { DeltaTable } from "../../table/delta-table.js";
import { withScan } from "../../table/scan.js";
import { runHere } from "../job-here.js";
import { JobStore } from "../jobs/job-store.js";

vi.mock("../../sources/source-process.js", () => import("../../../test/support/readers-here.js"));

const LIMIT = 1_000_000;

test("rows whose payloads are too large for raw lie in the object store; raw alone gives the same rows again", async () => {
  const folder = mkdtempSync(join(tmpdir(), "tributary-export-"));
  const lake = await Lake.create({ sources: { exports: folder } });
  try {
    lake.context.config.bus.maxOffloadBytes = 3 * LIMIT;
    const row = (tenant: string, id: string, bytes: number) =>
      `${JSON.stringify({ tenant, id, rev: 5, name: "x".repeat(bytes), amount: "7" })}\n`;
    writeFileSync(
      join(folder, "a.ndjson"),
      [
        row("acme", "small", 10),
        row("acme", "large", LIMIT + 1),
        row("acme", "too-large", 3 * LIMIT),
        row("other", "large", LIMIT + 1),
        row("acme", "twin", LIMIT + 1),
      ].join(""),
    );
    const jobs = new JobStore(lake.context.store);
    const mapping = { tenant: "tenant", entityId: "id", version: "rev" };
    await jobs.order(bootstrapOf("large", { source: "exports", mapping }));
    let rejected = 0;
    const outcome = await runHere(lake.context, await jobs.get("large"), {
      signal: new AbortController().signal,
      pace: { after: async () => undefined, calm: async () => undefined, yieldedMs: 0 },
      tell: (told) => {
        rejected = told.rejected ?? rejected;
      },
      log: (error: unknown) => expect(error).toBeUndefined(),
    });
    expect([outcome, rejected]).toEqual([{ kind: "done" }, 1]);
    const raw = (await DeltaTable.open(lake.context.store, rawRoot(THING), lake.context.duck, {
      checkpointEvery: 1000,
    }))!;
    const columns = ["tenant_id", "entity_id", "payload", "payload_uri", "payload_size", "payload_sha256"];
    const found = (await withScan(raw, raw.snapshot, { columns }, (sql) =>
      lake.query(
        `SELECT tenant_id, entity_id, octet_length(payload), payload_uri, payload_size, lower(hex(payload_sha256))
         FROM (${sql}) ORDER BY 1, 2`,
      ),
    )) as [string, string, bigint | null, string | null, bigint | null, string | null][];
    const [large, , twin, other] = found;
    expect(found.map(([tenant, id]) => `${tenant} ${id}`)).toEqual([
      "acme large",
      "acme small",
      "acme twin",
      "other large",
    ]);
    expect(found[1]!.slice(3)).toEqual([null, null, null]);
    for (const [tenant, , payload, uri, size, sha256] of [large!, twin!, other!]) {
      expect(payload).toBeNull();
      expect(uri).toBe(`offload/${tenant}/${sha256}`);
      expect((await lake.context.store.get(uri!))!.length).toBe(Number(size));
    }
    expect([twin![5], other![5]]).toEqual([large![5], large![5]]);
    expect(readdirSync(lake.context.store.staging).filter((name) => name.startsWith("chunk-"))).toEqual([]);
    const rows = await lake.rows();
    expect(rows.map((text) => (JSON.parse(text) as string[])[5]!.length)).toEqual([
      LIMIT + 1,
      10,
      LIMIT + 1,
      LIMIT + 1,
    ]);
    // The model's table is gone: what is built of raw is the same.
    rmSync(join(lake.folder, "lake", "refined"), { recursive: true });
    await lake.reopen();
    expect(await lake.rows()).toEqual(rows);
  } finally {
    await lake.close();
    rmSync(folder, { recursive: true, force: true });
  }
});
