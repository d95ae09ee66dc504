import type { Logger } from "pino";
import type { Counter, Gauge, Histogram } from "prom-client";
import type { Config } from "../base/config.js";
import type { Duck } from "../base/duckdb.js";
import type { Traces } from "../base/traces.js";
import type { ProtoRegistry } from "../contracts/registry.js";
import type { BoundModel } from "../models/bind.js";
import type { ObjectStore } from "../storage/object-store.js";
import type { CompactionPlanner } from "../table/compaction-plan.js";
import type { DeltaTable, TableOptions } from "../table/delta-table.js";
import type { FileRun, MadeRuns } from "../table/made-runs.js";
import type { UpsertWriter } from "../table/upsert.js";
import type { Crew } from "./crew.js";
import type { DeadLetterBox } from "./dead-letter-box.js";
import type { Health } from "./health.js";
import type { Ours } from "./holdings.js";
import type { Slicing } from "./payloads.js";
import type { Suspects } from "./suspects.js";

/** What every part of ingest works with. */
export interface IngestContext {
  /** Name of the stream, part of every position's key. */
  readonly stream: string;
  readonly store: ObjectStore;
  readonly duck: Duck;
  readonly registry: ProtoRegistry;
  readonly models: readonly BoundModel[];
  readonly deadLetters: DeadLetterBox;
  readonly health: Health;
  readonly config: Config;
  readonly tableOptions: TableOptions;
  readonly log: Pick<Logger, "info" | "warn" | "error">;
  readonly metrics: IngestMetrics;
  readonly decoding: Decoding;
  readonly traces: Traces;
  readonly planner: CompactionPlanner;
  readonly suspects: Suspects;
  readonly crew: Crew;
  /** Along which tracks tables are moved here, and not by another worker. */
  readonly ours: Ours;
  /** Where writers here find what jobs have made of the keys of their files. */
  readonly madeRuns: MadeRuns;
  /** In a job's process: offers its parent such a run. Resolves once it is told. */
  readonly offerRun?: ((run: FileRun) => Promise<void>) | undefined;
  /** The writer of a table of a model; the model's entities are of one type. */
  writerFor(table: DeltaTable, entityType: string): UpsertWriter;
}

/** How much may be decoded at once: a slice is what one upsert decodes. */
export interface Decoding extends Slicing {
  /** Events after which a replay moves positions; a crash repeats so many at most. */
  readonly rangeEvents: number;
}

export interface IngestMetrics {
  readonly events: Counter;
  readonly deadLetters: Counter<"model">;
  readonly commits: Counter<"layer">;
  /** Batches that another worker's commit has overtaken, and that are redone. */
  readonly conflicts: Counter<"layer">;
  /** Commits of other workers that an upsert has taken in its stride. */
  readonly overtaken: Counter;
  readonly landSeconds: Histogram;
  readonly freshnessSeconds: Gauge;
  readonly behind: Gauge<"model">;
  readonly streamFailures: Counter<"stream">;
  readonly retention: Gauge<"stream">;
  readonly retentionLeft: Gauge<"stream">;
}
