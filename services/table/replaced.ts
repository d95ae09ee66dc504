import { assert } from "../base/errors.js";
import type { DeltaTable } from "./delta-table.js";
import { Mask } from "./mask.js";
import { FLAGS, ROW, TOMBSTONE_BIT, WORDS } from "./order.js";
import type { Standing } from "./standing.js";
import { filesOf, type TableFile } from "./types.js";

/** New masks of the files whose rows the records `ords` replace; `fileOf` tells a file's path by a record's FLAGS. */
export async function maskReplaced(
  table: DeltaTable,
  standing: Standing,
  ords: Iterable<number>,
  fileOf: (flags: number) => string,
): Promise<Map<TableFile, Mask>> {
  const { found } = standing;
  const files = filesOf(standing.snapshot);
  const masked = new Map<TableFile, Mask>();
  for (const ord of ords) {
    if (!standing.knows(ord)) continue;
    const flags = found[ord * WORDS + FLAGS]!;
    if ((flags & TOMBSTONE_BIT) !== 0) continue;
    const file = files.get(fileOf(flags));
    assert(file !== undefined, "the index names a file that is not live");
    let mask = masked.get(file);
    if (mask === undefined) {
      mask = (await table.mask(file))?.copy() ?? Mask.none(file.rows);
      masked.set(file, mask);
    }
    assert(mask.set(found[ord * WORDS + ROW]!), "the index names a row that is masked already");
  }
  return masked;
}
