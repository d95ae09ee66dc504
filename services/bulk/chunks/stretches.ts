import { lendAll } from "../../sources/inspect.js";
import type { Manifest } from "../../sources/manifest.js";
import type { BootstrapOrder } from "./bootstrap-order.js";
import type { FileToRead, NextChunk } from "./chunk-protocol.js";

/**
 * Files that follow each other in a source are read as one stretch, so that many small ones make few chunks: each chunk is
 * a file in each table. A large file is a stretch of its own, as what is read side by side are stretches.
 */

/** Files of a stretch at most: its reader holds all of them open. */
const MOST_FILES = 256;
/** About so many chunks are in a stretch of small files: the last one takes what is left, and is no small file either. */
const CHUNKS = 2;
/** Stretches are lent side by side: of the room for copies each takes so much at most. */
const OF_SCRATCH = 1 / 4;

/** What a packed file is taken to unpack to before one has been read to its end, in times its size. */
const UNPACKED = 5;

/** How many times its size a file of the source is taken to be once it is unpacked. */
export function unpacking({ files, format }: Manifest, file: number): number {
  const isColumnar = format === "parquet" || format === "delta";
  return isColumnar || files[file]?.compression !== "none" ? UNPACKED : 1;
}

/** Numbers of files that are read as one, in their order: never none. */
export type Stretch = readonly number[];

/** Shares out files of a source, in their order; those up to the number `apart` are read each by itself. */
export function stretchesOf(
  manifest: Manifest,
  files: readonly number[],
  { chunk, scratchBytes, apart }: { chunk: Pick<NextChunk, "bytes">; scratchBytes: number; apart: number },
): Stretch[] {
  const most = Math.min(CHUNKS * chunk.bytes, OF_SCRATCH * scratchBytes);
  const stretches: number[][] = [];
  let bytes = 0;
  for (const file of files) {
    const size = manifest.files[file]!.bytes * unpacking(manifest, file);
    const last = stretches.at(-1);
    if (last !== undefined && last.at(-1)! > apart && last.length < MOST_FILES && bytes + size <= most) {
      last.push(file);
      bytes += size;
    } else {
      stretches.push([file]);
      bytes = size;
    }
  }
  return stretches;
}

/** Runs `use` with the files of a stretch, as `lend` does. Errors: those of `lend`. */
export function lendStretch<T>(
  { place, manifest, limits, csv }: Pick<BootstrapOrder, "place" | "manifest" | "limits" | "csv">,
  stretch: Stretch,
  use: (files: readonly FileToRead[]) => Promise<T>,
): Promise<T> {
  return lendAll(place, manifest, stretch, limits, csv, (units) =>
    use(units.map((unit, at) => ({ unit, file: stretch[at]!, bytes: manifest.files[stretch[at]!]!.bytes }))),
  );
}
