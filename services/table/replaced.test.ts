import { expect, test } from "vitest";
import { Mask } from "./mask.js";
import { FLAGS, ROW, WORDS } from "./order.js";
import { maskReplaced } from "./replaced.js";
import { Standing } from "./standing.js";
import type { TableFile, TableSnapshot } from "./types.js";

const FILES = 40;

/** Two rows in each of the files: 1 and 3. */
function twoInEach(): { readonly standing: Standing; readonly files: readonly TableFile[] } {
  const files = Array.from({ length: FILES }, (_, i) => ({ path: `f-${i}`, rows: 5 }) as TableFile);
  const standing = new Standing(new Uint32Array(2 * FILES * WORDS), { files } as unknown as TableSnapshot);
  const record = new Uint32Array(WORDS);
  for (let ord = 0; ord < standing.count; ord++) {
    record[FLAGS] = (ord % FILES) << 8;
    record[ROW] = ord < FILES ? 1 : 3;
    standing.set(ord, record, 0);
  }
  return { standing, files };
}
const fileOf = (flags: number) => `f-${flags >>> 8}`;

test("masks of many files are asked for side by side: another writer may have laid new ones over all of them", async () => {
  const { standing, files } = twoInEach();
  let asked = 0;
  let release = () => undefined as void;
  const all = new Promise<void>((resolve) => {
    release = resolve;
  });
  const table = {
    mask: async ({ rows }: TableFile) => {
      if (++asked === FILES) release();
      await all;
      return Mask.of(rows, [0]);
    },
  };
  const masked = await maskReplaced(
    table,
    standing,
    Array.from({ length: standing.count }, (_, i) => i),
    fileOf,
  );
  expect([...masked.keys()]).toEqual(files);
  for (const mask of masked.values()) expect([...mask.toRows()]).toEqual([0, 1, 3]);
});

test("a row that is masked already is told of", async () => {
  const { standing } = twoInEach();
  const table = { mask: async ({ rows }: TableFile) => Mask.of(rows, [3]) };
  await expect(maskReplaced(table, standing, [FILES], fileOf)).rejects.toThrow("masked already");
});
