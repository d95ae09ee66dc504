import { join } from "node:path";
import type { Logger } from "pino";
import { Counter, Gauge, Histogram, type Registry } from "prom-client";
import type { Config } from "../base/config.js";
import { Duck } from "../base/duckdb.js";
import { type FileOps, nodeFiles } from "../base/files.js";
import { layout } from "../base/paths.js";
import { Permits } from "../base/permits.js";
import type { ObjectStore } from "../storage/object-store.js";
import type { ChangeStreamReader } from "../stream/change-stream.js";
import { CompactionPlanner } from "../table/compaction-plan.js";
import { EntityKeys } from "../table/entity-keys.js";
import { UpsertWriter } from "../table/upsert.js";
import type { IngestContext, IngestMetrics } from "./context.js";
import { DeadLetterBox } from "./dead-letter-box.js";
import { ENTITY_TYPE } from "./event-batch.js";
import { Health } from "./health.js";
import { Pipeline } from "./pipeline.js";
import { loadProject, type Project } from "./project.js";
import { serveRepairs } from "./repair-desk.js";
import { Suspects } from "./suspects.js";

/** The engine holds a slice several times over: as columns, as the model's rows, as the file that is written. */
const SLICES_IN_MEMORY = 32;
const SLICES_AT_ONCE = 2;
/** A compaction's rows are in memory as they are read, sorted, and as the file that is written; others run beside it. */
const COMPACTIONS_IN_MEMORY = 16;
const RANGE_EVENTS = 100_000;

/** Everything ingest needs, opened: descriptors, bound models, tables' engine, dead letters. */
export async function openContext(options: {
  readonly config: Config;
  readonly store: ObjectStore;
  /** For what is parked beside the lake (default: the real ones). */
  readonly files?: FileOps;
  readonly stream: string;
  readonly log: Logger;
  readonly registry: Registry;
  /** Default: what the configured folders hold. */
  readonly project?: Project;
}): Promise<IngestContext> {
  const { config, store, stream, log } = options;
  const duck = await Duck.create({
    memoryBytes: config.ingest.duckdbMemoryBytes,
    tempFolder: join(layout(config.data).scratch, "ingest"),
  });
  const { registry, models } = options.project ?? (await wholeProject(config, duck));
  const tableOptions = { checkpointEvery: config.table.checkpointEvery };
  const planner = new CompactionPlanner(
    config.ingest.duckdbMemoryBytes / COMPACTIONS_IN_MEMORY,
    config.table.compactAfterFiles,
  );
  const deadLetters = new DeadLetterBox(store, duck, tableOptions, planner, log);
  // Only what has a letter to post needs it; that finds out by itself.
  await deadLetters.open().catch((error: unknown) => log.error({ err: error }, "no dead-letter table"));
  const registers = [options.registry];
  const keys = new EntityKeys();
  return {
    stream,
    store,
    files: options.files ?? nodeFiles,
    duck,
    registry,
    models,
    deadLetters,
    health: new Health(store, log, quarantinedGauge(registers), parkedGauge(registers)),
    config,
    tableOptions,
    log,
    metrics: metricsOf(options.registry),
    suspects: Suspects.open(join(layout(config.data).scratch, "suspects")),
    decoding: {
      sliceBytes: Math.max(1, Math.floor(config.ingest.duckdbMemoryBytes / SLICES_IN_MEMORY)),
      rangeEvents: RANGE_EVENTS,
      permits: new Permits(SLICES_AT_ONCE),
    },
    planner,
    // The budget is for the process; every table may have its share.
    writerFor: (table) =>
      UpsertWriter.for(table, config.ingest.keyIndexBytes / Math.max(models.length, 1), keys),
  };
}

/** Errors: TRB-CONFIG; TRB-MODEL-INVALID for the first model that does not fit. */
async function wholeProject(config: Config, duck: Duck): Promise<Project> {
  const project = await loadProject(config, duck);
  if (project.broken[0] !== undefined) throw project.broken[0].error;
  return project;
}

/** Entity types that have a raw table. */
export async function rawTables(store: ObjectStore): Promise<string[]> {
  const types = new Set<string>();
  for await (const { key } of store.list("raw/")) types.add(key.split("/")[1]!);
  return [...types];
}

/** Entity types that have parked events. */
async function parkedTypes(config: Config): Promise<string[]> {
  const { parked } = layout(config.data);
  if ((await nodeFiles.stat(parked)) === undefined) return [];
  const names = (await nodeFiles.list(parked)).map(({ name }) => name);
  return names.filter((name) => ENTITY_TYPE.test(name));
}

export interface Ingest {
  readonly pipeline: Pipeline;
  /** Resolves after `stop`; rejects when ingest cannot go on. */
  readonly done: Promise<void>;
  /** Lands what was read, then ends. */
  stop(): void;
}

/** Starts landing the stream; lanes open beside each other and beside reading. */
export async function startIngest(context: IngestContext, reader: ChangeStreamReader): Promise<Ingest> {
  const { health, duck, store } = context;
  const pipeline = new Pipeline(context, reader);
  pipeline.openLanes([...new Set([...(await rawTables(store)), ...(await parkedTypes(context.config))])]);
  health.start();
  const repairing = new AbortController();
  const desk = serveRepairs(context, reader, pipeline, repairing.signal);
  const done = pipeline.run().finally(async () => {
    repairing.abort();
    await desk;
    await health.close();
    await context.deadLetters.close();
    duck.close();
  });
  return { pipeline, done, stop: () => pipeline.stop() };
}

const quarantinedGauge = (registers: Registry[]) =>
  new Gauge({
    name: "tributary_ingest_table_quarantined",
    help: "1 while a table cannot go on and is tried again with growing pauses.",
    labelNames: ["kind", "table"],
    registers,
  });

const parkedGauge = (registers: Registry[]) =>
  new Gauge({
    name: "tributary_ingest_parked_bytes",
    help: "Bytes of accepted events kept aside until their raw table lands again.",
    labelNames: ["entity_type"],
    registers,
  });

function metricsOf(registry: Registry): IngestMetrics {
  const registers = [registry];
  return {
    events: new Counter({ name: "tributary_ingest_events_total", help: "Events landed in raw.", registers }),
    deadLetters: new Counter({
      name: "tributary_ingest_dead_letters_total",
      help: "Events set aside, by model.",
      labelNames: ["model"],
      registers,
    }),
    commits: new Counter({
      name: "tributary_ingest_commits_total",
      help: "Table commits.",
      labelNames: ["layer"],
      registers,
    }),
    landSeconds: new Histogram({
      name: "tributary_ingest_land_seconds",
      help: "Time to land one batch in raw and refined.",
      buckets: [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
      registers,
    }),
    freshnessSeconds: new Gauge({
      name: "tributary_ingest_freshness_seconds",
      help: "Age of the newest event when its batch had landed.",
      registers,
    }),
    behind: new Gauge({
      name: "tributary_ingest_model_behind",
      help: "1 while a model catches up from raw.",
      labelNames: ["model"],
      registers,
    }),
  };
}
