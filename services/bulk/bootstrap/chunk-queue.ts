import { randomUUID } from "node:crypto";
import { rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { TributaryError } from "../../base/errors.js";
import type { SourceProcess } from "../../sources/source-process.js";
import type { Mark } from "../../sources/splitter.js";
import type { BootstrapOrder } from "../chunks/bootstrap-order.js";
import { makeChunk, openFiles } from "../chunks/chunk-calls.js";
import { CHUNK } from "../chunks/chunk-file.js";
import type { ChunkProcesses } from "../chunks/chunk-processes.js";
import type { Chunk, ChunkModel, FileReject, FileToRead } from "../chunks/chunk-protocol.js";
import { keepAside } from "../chunks/payload-keeper.js";
import type { Aside } from "../chunks/payloads-aside.js";
import { lendStretch, type Stretch } from "../chunks/stretches.js";
import { LANE, streamOf } from "../jobs/job-tracks.js";
import type { BootstrapContext } from "./bootstrap.js";

/** A chunk that nobody has committed yet, and where its files lie. */
export interface MadeChunk {
  readonly chunk: Chunk;
  readonly rejects: readonly FileReject[];
  /** Of its raw file; none is there without rows. */
  readonly out: string;
  /** With the paths of what models make of it. */
  readonly models: readonly ChunkModel[];
}

export interface Pacing {
  /** So many chunks wait at most, beside the one that is being made. */
  readonly ahead: number;
  /** Resolves when another one may be made. What it rejects with ends the queue. */
  calm(): Promise<void>;
}

/** What chunks are made of: a stretch, from a place in its first file on. */
export interface StretchFrom {
  readonly stretch: Stretch;
  readonly from: Mark;
}

/** The chunks of one stretch of a source, in its order, made by one of the processes ahead of whoever takes them. */
export class ChunkQueue {
  private readonly made: MadeChunk[] = [];
  private readonly paths = new Set<string>();
  private readonly running: Promise<void>;
  private failure: { readonly error: unknown } | undefined;
  private ended = false;
  private stopped = false;
  private changed: () => void = () => undefined;

  private constructor(
    private readonly context: BootstrapContext,
    private readonly order: BootstrapOrder,
    readonly stretch: Stretch,
    /** In its first file. */
    private readonly from: Mark,
    private readonly models: readonly Omit<ChunkModel, "out" | "tombstones">[],
    private readonly pacing: Pacing,
    processes: ChunkProcesses,
  ) {
    // At once: before the files are there, it has its place among those that wait.
    const claimed = processes.claim();
    claimed.catch(() => undefined);
    this.running = lendStretch(order, stretch, async (files) => {
      const process = await claimed;
      if (await this.run(process, files)) processes.giveBack(process);
    })
      .catch((error: unknown) => {
        this.failure = { error };
      })
      .finally(() => {
        this.ended = true;
        this.changed();
      });
  }

  static start(
    context: BootstrapContext,
    order: BootstrapOrder,
    { stretch, from }: StretchFrom,
    models: readonly Omit<ChunkModel, "out" | "tombstones">[],
    pacing: Pacing,
    processes: ChunkProcesses,
  ): ChunkQueue {
    return new ChunkQueue(context, order, stretch, from, models, pacing, processes);
  }

  /** The next chunk. Errors: those of sources and of what is put aside. */
  async take(): Promise<MadeChunk> {
    for (;;) {
      const next = this.made.shift();
      if (next !== undefined) {
        this.changed();
        return next;
      }
      if (this.failure !== undefined) throw this.failure.error;
      if (this.ended) throw new TributaryError("TRB-SOURCE-READER");
      await this.change();
    }
  }

  /** Removes what was not taken over of its files. Of one that is not through the processes have been ended. */
  async stop(): Promise<void> {
    this.stopped = true;
    this.changed();
    await this.running;
    for (const path of this.paths) await rm(path, { force: true });
  }

  private change(): Promise<void> {
    return new Promise((resolve) => {
      const before = this.changed;
      this.changed = () => {
        before();
        resolve();
      };
    });
  }

  /** A path for a file on its way to a commit; beside what is staged, so that it can be taken over. */
  private path(): string {
    const path = join(this.context.store.staging, `chunk-${randomUUID()}.parquet`);
    this.paths.add(path);
    return path;
  }

  /** Whether all of the files have been made; not when it was stopped. */
  private async run(process: SourceProcess, files: readonly FileToRead[]): Promise<boolean> {
    const { context, order, from } = this;
    const { job, chunk: size = CHUNK } = order;
    const out = this.path();
    const aside = this.path();
    const models = this.models.map((model) => ({ ...model, out: this.path(), tombstones: this.path() }));
    const place = { stream: streamOf(job), partition: LANE };
    await openFiles(process, context, order, { files, from, out, aside, models, ...place });
    const seeTo = (found: Aside) => keepAside(context.decoding.offloaded, found, aside);
    for (let end = false; !end; ) {
      while (this.made.length >= this.pacing.ahead && !this.stopped) await this.change();
      if (!this.stopped) await this.pacing.calm();
      if (this.stopped) return false;
      let rejects: readonly FileReject[] = [];
      const keep = (some: readonly FileReject[]) => {
        rejects = rejects.concat(some);
      };
      const chunk = await makeChunk(process, size, keep, seeTo);
      this.made.push(await this.setAside(chunk, rejects, out, models));
      this.changed();
      ({ end } = chunk);
    }
    return true;
  }

  /** The process writes the next chunk where this one lies. */
  private async setAside(
    chunk: Chunk,
    rejects: readonly FileReject[],
    out: string,
    models: readonly ChunkModel[],
  ): Promise<MadeChunk> {
    const moved = async (path: string, isThere: boolean): Promise<string> => {
      if (!isThere) return path;
      const to = this.path();
      await rename(path, to);
      return to;
    };
    const made: ChunkModel[] = [];
    for (const model of models) {
      const written = chunk.refined?.models.find(({ name }) => name === model.name);
      made.push({
        ...model,
        out: await moved(model.out, written !== undefined),
        tombstones: await moved(model.tombstones, written?.tombstones !== undefined),
      });
    }
    return { chunk, rejects, out: await moved(out, chunk.file.rows > 0), models: made };
  }
}
