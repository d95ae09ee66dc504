import { expect, test } from "vitest";
import { commit, NEVER, openWorkbench } from "../../test/support/tables.js";
import type { AddAction } from "./actions.js";
import type { TableSpec } from "./definition.js";
import { readCommit } from "./delta-log.js";
import { DeltaTable } from "./delta-table.js";

const { store, duck } = await openWorkbench();

/** As the first Tributary made refined tables. */
const OLD: TableSpec = {
  columns: [
    { name: "tenant_id", type: "string", nullable: false, description: "Whose." },
    { name: "gone", type: "long", nullable: false },
  ],
  partitionColumns: [],
  properties: { "delta.enableDeletionVectors": "true", "tributary.fingerprint": "old" },
  protocol: {
    minReaderVersion: 3,
    minWriterVersion: 7,
    readerFeatures: ["deletionVectors"],
    writerFeatures: ["deletionVectors", "domainMetadata"],
  },
};
const NEW: TableSpec = {
  columns: [{ name: "tenant_id", type: "string", nullable: true }],
  partitionColumns: [],
  properties: { "delta.appendOnly": "true", "tributary.fingerprint": "new" },
  protocol: { minReaderVersion: 1, minWriterVersion: 7, writerFeatures: ["appendOnly", "domainMetadata"] },
};

const add: AddAction = {
  path: "part-1.parquet",
  partitionValues: {},
  size: 1,
  modificationTime: 1,
  dataChange: true,
  stats: JSON.stringify({ numRecords: 10 }),
};
const vector = {
  storageType: "u",
  pathOrInlineDv: "^-aqEH.-t@S}K{vb[*k^",
  sizeInBytes: 1,
  cardinality: 1,
} as const;

async function made(root: string, add: AddAction): Promise<void> {
  const table = await DeltaTable.openOrCreate(store, root, duck, NEVER, OLD);
  await commit(table, [{ add }], { serializable: true });
}

test("a table of an older make is mended by one commit when a writer opens it, whoever is first", async () => {
  await made("mended", add);
  const tables = await Promise.all(
    [1, 2, 3].map(() => DeltaTable.openOrCreate(store, "mended", duck, NEVER, NEW)),
  );
  for (const table of tables) expect((await table.refresh()).version).toBe(2);
  const [, protocol, metaData] = (await readCommit(store, "mended", 2))!;
  expect(protocol!.protocol).toEqual(NEW.protocol);
  const { configuration, schemaString, id } = metaData!.metaData!;
  // Rows and model are the old ones until the table is rebuilt.
  expect(configuration).toMatchObject({ "delta.appendOnly": "true", "tributary.fingerprint": "old" });
  expect(configuration).not.toHaveProperty("delta.enableDeletionVectors");
  expect(JSON.parse(schemaString).fields).toEqual([
    { name: "tenant_id", type: "string", nullable: true, metadata: { comment: "Whose." } },
    { name: "gone", type: "long", nullable: true, metadata: {} },
  ]);
  expect(id).toBe(tables[0]!.id);
  expect(tables[0]!.snapshot.files).toHaveLength(1);
  const again = await DeltaTable.openOrCreate(store, "mended", duck, NEVER, NEW);
  expect(again.snapshot.version).toBe(2);
  await again.checkpoint();
  expect((await DeltaTable.openOrCreate(store, "mended", duck, NEVER, NEW)).snapshot.version).toBe(2);
});

test("a table with vectors goes on asking its readers to know them", async () => {
  await made("vectors", { ...add, deletionVector: vector });
  const table = await DeltaTable.openOrCreate(store, "vectors", duck, NEVER, NEW);
  expect(table.snapshot.version).toBe(2);
  const [, protocol] = (await readCommit(store, "vectors", 2))!;
  expect(protocol!.protocol).toEqual({
    minReaderVersion: 3,
    minWriterVersion: 7,
    readerFeatures: ["deletionVectors"],
    writerFeatures: ["appendOnly", "domainMetadata", "deletionVectors"],
  });
  expect((await DeltaTable.openOrCreate(store, "vectors", duck, NEVER, NEW)).snapshot.version).toBe(2);
});

test("a reader changes nothing", async () => {
  await made("read", add);
  expect((await DeltaTable.open(store, "read", duck, NEVER))!.snapshot.version).toBe(1);
});
