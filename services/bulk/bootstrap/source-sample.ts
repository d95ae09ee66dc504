import { randomUUID } from "node:crypto";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import type { Code } from "../../base/codes.js";
import { hasCode } from "../../base/errors.js";
import type { IngestContext } from "../../ingest/context.js";
import type { Reject } from "../../sources/formats.js";
import { lend } from "../../sources/inspect.js";
import type { Manifest } from "../../sources/manifest.js";
import { START } from "../../sources/reader.js";
import type { Place } from "../../sources/sources.js";
import { type EventOrder, makeChunk, openFiles } from "../chunks/chunk-calls.js";
import { chunkProcess } from "../chunks/chunk-processes.js";
import type { Chunk } from "../chunks/chunk-protocol.js";
import type { BootstrapJob } from "../jobs/job.js";

export type SampleContext = Pick<IngestContext, "store" | "registry" | "config">;
export type SampledOrder = EventOrder & Pick<BootstrapJob, "csv">;

/** Rows of one file that are no events, for one reason. */
export interface SampledRejects {
  readonly code: Code;
  readonly reason: string;
  readonly rows: number;
  /** The first of them: a file of the source, and its number there, from 0. */
  readonly file: string;
  readonly row: number;
}

/** The first rows of some of a source's files, made events of. */
export interface SourceSample {
  /** Local files as raw has them, until the sample is given back. */
  readonly paths: readonly string[];
  readonly files: number;
  readonly rows: number;
  readonly rejected: number;
  readonly rejects: readonly SampledRejects[];
  /** Of the whole source; `exact` when each file tells, or was read to its end. */
  readonly sourceRows: { readonly rows: number; readonly exact: boolean } | undefined;
}

/** Of one file. */
const SIZE = { rows: 5_000, bytes: 4 * 1024 * 1024 };
/** So many say enough of a file. */
const MOST_REJECTS = 10_000;

/**
 * Makes events of the first rows of the source's first, middle and last file, as the job would. Errors: as those of
 * the job itself: TRB-BULK-MAPPING, those of sources.
 */
export async function withSample<T>(
  context: SampleContext,
  order: SampledOrder,
  place: Place,
  manifest: Manifest,
  use: (sample: SourceSample) => Promise<T>,
): Promise<T> {
  const files = order.share?.files ?? [...manifest.files.keys()];
  const last = files.length - 1;
  const sampled = new Sampled(manifest, files.length);
  const indices = [...new Set([0, last >> 1, last])].map((at) => files[at]!);
  const paths = new Map(
    indices.map((index) => [index, join(context.store.staging, `sample-${randomUUID()}`)]),
  );
  try {
    for (const [index, out] of paths) await sampleFile(context, order, place, manifest, index, out, sampled);
    return await use(sampled.end([...paths.values()]));
  } finally {
    for (const path of paths.values()) {
      await rm(path, { force: true });
      await rm(asideOf(path), { force: true });
    }
  }
}

const asideOf = (path: string): string => `${path}.payloads`;

function sampleFile(
  context: SampleContext,
  order: SampledOrder,
  place: Place,
  manifest: Manifest,
  index: number,
  out: string,
  sampled: Sampled,
): Promise<void> {
  return lend(place, manifest, index, context.config.bulk, order.csv, async (unit) => {
    const maker = chunkProcess(context.config.bulk);
    let rejected = 0;
    try {
      const { rows } = await openFiles(maker, context, order, {
        files: [
          {
            unit: { ...unit, batchBytes: SIZE.bytes },
            file: index,
            bytes: manifest.files[index]!.bytes,
          },
        ],
        from: START,
        out,
        aside: asideOf(out),
        models: [],
        stream: "sample",
        partition: "0",
      });
      const onRejects = (rejects: readonly Reject[]) => {
        rejected += rejects.length;
        for (const { code, message, row } of rejects) sampled.reject(index, code, message, row);
        if (rejected > MOST_REJECTS) maker.end();
      };
      // Whether its payloads are there is not asked yet.
      const chunk = await makeChunk(maker, SIZE, onRejects, async () => []).catch((error: unknown) => {
        if (rejected > MOST_REJECTS && hasCode(error, "TRB-SOURCE-READER")) return undefined;
        throw error;
      });
      sampled.add(index, rows, rejected, chunk);
    } finally {
      maker.end();
      await maker.ended;
    }
  });
}

class Sampled {
  private files = 0;
  private rows = 0;
  private rejected = 0;
  private readonly reasons = new Map<string, { -readonly [K in keyof SampledRejects]: SampledRejects[K] }>();
  private readonly empty = new Set<number>();
  /** Of the sampled files: their rows, as far as these are known, and their bytes. */
  private counted = { rows: 0, bytes: 0, exact: true, known: true };

  constructor(
    private readonly manifest: Manifest,
    /** Those that could have been sampled. */
    private readonly of: number,
  ) {}

  reject(index: number, code: Code, reason: string, row: number): void {
    const key = `${code} ${reason}`;
    const before = this.reasons.get(key);
    if (before !== undefined) before.rows++;
    else this.reasons.set(key, { code, reason, rows: 1, file: this.manifest.files[index]!.path, row });
  }

  /** `rows`: of the whole file, where they are known. Without a chunk nothing came of what was read. */
  add(index: number, rows: number | undefined, rejected: number, chunk: Chunk | undefined): void {
    const { bytes, compression } = this.manifest.files[index]!;
    this.files++;
    this.rows += chunk?.file.rows ?? 0;
    this.rejected += rejected;
    if ((chunk?.file.rows ?? 0) === 0) this.empty.add(this.files - 1);
    const { counted } = this;
    counted.bytes += bytes;
    const seen = (chunk?.file.rows ?? 0) + rejected;
    if (rows !== undefined) counted.rows += rows;
    else if (chunk?.end === true) counted.rows += seen;
    else {
      counted.exact = false;
      const read = chunk?.bytes ?? 0;
      if (read === 0 || compression !== "none") counted.known = false;
      else counted.rows += (seen * bytes) / read;
    }
  }

  end(paths: readonly string[]): SourceSample {
    const { files, rows, rejected, counted, manifest } = this;
    const rejects = [...this.reasons.values()].sort((a, b) => b.rows - a.rows);
    const written = paths.filter((_, at) => !this.empty.has(at));
    const sourceRows = counted.known
      ? {
          rows: Math.round(
            counted.bytes === 0 ? counted.rows : (counted.rows * manifest.bytes) / counted.bytes,
          ),
          exact: counted.exact && files === this.of,
        }
      : undefined;
    return { paths: written, files, rows, rejected, rejects, sourceRows };
  }
}
