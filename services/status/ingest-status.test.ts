import { rmSync } from "node:fs";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { fileStore, temporaryFolder } from "../../test/support/lake.js";
import type { ObjectStore } from "../storage/object-store.js";
import {
  forgetWorker,
  readIngestStatus,
  readWorkers,
  type TableStatus,
  writeWorkerStatus,
} from "./ingest-status.js";

const NOW = Date.parse("2026-01-01T00:10:00.000Z");
const ago = (seconds: number) => new Date(NOW - seconds * 1000).toISOString();

let folder: string;
let store: ObjectStore;
beforeEach(async () => {
  folder = temporaryFolder();
  store = await fileStore(folder);
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const table = (over: Partial<TableStatus>): TableStatus => ({
  kind: "raw",
  name: "t.v1.Thing",
  entityType: "t.v1.Thing",
  state: "catching-up",
  since: ago(100),
  code: "",
  reason: "",
  remedy: "",
  attempts: 0,
  parkedBytes: 10,
  held: false,
  ...over,
});

describe("what the workers of ingest tell", () => {
  test("is put together: a table is as unwell as where it is worst, and what is parked adds up", async () => {
    expect(await readIngestStatus(store, NOW)).toBeUndefined();
    await writeWorkerStatus(store, "a", { writtenAt: ago(30), tables: [table({ held: true })] });
    const worst = table({ state: "quarantined", code: "TRB-STORE-FAILED", since: ago(5), parkedBytes: 7 });
    await writeWorkerStatus(store, "b", {
      writtenAt: ago(20),
      tables: [worst, table({ name: "t.v1.Other" })],
    });
    await writeWorkerStatus(store, "c", { writtenAt: ago(25), tables: [] });
    expect(await readIngestStatus(store, NOW)).toEqual({
      writtenAt: ago(20),
      tables: [{ ...worst, parkedBytes: 17, held: true }, table({ name: "t.v1.Other" })],
    });
  });

  test("counts while they run; where none runs, the last one's word stands", async () => {
    await writeWorkerStatus(store, "dead", { writtenAt: ago(90), tables: [table({ name: "dead" })] });
    await writeWorkerStatus(store, "later", { writtenAt: ago(70), tables: [table({ name: "later" })] });
    const names = async () => (await readIngestStatus(store, NOW))?.tables.map(({ name }) => name);
    expect(await names()).toEqual(["later"]);
    await writeWorkerStatus(store, "live", { writtenAt: ago(50), tables: [] });
    expect(await names()).toEqual([]);
    await forgetWorker(store, "live");
    expect(await names()).toEqual(["later"]);
  });

  test("that cannot be read hides nobody else's; alone it is an error", async () => {
    await store.put("status/workers/torn.json", Buffer.from('{"writtenAt'));
    await expect(readIngestStatus(store, NOW)).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
    const holds = { s: ["0", "3"] };
    await writeWorkerStatus(store, "a", { writtenAt: ago(1), tables: [], holds, fingerprints: ["f"] });
    expect([...(await readWorkers(store))]).toEqual([
      ["a", { writtenAt: ago(1), tables: [], holds, fingerprints: ["f"] }],
    ]);
  });
});
