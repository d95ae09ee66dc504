import { afterEach, beforeEach, expect, test } from "vitest";
import { Lake } from "../../test/support/lake.js";
import { DeltaTable } from "./delta-table.js";
import { progressOf, setProgress, type Track } from "./progress.js";
import { replaceTable } from "./replace.js";

const SPEC = {
  columns: [{ name: "a", type: "string", nullable: true }],
  partitionColumns: [],
  properties: {},
  protocol: { minReaderVersion: 1, minWriterVersion: 7, writerFeatures: ["domainMetadata"] },
};

let lake: Lake;
beforeEach(async () => {
  lake = await Lake.create({ models: {} });
});
afterEach(() => lake.close());

async function tableAt(root: string, positions: readonly (readonly [Track, string])[]): Promise<DeltaTable> {
  const { store, duck, tableOptions } = lake.context;
  const table = await DeltaTable.openOrCreate(store, root, duck, tableOptions, SPEC);
  const move = setProgress(new Map(), new Map(positions));
  await table.commit({ operation: "WRITE", ...move, basedOn: 0, serializable: true });
  return table;
}

test("a table that becomes another one stands where that one stands, on every track and no other", async () => {
  const table = await tableAt("t", [
    ["s.0", "05"],
    ["s.1", "07"],
    ["old.0", "09"],
  ]);
  const side = await tableAt("t/side", [
    ["s.0", "03"],
    ["new.0", "01"],
  ]);
  const nothing = { actions: [], expect: new Map() };
  expect((await replaceTable(table, side, "side", SPEC, nothing)).kind).toBe("committed");
  const { store, duck, tableOptions } = lake.context;
  const reopened = (await DeltaTable.open(store, "t", duck, tableOptions))!;
  for (const { snapshot } of [table, reopened])
    expect(progressOf(snapshot)).toEqual(progressOf(side.snapshot));
});
