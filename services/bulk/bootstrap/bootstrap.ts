import { rename } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { TributaryError } from "../../base/errors.js";
import type { IngestContext } from "../../ingest/context.js";
import { rawRoot, rawSpec } from "../../ingest/raw-table.js";
import type { Reject } from "../../sources/formats.js";
import { START } from "../../sources/reader.js";
import { append } from "../../table/append.js";
import { DeltaTable } from "../../table/delta-table.js";
import { positionsOf, trackOf } from "../../table/progress.js";
import type { BootstrapOrder } from "../chunks/bootstrap-order.js";
import { CHUNK } from "../chunks/chunk-file.js";
import { ChunkProcesses } from "../chunks/chunk-processes.js";
import type { FileReject } from "../chunks/chunk-protocol.js";
import { placeAt, positionIn, type SourcePlace } from "../chunks/row-events.js";
import { stretchesOf } from "../chunks/stretches.js";
import { ImportProducer } from "../imports/import-producer.js";
import { type Backlog, PORTION } from "../imports/import-queue.js";
import { LANE, streamOf } from "../jobs/job-tracks.js";
import { ChunkQueue, type MadeChunk, type StretchFrom } from "./chunk-queue.js";
import { RefinedSide } from "./refined-side.js";

/** Stretches of files that are read side by side, each by a process of its own. */
const MAKERS = Math.min(2, availableParallelism());
/** So many more are fetched meanwhile, where they lie elsewhere. */
const FETCHED = 1;
/**
 * Chunks of a stretch that are made before those of the stretches above have landed; a kill costs these. With fewer a
 * process would wait for the other one wherever files hold some more.
 */
const AHEAD = 8;

export interface BootstrapProgress {
  /** Where the next one begins. */
  readonly next: SourcePlace;
  readonly rows: number;
  readonly rejects: number;
  /** Of the source, unpacked. */
  readonly bytes: number;
  /** Of the models' tables that have taken it in with raw, from 0 to 1. */
  readonly refined: number;
}

/** What of ingest's a job works with. */
export type BootstrapContext = Pick<
  IngestContext,
  "store" | "duck" | "tableOptions" | "registry" | "models" | "config" | "decoding" | "offerRun"
>;

/** Told of what becomes of a job while it runs. */
export interface BootstrapHost {
  /** A chunk has landed, or is queued. */
  landed(chunk: BootstrapProgress): void;
  /** What of it is queued and has not landed. */
  waiting?(backlog: Backlog): void;
  /** Resolves once they are kept: before the chunk lands that they come of. What it rejects with ends the job's run. */
  reject(file: number, rejects: readonly Reject[]): Promise<void>;
  /** Resolves once the models' tables have taken in from raw what has landed: one of them lacks a chunk. */
  behind(): Promise<void>;
  /** Resolves when the next chunk may be landed, after one of so much. */
  pace(work: { readonly rows: number; readonly bytes: number }): Promise<void>;
  /** Resolves when another chunk may be made, ahead of those that land. */
  calm(): Promise<void>;
  /** Ends it after the chunk that runs. */
  readonly signal: AbortSignal;
}

/** Where chunks go: to raw and the models' tables beside it, or into the import queue. */
type Destination =
  | { readonly table: DeltaTable; readonly stream: string; readonly refined: RefinedSide }
  | ImportProducer;

/**
 * Lands a source in raw, chunk by chunk, beside live traffic and one after the other. How far it is stands in raw's own
 * positions, in the commits of the rows: a run that is killed at any instant is gone on with by the next one, and a
 * second one beside it does nothing twice.
 */
export class Bootstrap {
  /** Files up to this one are read each by itself. */
  private apart = -1;

  private constructor(
    private readonly destination: Destination,
    private readonly order: BootstrapOrder,
    private readonly context: BootstrapContext,
    private readonly host: BootstrapHost,
  ) {}

  /**
   * Resolves to whether all of the source has landed; false when it was told to stop. Errors: TRB-BULK-MAPPING,
   * TRB-JOB-ELSEWHERE, those of sources and of commits. What has landed stays, and the next run goes on behind it.
   */
  static async run(context: BootstrapContext, order: BootstrapOrder, host: BootstrapHost): Promise<boolean> {
    const { entityType, job, through } = order;
    const { store, duck, tableOptions } = context;
    const stream = streamOf(job);
    if (through === "queue") {
      const producer = await ImportProducer.open(context, { stream, partition: LANE, entityType });
      try {
        return await new Bootstrap(producer, { chunk: PORTION, ...order }, context, host).all();
      } finally {
        await producer.table.settled();
      }
    }
    const root = rawRoot(entityType);
    const table = await DeltaTable.openOrCreate(store, root, duck, tableOptions, rawSpec(entityType));
    const refined = await RefinedSide.open(context, entityType);
    try {
      return await new Bootstrap({ table, stream, refined }, order, context, host).all();
    } finally {
      await Promise.all([table.settled(), refined.settled()]);
    }
  }

