import type { IngestContext } from "../../ingest/context.js";
import { rawRoot } from "../../ingest/raw-table.js";
import type { Manifest } from "../../sources/manifest.js";
import { DeltaTable } from "../../table/delta-table.js";
import { positionsOf, trackOf } from "../../table/progress.js";
import { unpacking } from "../chunks/stretches.js";
import type { JobState } from "../jobs/job.js";
import { rowsOfTrack } from "../jobs/job-rows.js";
import { LANE, streamOf } from "../jobs/job-tracks.js";
import type { BootstrapProgress } from "./bootstrap.js";

/** A file is not done with before its end, whatever was taken for its size. */
const MOST = 0.99;

type Counts = Pick<JobState, "rowsLanded" | "rowsRefined" | "bytesDone">;

/** How far a job is, as its state tells it. Rows are those that stand in raw; of bytes of packed files it is an estimate. */
export class JobCounts {
  private file = 0;
  /** Of the file, unpacked. */
  private read = 0;
  /** How many times their size files were that have been read to their end. */
  private unpacked: number | undefined;
  /** Of the rows, by the share of the models' tables. */
  private refined = 0;

  private constructor(
    private readonly manifest: Manifest,
    private rows: number,
    /** Of the files before. */
    private before: number,
  ) {}

  /** Of what runs before this one have landed. Errors: those of opening raw and reading it. */
  static async open(
    { store, duck, tableOptions }: Pick<IngestContext, "store" | "duck" | "tableOptions">,
    job: string,
    entityType: string,
    manifest: Manifest,
    /** What is queued, and up to where: as good as landed. */
    queued: { readonly rows: number; readonly reached: string | undefined } = { rows: 0, reached: undefined },
  ): Promise<JobCounts> {
    const stream = streamOf(job);
    const raw = await DeltaTable.open(store, rawRoot(entityType), duck, tableOptions);
    const landed = raw === undefined ? undefined : positionsOf(raw.snapshot, stream).get(LANE);
    const reached = queued.reached ?? landed;
    if (reached === undefined) return new JobCounts(manifest, 0, 0);
    const rows = raw === undefined ? 0 : await rowsOfTrack({ duck }, raw, trackOf(stream, LANE));
    const counts = new JobCounts(manifest, rows + queued.rows, 0);
    counts.reach(Number(reached.split(".")[0]));
    return counts;
  }

  private reach(file: number): void {
    const { files } = this.manifest;
    for (; this.file < file; this.file++) this.before += files[this.file]?.bytes ?? 0;
  }

  get told(): Counts {
    const size = this.manifest.files[this.file]?.bytes ?? 0;
    const read = this.read / this.times;
    return {
      rowsLanded: this.rows,
      rowsRefined: Math.floor(this.refined),
      bytesDone: Math.floor(this.before + Math.min(size * MOST, read)),
    };
  }

  private get times(): number {
    return this.unpacked ?? unpacking(this.manifest, this.file);
  }

  landed({ next, rows, bytes, refined }: BootstrapProgress): void {
    this.read += bytes;
    if (next.file !== this.file) {
      const passed = this.manifest.files
        .slice(this.file, next.file)
        .reduce((sum, file) => sum + file.bytes, 0);
      // Amid a file it is not known what of all that was read is of this one.
      if (next.row === 0 && passed > 0 && this.read > 0) this.unpacked = this.read / passed;
      this.read = next.row === 0 ? 0 : Math.max(0, this.read - passed * this.times);
      this.reach(next.file);
    }
    this.rows += rows;
    this.refined += rows * refined;
  }

  /** Every model has taken in what has landed. */
  caughtUp(): void {
    this.refined = this.rows;
  }

  /** Nothing is left of the source. */
  ended(): void {
    this.reach(this.manifest.files.length);
    this.read = 0;
  }
}
