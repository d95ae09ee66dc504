import type { Config } from "../base/config.js";
import { type Choice, CSV_DEFAULTS, type CsvOptions, type Reject } from "./formats.js";
import { listSource, type Manifest } from "./manifest.js";
import type { Counted, Request, Results, Sample } from "./protocol.js";
import { START } from "./reader.js";
import { shown } from "./root.js";
import { SourceProcess } from "./source-process.js";
import type { Place } from "./sources.js";
import type { Mark } from "./splitter.js";
import { partitionOf, type ReadUnit } from "./unit.js";

export type ReadLimits = Pick<Config["bulk"], "maxRecordBytes" | "readerMemoryBytes" | "readerIdleMs">;

/** What the records of one batch have together: a few row groups, or some hundred thousand lines. */
const BATCH_BYTES = 32 * 1024 * 1024;

/** Lists a source; a Delta table's log is read aside. Errors: as `listSource`; those of SourceProcess. */
export function inspect(place: Place, choice: Choice, limits: ReadLimits): Promise<Manifest> {
  return listSource(place, choice, (name, log) =>
    aside(limits, { type: "delta", shown: name, log: [...log] }),
  );
}

/** The first rows of a source's file at `index`, for a dry run. Errors: those of `lend`, SourceReader, SourceProcess. */
export function sample(
  place: Place,
  manifest: Manifest,
  rows: number,
  limits: ReadLimits,
  { index = 0, csv }: { readonly index?: number; readonly csv?: CsvOptions | undefined } = {},
): Promise<Sample> {
  return lend(place, manifest, index, limits, csv, (unit) => aside(limits, { type: "sample", unit, rows }));
}

/** Reads a source's file at `index` to its end, rejects and all. Errors: as `sample`. */
export function count(
  place: Place,
  manifest: Manifest,
  index: number,
  limits: ReadLimits,
  options: {
    readonly csv?: CsvOptions | undefined;
    readonly from?: Mark;
    readonly onRejects?: (rejects: readonly Reject[]) => void;
  } = {},
): Promise<Counted> {
  const { csv, from = START, onRejects } = options;
  return lend(place, manifest, index, limits, csv, (unit) =>
    aside(limits, { type: "count", unit, from }, onRejects),
  );
}

/**
 * Runs `use` with what a reader needs to know of a file, which is there until `use` ends.
 * Errors: TRB-SOURCE-CHANGED, TRB-SOURCE-SCRATCH, TRB-SOURCE-UNREADABLE; those of `use`.
 */
export function lend<T>(
  place: Place,
  manifest: Manifest,
  index: number,
  limits: Pick<ReadLimits, "maxRecordBytes">,
  csv: CsvOptions | undefined,
  use: (unit: ReadUnit) => Promise<T>,
): Promise<T> {
  return lendAll(place, manifest, [index], limits, csv, ([unit]) => use(unit!));
}

/** As `lend`, of several files. */
export function lendAll<T>(
  { root }: Place,
  { format, files, delta: table }: Manifest,
  indices: readonly number[],
  { maxRecordBytes }: Pick<ReadLimits, "maxRecordBytes">,
  csv: CsvOptions | undefined,
  use: (units: readonly ReadUnit[]) => Promise<T>,
): Promise<T> {
  const lent = indices.map((index) => files[index]!);
  const found = lent.flatMap(({ delta, compression: _, ...file }) =>
    delta?.vectorFile === undefined ? [file] : [file, delta.vectorFile],
  );
  return root.withLocal(found, (paths) => {
    let next = 0;
    const units = lent.map(
      ({ path, identity, compression, delta }): ReadUnit => ({
        shown: shown(root.name, path),
        path: paths[next++]!,
        vectorPath: delta?.vectorFile === undefined ? undefined : paths[next++]!,
        identity: root.inPlace ? identity : undefined,
        format,
        compression,
        // A Delta table's log tells them itself.
        partition: delta === undefined ? partitionOf(path) : {},
        csv: csv ?? CSV_DEFAULTS,
        delta:
          delta === undefined
            ? undefined
            : { columns: table!.columns, partition: delta.partition, vector: delta.vector },
        maxRecordBytes,
        batchBytes: BATCH_BYTES,
      }),
    );
    return use(units);
  });
}

/** One call of a process of its own. */
async function aside<R extends Request>(
  { readerMemoryBytes: memoryBytes, readerIdleMs: idleMs }: ReadLimits,
  request: R,
  onRejects?: (rejects: readonly Reject[]) => void,
): Promise<Results[R["type"]]> {
  const reader = new SourceProcess({ memoryBytes, idleMs });
  try {
    const result = await reader.call(request, (reply) => {
      if (reply.type === "rejects") onRejects?.(reply.rejects);
    });
    return result as Results[R["type"]];
  } finally {
    reader.end();
  }
}
