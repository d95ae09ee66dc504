import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import pino from "pino";
import { Registry } from "prom-client";
import { afterAll, expect, test } from "vitest";
import { generateExport, ISSUE } from "../../bench/bulk-export.js";
import { loadConfig } from "../../services/base/config.js";
import { runBootstrap } from "../../services/bulk/bootstrap/bootstrap-job.js";
import { verificationOf } from "../../services/bulk/verify/verification.js";
import { openContext } from "../../services/ingest/ingest.js";
import { FileStore } from "../../services/storage/file-store.js";
import { bootstrapOf, hostOf } from "../support/jobs.js";

const ROWS = 150_000;
/** A row group of payloads takes a third of it; 28 hashes of each row, on either side and by entity, took more than the rest. */
const MEMORY_BYTES = 384 * 1024 * 1024;

const root = mkdtempSync(join(tmpdir(), "tributary-verify-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

test("a job of wide rows is verified within its engine's memory, which they do not fit into", async () => {
  const exports = join(root, "exports");
  await generateExport({
    folder: exports,
    rows: ROWS,
    fileRows: ROWS,
    format: "parquet",
    tenants: 5,
    eventBytes: 700,
    order: "random",
  });
  const data = join(root, "data");
  const config = loadConfig(
    { data, bulk: { sources: { exports } }, ingest: { duckdbMemoryBytes: MEMORY_BYTES } },
    { env: {} },
  );
  const store = await FileStore.open({ folder: join(data, "lake"), staging: join(data, "staging", "test") });
  const context = await openContext({
    config,
    store,
    log: pino({ level: "silent" }),
    registry: new Registry(),
  });
  const job = bootstrapOf("wide", { source: "exports", entityType: ISSUE });
  expect(await runBootstrap(context, job, hostOf())).toBe(true);
  const found = (await verificationOf(store, "wide", ISSUE))!;
  expect(found).toMatchObject({ equal: true, source: { rows: ROWS }, raw: { rows: ROWS }, keys: [] });
  const winning = found.tenants.map(
    ({ models }) => Object.values(models).find(({ entities }) => entities.winning > 0)!.entities.winning,
  );
  expect(winning.reduce((sum, rows) => sum + rows, 0)).toBe(ROWS);
  context.duck.close();
}, 120_000);
