import { randomUUID } from "node:crypto";
import { rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { TributaryError } from "../base/errors.js";
import type { IngestContext } from "../ingest/context.js";
import { rawRoot, rawSpec } from "../ingest/raw-table.js";
import type { CsvOptions, Reject } from "../sources/formats.js";
import { lend, type ReadLimits } from "../sources/inspect.js";
import type { Manifest } from "../sources/manifest.js";
import type { Mapping } from "../sources/mapping.js";
import { START } from "../sources/reader.js";
import { SourceProcess } from "../sources/source-process.js";
import type { Place } from "../sources/sources.js";
import type { Mark } from "../sources/splitter.js";
import { append } from "../table/append.js";
import { DeltaTable } from "../table/delta-table.js";
import { positionsOf, trackOf } from "../table/progress.js";
import { CHUNK_WORKER } from "./chunk-file.js";
import type { Chunk, LeaveOut, NextChunk, OpenFile } from "./chunk-protocol.js";
import type { EventShare } from "./event-types.js";
import { streamOf } from "./job-tracks.js";
import { keepAside } from "./payload-keeper.js";
import { RefinedSide } from "./refined-side.js";
import { positionIn } from "./row-events.js";

/** The one lane of a job. */
export const LANE = "0";
/**
 * About what one chunk holds; whichever is reached first. Files of so many rows are left alone by compaction, and its
 * process has memory for them.
 */
const CHUNK: Pick<NextChunk, "rows" | "bytes"> = { rows: 120_000, bytes: 96 * 1024 * 1024 };

/** What a job lands, and where it comes from. */
export interface BootstrapOrder {
  readonly job: string;
  readonly entityType: string;
  /** Rows of others are rejected. */
  readonly tenant: string | undefined;
  /** None for whole events. */
  readonly mapping: Mapping | undefined;
  readonly place: Place;
  /** As it was when the job began. */
  readonly manifest: Manifest;
  readonly limits: ReadLimits;
  /** Of whole events, what others of the same job land; and the files that hold what is to be landed here. */
  readonly share?: EventShare | undefined;
  /** How its files are written, if that is CSV. */
  readonly csv?: CsvOptions | undefined;
  readonly chunk?: Pick<NextChunk, "rows" | "bytes">;
}

export interface BootstrapProgress {
  /** Of the manifest. */
  readonly file: number;
  readonly rows: number;
  readonly rejects: number;
  /** Of the source, unpacked. */
  readonly bytes: number;
}

/** What of ingest's a job works with. */
export type BootstrapContext = Pick<
  IngestContext,
  "store" | "duck" | "tableOptions" | "registry" | "models" | "config" | "decoding"
>;

/** Told of what becomes of a job while it runs. */
export interface BootstrapHost {
  /** A chunk has landed. */
  landed(chunk: BootstrapProgress): void;
  /** Resolves once they are kept: before the chunk lands that they come of. What it rejects with ends the job's run. */
  reject(file: number, rejects: readonly Reject[]): Promise<void>;
  /** Resolves when the next chunk may be made, after one of so much. */
  pace(work: { readonly rows: number; readonly bytes: number }): Promise<void>;
  /** Ends it after the chunk that runs. */
  readonly signal: AbortSignal;
}

/**
 * Lands a source in raw, chunk by chunk, beside live traffic and one after the other. How far it is stands in raw's own
 * positions, in the commits of the rows: a run that is killed at any instant is gone on with by the next one, and a
 * second one beside it does nothing twice.
 */
export class Bootstrap {
  private constructor(
    private readonly table: DeltaTable,
    private readonly refined: RefinedSide,
    private readonly order: BootstrapOrder,
    private readonly context: BootstrapContext,
    private readonly host: BootstrapHost,
  ) {}

  /**
   * Resolves to whether all of the source has landed; false when it was told to stop. Errors: TRB-BULK-MAPPING,
   * TRB-JOB-ELSEWHERE, those of sources and of commits. What has landed stays, and the next run goes on behind it.
   */
  static async run(context: BootstrapContext, order: BootstrapOrder, host: BootstrapHost): Promise<boolean> {
    const { entityType } = order;
    const { store, duck, tableOptions } = context;
    const root = rawRoot(entityType);
    const table = await DeltaTable.openOrCreate(store, root, duck, tableOptions, rawSpec(entityType));
    const refined = await RefinedSide.open(context, entityType);
    try {
      return await new Bootstrap(table, refined, order, context, host).all();
    } finally {
      await Promise.all([table.settled(), refined.settled()]);
    }
  }

  private async all(): Promise<boolean> {
    const { share, manifest } = this.order;
    for (;;) {
      const reached = positionsOf(this.table.snapshot, streamOf(this.order.job)).get(LANE);
      let { file, from } = reached === undefined ? FIRST : placeAt(reached);
      for (; file < manifest.files.length && share?.files.includes(file) === false; from = START) file++;
      if (file === manifest.files.length) return true;
      if (!(await this.file(file, from))) return false;
    }
  }

  /** False when it was told to stop. */
  private file(file: number, from: Mark): Promise<boolean> {
    const { place, manifest, limits } = this.order;
    return lend(place, manifest, file, limits, this.order.csv, async (unit) => {
      const { readerMemoryBytes: memoryBytes, readerIdleMs: idleMs } = limits;
      const maker = new SourceProcess({ memoryBytes, idleMs }, CHUNK_WORKER);
      // Beside what is staged, to be taken over by the commits that they are made for.
      const out = join(this.table.store.staging, `chunk-${randomUUID()}.parquet`);
      const aside = `${out}.payloads`;
      const models = this.refined.wanted();
      try {
        return await this.chunks(maker, { unit, file, from, out, aside, models });
      } finally {
        maker.end();
        await maker.ended;
        const left = [out, aside, ...models.flatMap((model) => [model.out, model.tombstones])];
        for (const path of left) await rm(path, { force: true });
      }
    });
  }

  /** True at the file's end, or when a chunk has to be made again; false when it was told to stop before. */
  private async chunks(
    maker: SourceProcess,
    {
      aside,
      ...opened
    }: Pick<OpenFile, "unit" | "file" | "from" | "out" | "models"> & { readonly aside: string },
  ): Promise<boolean> {
    const { file, out, models } = opened;
    const { entityType, tenant, mapping, share, job, chunk: size = CHUNK } = this.order;
    const { host, table, context } = this;
    const stream = streamOf(job);
    const open: OpenFile = {
      type: "open",
      ...opened,
      mapping,
      leaves: share?.leaves,
      payloads: { sizes: context.config.bus, aside },
      descriptors: context.registry.bytes(),
      entityType,
      tenant,
      stream,
      partition: LANE,
    };
    await maker.call(open);
    for (;;) {
      if (host.signal.aborted) return false;
      const rejects: Reject[] = [];
      let made: Chunk | undefined;
      const before = positionsOf(table.snapshot, stream);
      let to = "";
      const result = await append(table, stream, before, async (localPath) => {
        made = await this.made(maker, { type: "next", ...size }, rejects);
        if (made.aside !== undefined) {
          const rows = await keepAside(context.decoding.offloaded, made.aside, aside);
          if (rows.length > 0) made = await this.made(maker, { type: "leave", rows }, rejects);
        }
        if (rejects.length > 0) await host.reject(file, rejects);
        if (made.file.rows > 0) await rename(out, localPath);
        to = made.end ? positionIn(file + 1, 0) : positionIn(file, made.next.row);
        return { file: made.file, to: new Map([[LANE, to]]) };
      });
      if (result.kind === "conflict") {
        await table.refresh();
        if (positionsOf(table.snapshot, stream).get(LANE) === before.get(LANE)) return true;
        throw new TributaryError("TRB-JOB-ELSEWHERE");
      }
      await this.refined.take(made!, models, trackOf(stream, LANE), before.get(LANE), to);
      const { file: written, bytes, end } = made!;
      host.landed({ file, rows: written.rows, rejects: rejects.length, bytes });
      if (end) return true;
      await host.pace({ rows: written.rows, bytes });
    }
  }

  private async made(maker: SourceProcess, request: NextChunk | LeaveOut, rejects: Reject[]): Promise<Chunk> {
    const chunk = await maker.call(request, (reply) => {
      if (reply.type === "rejects") rejects.push(...reply.rejects);
    });
    return chunk as Chunk;
  }
}

const FIRST = { file: 0, from: START };

/** The reverse of `positionIn`. */
function placeAt(position: string): { readonly file: number; readonly from: Mark } {
  const [file, row] = position.split(".").map(Number) as [number, number];
  return { file, from: { row } };
}
