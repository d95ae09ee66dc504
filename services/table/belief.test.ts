import { afterAll, beforeAll, expect, test } from "vitest";
import { CrashedError, SimulatedFiles } from "../../test/support/simulated-files.js";
import { Duck } from "../base/duckdb.js";
import { FileStore } from "../storage/file-store.js";
import type { TableSpec } from "./definition.js";
import { DeltaTable } from "./delta-table.js";
import { advancePositions, positionsOf } from "./progress.js";

/** A commit is believed once its name is sure to stay: by its writer, and by whoever finds it. */

let duck: Duck;
beforeAll(async () => {
  duck = await Duck.create({ memoryBytes: 64 * 1024 * 1024 });
});
afterAll(() => duck.close());

const SPEC: TableSpec = {
  columns: [{ name: "a", type: "string", nullable: true }],
  partitionColumns: [],
  properties: {},
  protocol: { minReaderVersion: 1, minWriterVersion: 7, writerFeatures: ["domainMetadata"] },
};
const OPTIONS = { checkpointEvery: 1_000_000 };
const LOG = "/simulated/lake/t/_delta_log";

const storeOf = (files: SimulatedFiles) =>
  FileStore.open({ folder: "/simulated/lake", staging: "/simulated/staging", files });
const create = async (files: SimulatedFiles) =>
  DeltaTable.openOrCreate(await storeOf(files), "t", duck, OPTIONS, SPEC);
const open = async (files: SimulatedFiles) =>
  (await DeltaTable.open(await storeOf(files), "t", duck, OPTIONS))!;
const reached = (table: DeltaTable) => positionsOf(table.snapshot, "s").get("0");

function land(table: DeltaTable, position: string) {
  const from = positionsOf(table.snapshot, "s");
  const { actions, expect: expected } = advancePositions("s", from, new Map([["0", position]]));
  return table.commit({
    operation: "WRITE",
    actions,
    expect: expected,
    basedOn: table.snapshot.version,
    serializable: false,
  });
}

/** What a power loss leaves that takes everything it can take. */
const harshest = (files: SimulatedFiles) => files.afterPowerLoss(() => 0.99);

function failSyncsOfTheLog(files: SimulatedFiles): void {
  files.onOperation = (operation, path) => {
    if (operation === "syncFolder" && path === LOG) throw Object.assign(new Error("EIO"), { code: "EIO" });
  };
}

test("by its writer: a name that cannot be synced is no commit, although reading back finds it", async () => {
  const files = new SimulatedFiles();
  const table = await create(files);
  expect((await land(table, "1")).kind).toBe("committed");
  failSyncsOfTheLog(files);
  await expect(land(table, "2")).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
  expect(reached(table)).toBe("1");
  await expect(table.refresh()).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
  expect(reached(table)).toBe("1");
  expect(reached(await open(harshest(files)))).toBe("1");
  // Once the disk works again, the commit is found, made durable, and only then believed.
  files.onOperation = undefined;
  await table.refresh();
  expect(reached(table)).toBe("2");
  expect(reached(await open(harshest(files)))).toBe("2");
});

test("by its writer: one failed sync is made good before the commit is reported", async () => {
  const files = new SimulatedFiles();
  const table = await create(files);
  let failures = 1;
  files.onOperation = (operation, path) => {
    if (operation === "syncFolder" && path === LOG && failures-- > 0)
      throw Object.assign(new Error("EIO"), { code: "EIO" });
  };
  expect((await land(table, "1")).kind).toBe("committed");
  expect(reached(await open(harshest(files)))).toBe("1");
});

test("by the next process, after a kill between the name and its sync", async () => {
  const files = new SimulatedFiles();
  const table = await create(files);
  await land(table, "1");
  files.onOperation = (operation, path) => {
    // The link has taken effect; nothing after it does.
    if (operation === "syncFolder" && path === LOG) throw new CrashedError();
  };
  await expect(land(table, "2")).rejects.toThrow();
  const restarted = files.afterKill();
  const next = await open(restarted);
  expect(reached(next)).toBe("2");
  // It goes on as if 2 were done: the stream may be told to forget it.
  expect(reached(await open(harshest(restarted)))).toBe("2");
});

test("by one that was open all along and meets another's commit", async () => {
  const files = new SimulatedFiles();
  const writer = await create(files);
  await land(writer, "1");
  const other = await open(files);
  failSyncsOfTheLog(files);
  await expect(land(writer, "2")).rejects.toThrow();
  await expect(other.refresh()).rejects.toMatchObject({ code: "TRB-STORE-FAILED" });
  files.onOperation = undefined;
  await other.refresh();
  expect(reached(other)).toBe("2");
  expect(reached(await open(harshest(files)))).toBe("2");
});
