import { rename, rm } from "node:fs/promises";
import { literal } from "../../base/duckdb.js";
import type { IngestContext } from "../../ingest/context.js";
import type { Reject } from "../../sources/formats.js";
import { START } from "../../sources/reader.js";
import type { SourceProcess } from "../../sources/source-process.js";
import type { BootstrapOrder } from "../chunks/bootstrap-order.js";
import { makeChunk, openFiles } from "../chunks/chunk-calls.js";
import { CHUNK } from "../chunks/chunk-file.js";
import { ChunkProcesses } from "../chunks/chunk-processes.js";
import type { Chunk, ChunkModel } from "../chunks/chunk-protocol.js";
import { lookFor } from "../chunks/payload-keeper.js";
import type { Aside } from "../chunks/payloads-aside.js";
import { type EventDigest, type EventDigests, eventDigests } from "../chunks/row-digests.js";
import { lendStretch, type Stretch, stretchesOf } from "../chunks/stretches.js";
import type { JobHost } from "../jobs/job-run.js";
import { LANE, streamOf } from "../jobs/job-tracks.js";
import { addDigests } from "./digests.js";
import type { Made, MadeFiles } from "./made-files.js";

/** What a source holds. */
export interface SourceFacts {
  /** By tenant. */
  readonly digests: ReadonlyMap<string, EventDigest>;
  /** Rows that are no events: of whom they are is not known. */
  readonly rejected: number;
  readonly made: Made;
}

type Context = Pick<IngestContext, "store" | "duck" | "registry" | "config" | "decoding" | "models">;

/**
 * Reads a source to its end, as the job that lands it does, for what its rows say, and what models make of them, which
 * goes to `files`. Undefined when the signal stopped it. Errors: those of sources.
 */
export async function sourceFacts(
  context: Context,
  order: BootstrapOrder,
  host: Pick<JobHost, "signal" | "pace">,
  files: MadeFiles,
): Promise<SourceFacts | undefined> {
  const processes = new ChunkProcesses(order.limits, 1);
  try {
    const reading = new Reading(context, order, host, files, await processes.claim());
    const { share, manifest } = order;
    const wanted = share?.files ?? [...manifest.files.keys()];
    const { scratchBytes } = context.config.bulk;
    for (const stretch of stretchesOf(manifest, wanted, { chunk: CHUNK, scratchBytes, apart: -1 }))
      if (!(await reading.read(stretch))) return undefined;
    return reading.found;
  } finally {
    await processes.end();
  }
}

class Reading {
  private readonly digests = new Map<string, EventDigest>();
  private rejected = 0;
  /** Models that have made all of the rows so far. */
  private readonly whole: Map<string, ChunkModel>;
  /** Where each chunk is written, and its large payloads. */
  private readonly out: string;
  private readonly aside: string;

  constructor(
    private readonly context: Context,
    private readonly order: BootstrapOrder,
    private readonly host: Pick<JobHost, "signal" | "pace">,
    private readonly files: MadeFiles,
    private readonly maker: SourceProcess,
  ) {
    this.out = files.path();
    this.aside = files.path();
    // What whole events say is known once raw has decoded them.
    const models = context.models.filter(
      ({ entityType }) => entityType === order.entityType && order.mapping !== undefined,
    );
    this.whole = new Map(
      models.map(({ name, sql, columns }) => [
        name,
        { name, sql, columns, out: files.path(), tombstones: files.path() },
      ]),
    );
  }

  get found(): SourceFacts {
    const { digests, rejected, whole, files } = this;
    return { digests, rejected, made: { files, whole: new Set(whole.keys()) } };
  }

  /** Resolves to whether it has read all of the stretch. */
  read(stretch: Stretch): Promise<boolean> {
    const { context, order, maker, out, aside } = this;
    return lendStretch(order, stretch, async (files) => {
      const models = [...this.whole.values()];
      const place = { stream: streamOf(order.job), partition: LANE };
      const asked = { files, from: START, out, aside, models, asDigests: true, ...place };
      await openFiles(maker, context, order, asked);
      return this.chunks(models);
    });
  }

  private async chunks(models: readonly ChunkModel[]): Promise<boolean> {
    const { context, host, maker } = this;
    const onRejects = ({ length }: readonly Reject[]) => {
      this.rejected += length;
    };
    // Rows whose payloads are not there are no events, as when they landed.
    const missing = async ({ elsewhere }: Aside) =>
      (await lookFor(context.decoding.offloaded, elsewhere)).missing;
    for (;;) {
      if (host.signal.aborted) return false;
      const chunk = await makeChunk(maker, CHUNK, onRejects, missing);
      if (chunk.file.rows > 0) {
        addDigests(this.digests, await this.digestsOf(chunk));
        await this.keep(models, chunk);
      }
      await host.pace({ rows: chunk.file.rows, bytes: chunk.bytes });
      if (chunk.end) return true;
    }
  }

  private async digestsOf({ digests }: Chunk): Promise<EventDigests> {
    if (digests !== undefined) return new Map(digests);
    const relation = `read_parquet(${literal(this.out)}, hive_partitioning=false)`;
    const found = await this.context.duck.with((connection) => eventDigests(connection, relation));
    await rm(this.out);
    return found;
  }

  /** The process writes the next chunk where this one lies. */
  private async keep(models: readonly ChunkModel[], { refined }: Chunk): Promise<void> {
    const { whole, files } = this;
    for (const { name, out, tombstones } of models) {
      const made = refined?.models.find((one) => one.name === name);
      if (made === undefined) {
        whole.delete(name);
        files.forget(name);
      }
      if (!whole.has(name)) continue;
      for (const path of made?.tombstones === undefined ? [out] : [out, tombstones]) {
        const kept = files.path();
        await rename(path, kept);
        files.add(name, kept);
      }
    }
  }
}
