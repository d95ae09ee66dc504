import { assert } from "../base/errors.js";
import { inGroups } from "../base/in-groups.js";
import type { DeltaTable } from "./delta-table.js";
import { Mask } from "./mask.js";
import { FLAGS, ROW, TOMBSTONE_BIT, WORDS } from "./order.js";
import type { Standing } from "./standing.js";
import { filesOf, type TableFile } from "./types.js";

const AT_ONCE = 64;

/** New masks of the files whose rows the records `ords` replace; `fileOf` tells a file's path by a record's FLAGS. */
export async function maskReplaced(
  table: Pick<DeltaTable, "mask">,
  standing: Standing,
  ords: Iterable<number>,
  fileOf: (flags: number) => string,
): Promise<Map<TableFile, Mask>> {
  const { found } = standing;
  const files = filesOf(standing.snapshot);
  const rows = new Map<TableFile, number[]>();
  for (const ord of ords) {
    if (!standing.knows(ord)) continue;
    const flags = found[ord * WORDS + FLAGS]!;
    if ((flags & TOMBSTONE_BIT) !== 0) continue;
    const file = files.get(fileOf(flags));
    assert(file !== undefined, "the index names a file that is not live");
    const row = found[ord * WORDS + ROW]!;
    const own = rows.get(file);
    if (own === undefined) rows.set(file, [row]);
    else own.push(row);
  }
  // One after the other, the vectors that another writer has just laid over hundreds of files would keep a batch waiting.
  const masked = await inGroups([...rows], AT_ONCE, async ([file, gone]): Promise<[TableFile, Mask]> => {
    const mask = (await table.mask(file))?.copy() ?? Mask.none(file.rows);
    for (const row of gone) assert(mask.set(row), "the index names a row that is masked already");
    return [file, mask];
  });
  return new Map(masked);
}
