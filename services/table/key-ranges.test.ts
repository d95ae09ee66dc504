import { expect, test } from "vitest";
import { TableWriter } from "../../test/support/table-writers.js";
import { NEVER, openWorkbench } from "../../test/support/tables.js";
import { FileRanges, KeyRanges, type TenantRange } from "./key-ranges.js";
import type { TableFile } from "./types.js";

const { store, duck, freshRoot } = await openWorkbench();

const of = (tenants: number, least: string, greatest: string) =>
  new KeyRanges(Array.from({ length: tenants }, (_, at): TenantRange => [`t${at}`, least, greatest]));
const fileAt = (path: string) =>
  ({ path, min: { tenant_id: "t0" }, max: { tenant_id: "t99999" } }) as unknown as TableFile;

test("ids of all planes are compared as their bytes are", () => {
  // By UTF-16 units "\u{1f701}" would come before "\uffee".
  const ordered = ["", "a", "b", "é", "\uffee", "\u{1f701}"];
  for (const [i, low] of ordered.entries())
    for (const [j, high] of ordered.entries()) {
      if (i > j) continue;
      for (const [k, one] of ordered.entries()) {
        const meets = new KeyRanges([["t", low, high]]).meets(new KeyRanges([["t", one, one]]));
        expect(meets, JSON.stringify([low, high, one])).toBe(i <= k && k <= j);
      }
    }
});

test("of files with all of very many tenants no more is kept than between which ids they lie", async () => {
  const writer = await TableWriter.open(store, duck, freshRoot(), NEVER);
  const ranges = new FileRanges(writer.table);
  const files = 300;
  const idsOf = (file: number) => [`id-${1000 + file}-a`, `id-${1000 + file}-z`] as const;
  for (let file = 0; file < files; file++) ranges.tell(`f${file}`, of(5000, ...idsOf(file)));
  expect(ranges.size).toBeLessThanOrEqual(200_000);
  // Each is told from the others all the same, as the ids of an export in their order are.
  const own = of(5000, ...idsOf(files - 1));
  const near = Array.from({ length: files }, (_, file) => ranges.mayMeet(fileAt(`f${file}`), own));
  expect(near.filter(Boolean).length).toBe(1);
  // What is in between two of a file's tenants' ids may be there; of a file that is told in full it is known.
  const between = new KeyRanges([["t1", "id-1000-a", "id-1000-b"]]);
  const few = new KeyRanges([
    ["t0", "id-1000-a", "id-1000-a"],
    ["t1", "id-1000-c", "id-1000-z"],
  ]);
  const fresh = new FileRanges(writer.table);
  fresh.tell("few", few);
  expect(fresh.mayMeet(fileAt("few"), between)).toBe(false);
  ranges.tell("few", few);
  expect(ranges.mayMeet(fileAt("few"), between)).toBe(true);
  // Files that are gone make room.
  ranges.keep(new Set(["few"]));
  expect(ranges.size).toBe(0);
  ranges.tell("few", few);
  expect(ranges.mayMeet(fileAt("few"), between)).toBe(false);
  await writer.close();
});