  private async all(): Promise<boolean> {
    const { share, manifest } = this.order;
    const { destination, host, context } = this;
    const wanted = share?.files ?? [...manifest.files.keys()];
    const { chunk = CHUNK } = this.order;
    const { scratchBytes } = context.config.bulk;
    for (;;) {
      const reached =
        destination instanceof ImportProducer
          ? await destination.reached()
          : positionsOf(destination.table.snapshot, destination.stream).get(LANE);
      const start = reached === undefined ? FIRST : placeAt(reached);
      const left = wanted.filter((file) => file >= start.file);
      const { apart } = this;
      const done = await this.stretches(
        stretchesOf(manifest, left, { chunk, scratchBytes, apart }).map((stretch) => ({
          stretch,
          from: stretch[0] === start.file ? { row: start.row } : START,
        })),
      );
      if (done === true && destination instanceof ImportProducer) {
        const landed = await destination.landed((backlog) => host.waiting?.(backlog), host.signal);
        if (landed !== "again") return landed;
      } else if (done !== "again") return done;
    }
  }

  /** Whether all have landed; not when it was told to stop, nor when chunks have to be made again. */
  private async stretches(left: StretchFrom[]): Promise<boolean | "again"> {
    const processes = new ChunkProcesses(this.order.limits, MAKERS);
    const pacing = { ahead: AHEAD, calm: () => this.host.calm() };
    const models = this.refined?.models ?? [];
    const makers: ChunkQueue[] = [];
    const begin = () => {
      for (const place of left.splice(0, MAKERS + FETCHED - makers.length))
        makers.push(ChunkQueue.start(this.context, this.order, place, models, pacing, processes));
    };
    try {
      for (begin(); makers.length > 0; begin()) {
        const ended = await this.chunks(makers[0]!);
        if (ended !== true) return ended;
        await makers.shift()!.stop();
      }
      return true;
    } finally {
      await processes.end();
      await Promise.all(makers.map((maker) => maker.stop()));
    }
  }

  private get refined(): RefinedSide | undefined {
    return this.destination instanceof ImportProducer ? undefined : this.destination.refined;
  }

  /** Its next chunk. Undefined where that is to be made again, as what precedes a file that fails has to land first. */
  private async madeBy(maker: ChunkQueue): Promise<MadeChunk | undefined> {
    try {
      return await maker.take();
    } catch (error) {
      const { stretch } = maker;
      if (stretch.length === 1) throw error;
      this.apart = stretch.at(-1)!;
      return undefined;
    }
  }

  private async chunks(maker: ChunkQueue): Promise<boolean | "again"> {
    const { host, refined, destination } = this;
    const { table, stream } = destination;
    for (;;) {
      if (host.signal.aborted) return false;
      const made = await this.madeBy(maker);
      if (made === undefined) return "again";
      const { chunk, rejects, out, models } = made;
      for (const [file, own] of byFile(rejects)) await host.reject(file, own);
      const { file: written, next, bytes, end } = chunk;
      const from = positionsOf(table.snapshot, stream);
      const to = positionIn(next.file, next.row);
      if (to === from.get(LANE)) {
        // Amid a record that is too long, say: there is nothing to commit.
        host.landed({ next, rows: 0, rejects: rejects.length, bytes, refined: 0 });
        await host.pace({ rows: 0, bytes });
        continue;
      }
      const result = await append(table, stream, from, async (localPath) => {
        if (written.rows > 0) await rename(out, localPath);
        return { file: written, to: new Map([[LANE, to]]) };
      });
      if (result.kind === "conflict") {
        await table.refresh();
        if (positionsOf(table.snapshot, stream).get(LANE) === from.get(LANE)) return "again";
        throw new TributaryError("TRB-JOB-ELSEWHERE");
      }
      const taken = await refined?.take(chunk, models, trackOf(stream, LANE), from.get(LANE), to);
      host.landed({
        next,
        rows: written.rows,
        rejects: rejects.length,
        bytes,
        refined: taken?.share ?? 0,
      });
      if (refined !== undefined && taken !== undefined && taken.left > 0) {
        // Else none of the chunks to come could be put in beside raw either.
        await host.behind();
        await refined.refresh();
      }
      if (destination instanceof ImportProducer) {
        const room = await destination.room((backlog) => host.waiting?.(backlog), host.signal);
        if (room !== true) return room;
      }
      // Also behind the last one of a stretch: there may be many.
      await host.pace({ rows: written.rows, bytes });
      if (end) return true;
    }
  }
}

const FIRST: SourcePlace = { file: 0, row: 0 };

/** In the order of files. */
function byFile(rejects: readonly FileReject[]): [number, readonly Reject[]][] {
  const files = new Map<number, Reject[]>();
  for (const { file, ...reject } of rejects) {
    const own = files.get(file);
    if (own === undefined) files.set(file, [reject]);
    else own.push(reject);
  }
  return [...files].sort(([a], [b]) => a - b);
}
