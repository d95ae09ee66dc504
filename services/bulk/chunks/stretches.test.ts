import { expect, test } from "vitest";
import type { Manifest } from "../../sources/manifest.js";
import { stretchesOf } from "./stretches.js";

const MiB = 1024 * 1024;
const room = { chunk: { bytes: 64 * MiB }, scratchBytes: 1024 * MiB, apart: -1 };

/** A source with files of so many MiB. */
const source = (sizes: readonly number[], more: Partial<Manifest> = {}): Manifest => ({
  source: "exports",
  format: "ndjson",
  bytes: 0,
  files: sizes.map((size, at) => ({
    ...{ path: `${at}`, identity: "", bytes: size * MiB, compression: "none" as const },
  })),
  ...more,
});
const shared = (manifest: Manifest, more: Partial<typeof room> = {}, files = [...manifest.files.keys()]) =>
  stretchesOf(manifest, files, { ...room, ...more });

test.each<[string, readonly (readonly number[])[], readonly number[][]]>([
  ["small ones go together", shared(source([1, 2, 3])), [[0, 1, 2]]],
  [
    "about two chunks' worth",
    shared(source([50, 60, 20, 50])),
    [
      [0, 1],
      [2, 3],
    ],
  ],
  ["a large one by itself", shared(source([1, 200, 1, 1])), [[0], [1], [2, 3]]],
  ["what is packed is larger than it looks", shared(source([20, 20], { format: "parquet" })), [[0], [1]]],
  ["those that are wanted", shared(source([1, 1, 1, 1]), {}, [0, 2, 3]), [[0, 2, 3]]],
  ["up to one that failed each by itself", shared(source([1, 1, 1, 1]), { apart: 1 }), [[0], [1], [2, 3]]],
  [
    "no more than there is room for copies of",
    shared(source([20, 20, 20]), { scratchBytes: 160 * MiB }),
    [[0, 1], [2]],
  ],
  ["none of none", shared(source([])), []],
])("files of a stretch: %s", (_, found, expected) => {
  expect(found).toEqual(expected);
});

test("a stretch has a number of files that one process can hold open", () => {
  const stretches = shared(source(Array.from({ length: 1000 }, () => 0)));
  expect(stretches.flat()).toEqual(Array.from({ length: 1000 }, (_, at) => at));
  expect(Math.max(...stretches.map(({ length }) => length))).toBe(256);
});
