import { expect, test } from "vitest";
import { expectedThings, Lake, TestStream, THING } from "../../test/support/lake.js";
import type { TableSpec } from "../table/definition.js";
import { readCommit } from "../table/delta-log.js";
import { DeltaTable } from "../table/delta-table.js";
import { verifyTable } from "../table/verify.js";
import { DEAD_LETTERS_ROOT } from "./dead-letters.js";
import { rawRoot, rawSpec } from "./raw-table.js";
import { refinedRoot, refinedSpec } from "./refined-table.js";

const VECTORS = {
  minReaderVersion: 3,
  minWriterVersion: 7,
  readerFeatures: ["deletionVectors"],
  writerFeatures: ["deletionVectors", "domainMetadata", "tributary.upsert"],
};
const TIMES = { "delta.enableInCommitTimestamps": "true" };

/** Protocol and Delta properties of each kind of table, as they are and as the first Tributary made them. */
const KINDS = {
  raw: {
    protocol: {
      minReaderVersion: 1,
      minWriterVersion: 7,
      writerFeatures: ["appendOnly", "domainMetadata", "inCommitTimestamp", "tributary.append"],
    },
    properties: { ...TIMES, "delta.appendOnly": "true" },
    old: { minReaderVersion: 1, minWriterVersion: 7, writerFeatures: ["domainMetadata"] },
    oldProperties: {},
  },
  refined: {
    protocol: {
      minReaderVersion: 3,
      minWriterVersion: 7,
      readerFeatures: ["deletionVectors"],
      writerFeatures: ["deletionVectors", "domainMetadata", "inCommitTimestamp", "tributary.upsert"],
    },
    properties: { ...TIMES, "delta.enableDeletionVectors": "true" },
    old: VECTORS,
    oldProperties: { "delta.enableDeletionVectors": "true", "delta.dataSkippingStatsColumns": "tenant_id" },
  },
  "dead letters": {
    // Without vectors: readers that do not know them may read the letters.
    protocol: {
      minReaderVersion: 1,
      minWriterVersion: 7,
      writerFeatures: ["domainMetadata", "inCommitTimestamp", "tributary.upsert"],
    },
    properties: TIMES,
    old: VECTORS,
    oldProperties: { "delta.enableDeletionVectors": "true", "delta.dataSkippingStatsColumns": "tenant_id" },
  },
} as const;

const event = (id: string, version: bigint) => ({
  tenant: "acme",
  id,
  operation: 2,
  version,
  thing: { name: id, amount: 1 },
});

test("tables of every kind that the first Tributary made are mended by one commit, then go on", async () => {
  const lake = await Lake.create();
  const { store, duck, models, tableOptions } = lake.context;
  const letters = (await DeltaTable.open(store, DEAD_LETTERS_ROOT, duck, tableOptions))!;
  const specs: Record<keyof typeof KINDS, readonly [string, TableSpec]> = {
    raw: [rawRoot(THING), rawSpec(THING)],
    refined: [refinedRoot(models[0]!), await duck.with((c) => refinedSpec(c, models[0]!))],
    "dead letters": [
      DEAD_LETTERS_ROOT,
      {
        columns: letters.snapshot.columns.map(({ name, type }) => ({
          name,
          type: { VARCHAR: "string", BIGINT: "long", BLOB: "binary" }[type] ?? "timestamp",
          nullable: true,
        })),
        partitionColumns: [],
        properties: {},
        protocol: VECTORS,
      },
    ],
  };
  for await (const { key } of store.list(`${DEAD_LETTERS_ROOT}/`)) await store.delete([key]);
  for (const kind of Object.keys(KINDS) as (keyof typeof KINDS)[]) {
    const [root, spec] = specs[kind];
    const own = Object.entries(spec.properties).filter(([name]) => !name.startsWith("delta."));
    await DeltaTable.openOrCreate(store, root, duck, tableOptions, {
      ...spec,
      columns: spec.columns.map((column) => ({
        ...column,
        nullable: kind !== "refined" || !["tenant_id", "entity_id"].includes(column.name),
      })),
      properties: { ...Object.fromEntries(own), ...KINDS[kind].oldProperties },
      protocol: KINDS[kind].old,
    });
  }
  await lake.reopen();
  const stream = new TestStream();
  await (await lake.lane()).land(stream.batch([event("a", 1n), event("b", 1n)]));
  await lake.settled();
  await (await lake.lane()).land(stream.batch([event("a", 2n)]));
  await lake.settled();
  for (const kind of Object.keys(KINDS) as (keyof typeof KINDS)[]) {
    const [root] = specs[kind];
    const actions = (await readCommit(lake.context.store, root, 1))!;
    expect(actions[0]!.commitInfo!.operation, kind).toBe("UPGRADE PROTOCOL");
    const { protocol } = actions.find((action) => action.protocol !== undefined)!;
    expect(protocol, kind).toEqual(KINDS[kind].protocol);
    const { configuration, schemaString } = actions.find((action) => action.metaData !== undefined)!
      .metaData!;
    expect(configuration, kind).toMatchObject(KINDS[kind].properties);
    expect(schemaString, kind).not.toContain('"nullable":false');
    if (kind === "dead letters") expect(configuration).not.toHaveProperty("delta.enableDeletionVectors");
    // Once is enough.
    const second = (await readCommit(lake.context.store, root, 2)) ?? [];
    expect(second[0]?.commitInfo?.operation, kind).not.toBe("UPGRADE PROTOCOL");
  }
  expect(await lake.rows()).toEqual(expectedThings(stream.events));
  const { table } = await lake.target();
  expect((await verifyTable(table)).problems).toEqual([]);
  await lake.close();
});

test("bounds are kept of own columns alone, to the last digit, also once rows are masked", async () => {
  const lake = await Lake.create();
  const stream = new TestStream();
  const big = (1n << 53n) + 1n;
  const at = (seconds: number, nanos: number) => ({ occurred: { seconds, nanos } });
  await (await lake.lane()).land(
    stream.batch([
      { ...event("a", big), ...at(-62_135_596_800, 0) },
      { ...event("b", (1n << 63n) - 1n), ...at(253_402_300_799, 999_999_999) },
      event("c", 7n),
    ]),
  );
  await lake.settled();
  await (await lake.lane()).land(stream.batch([{ ...event("c", big), ...at(0, 1000) }]));
  await lake.settled();
  const { table } = await lake.target();
  const stats = table.snapshot.files.map(({ add }) => add.stats!).sort();
  const [first, second] = stats;
  const time = (text: string) => `"_tributary_occurred_at":"${text}"`;
  expect(second).toBe(
    `{"numRecords":3,"tightBounds":false,"minValues":{"tenant_id":"acme","_tributary_version":7,${time("0001-01-01T00:00:00.000000Z")}},"maxValues":{"tenant_id":"acme","_tributary_version":9223372036854775807,${time("9999-12-31T23:59:59.999999Z")}},"nullCount":{"tenant_id":0,"_tributary_version":0,"_tributary_occurred_at":1}}`,
  );
  expect(first).toContain(`"minValues":{"tenant_id":"acme","_tributary_version":${big},`);
  const raw = (await DeltaTable.open(lake.context.store, rawRoot(THING), lake.context.duck, {
    checkpointEvery: 100,
  }))!;
  const bounded = Object.keys(JSON.parse(raw.snapshot.files[0]!.add.stats!).minValues);
  expect(bounded.sort()).toEqual(
    ["occurred_at", "partition", "position", "received_at", "stream", "tenant_id", "version"].sort(),
  );
  await lake.close();
});
