import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, expect, test, vi } from "vitest";
import { bootstrapOf, hostOf } from "../../../test/support/jobs.js";
import { expectedThings, Lake, NOTE, type TestEvent, TestStream, THING } from "../../../test/support/lake.js";
import { loadConfig } from "../../base/config.js";
import { encodeEvent } from "../../contracts/encode-event.js";
import type { IngestContext } from "../../ingest/context.js";
import { EventBatch } from "../../ingest/event-batch.js";
import { Lane } from "../../ingest/lane.js";
import { confirmDeletes } from "../verify/reconcile.js";
import { planOf } from "../verify/reconcile-plan.js";
import { verificationOf } from "../verify/verification.js";
import { runBootstrap } from "./bootstrap-job.js";

vi.mock("../../sources/source-process.js", () => import("../../../test/support/readers-here.js"));

const exports = mkdtempSync(join(tmpdir(), "tributary-export-"));
afterAll(() => rmSync(exports, { recursive: true, force: true }));

const thing = (id: number, version = 1n, operation = 1, tenant = "acme"): TestEvent => ({
  tenant,
  id: `t-${id}`,
  operation,
  version,
  thing: operation === 3 ? {} : { name: `n${id}`, amount: id + 1 },
});

/** One line an entity. */
function put(id: string, rows: readonly TestEvent[], more: readonly string[] = []): void {
  mkdirSync(join(exports, id), { recursive: true });
  const lines = rows.map(({ tenant, id: entity, version, thing: { name, amount } }) =>
    JSON.stringify({ customer: tenant, id: entity, rev: String(version), name, amount }),
  );
  writeFileSync(join(exports, id, "a.ndjson"), [...lines, ...more].join("\n"));
}

function contextOf(lake: Lake): IngestContext {
  const { context } = lake;
  const { bulk } = loadConfig({ data: lake.folder, bulk: { sources: { exports } } }, { env: {} });
  return { ...context, config: { ...context.config, bulk } };
}

test("a job deletes what its export lacks once its number is confirmed, and reports that all is there", async () => {
  const lake = await Lake.create();
  try {
    const lane = await lake.lane();
    const live = new TestStream("live");
    const old = Array.from({ length: 60 }, (_, i) => thing(i));
    const other = [thing(1, 1n, 1, "other")];
    await lane.land(live.batch([...old, ...other]));
    // Two of what has vanished are written again, and one of what is there is deleted.
    const rows = old.slice(3);
    put("a", rows);
    const job = bootstrapOf("a", { reconcile: { watermark: { version: 1 } } });
    const context = contextOf(lake);
    await expect(runBootstrap(context, job, hostOf())).rejects.toMatchObject({
      code: "TRB-RECONCILE-CONFIRM",
      message: expect.stringContaining("3 entities of 1 tenants would be deleted") as string,
    });
    const newer = [thing(0, 2n), thing(10, 2n, 3)];
    await lane.land(live.batch(newer));
    const plan = (await planOf(lake.context.store, "a"))!;
    const asOf = plan.version;
    for (const wrong of [
      { count: 2, asOf },
      { count: 4, asOf },
      { count: 3, asOf: asOf + 1 },
    ]) {
      await expect(confirmDeletes(lake.context.store, "a", wrong, "ops")).rejects.toMatchObject({
        code: "TRB-RECONCILE-COUNT",
        message: expect.stringContaining(`expected 3 as of version ${asOf}`) as string,
      });
    }
    await expect(runBootstrap(context, job, hostOf())).rejects.toMatchObject({
      code: "TRB-RECONCILE-CONFIRM",
    });
    await confirmDeletes(lake.context.store, "a", { count: 3, asOf }, "ops");
    await lake.settled();
    expect(await runBootstrap(context, job, hostOf())).toBe(true);
    const gone = [thing(0, 1n, 3), thing(1, 1n, 3), thing(2, 1n, 3)];
    await (await lake.target()).table.refresh();
    expect(await lake.rows()).toEqual(expectedThings([...old, ...other, ...newer, ...rows, ...gone]));
    const found = (await verificationOf(lake.context.store, "a", THING))!;
    expect(found).toMatchObject({
      equal: true,
      rejected: 0,
      source: { rows: 57 },
      raw: { rows: 57 },
      keys: [],
    });
    const acme = found.tenants.find(({ tenant }) => tenant === "acme")!;
    expect(acme.raw).toEqual(acme.source);
    // Those that the job itself has deleted are told with its entities; the one written again has overtaken its delete.
    expect(acme.models["t.things"]!.entities).toMatchObject({
      winning: 56,
      deleted: 3,
      overtaken: 1,
      missing: 0,
    });
  } finally {
    await lake.close();
  }
});

test("an export of which a row was rejected is no ground to delete anything", async () => {
  const lake = await Lake.create();
  try {
    await (await lake.lane()).land(new TestStream("live").batch([thing(1), thing(2), thing(3)]));
    put("rejected", [thing(1)], ['{"customer":"acme","id":"t-2","rev":"none"}']);
    const job = bootstrapOf("rejected", { reconcile: { watermark: { version: 9 } } });
    await expect(runBootstrap(contextOf(lake), job, hostOf())).rejects.toMatchObject({
      code: "TRB-RECONCILE-EXPORT",
      message: expect.stringContaining("1 of its rows were rejected") as string,
    });
  } finally {
    await lake.close();
  }
});

test("of an export of one type nothing follows for entities of another one, by whatever ids", async () => {
  const lake = await Lake.create();
  const notes = await Lane.open(lake.context, NOTE, () => undefined);
  try {
    const batch = new EventBatch(NOTE, "live");
    for (const [i, id] of ["t-1", "t-2", "t-3"].entries()) {
      const about = { tenantId: "acme", entityType: NOTE, entityId: id, operation: 1, version: 1 };
      const bytes = encodeEvent({ ...about, payload: { value: new Uint8Array() } });
      batch.add(bytes, 0, bytes.length, "0", String(i + 1).padStart(12, "0"), 1_700_000_000_000);
    }
    await notes.land(batch);
    await (await lake.lane()).land(new TestStream("live").batch([thing(1), thing(2)]));
    put("types", [thing(1)]);
    const job = bootstrapOf("types", { reconcile: { watermark: { version: 9 } } });
    const context = contextOf(lake);
    await expect(runBootstrap(context, job, hostOf())).rejects.toMatchObject({
      code: "TRB-RECONCILE-CONFIRM",
    });
    const { deletes, version: asOf } = (await planOf(lake.context.store, "types"))!;
    expect(deletes).toBe(1);
    await confirmDeletes(lake.context.store, "types", { count: 1, asOf }, "ops");
    expect(await runBootstrap(context, job, hostOf())).toBe(true);
    await (await lake.lane()).look();
    await (await lake.target()).table.refresh();
    expect(await lake.rows()).toEqual(expectedThings([thing(1)]));
    const { snapshot } = notes.raw;
    expect((await notes.raw.refresh()).version).toBe(snapshot.version);
  } finally {
    await notes.close();
    await lake.close();
  }
});
