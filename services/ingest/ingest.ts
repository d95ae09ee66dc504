import { join } from "node:path";
import type { Logger } from "pino";
import { Counter, Gauge, Histogram, type Registry } from "prom-client";
import type { Config } from "../base/config.js";
import { Duck } from "../base/duckdb.js";
import { hasCode } from "../base/errors.js";
import { layout } from "../base/paths.js";
import { Permits } from "../base/permits.js";
import { Retry } from "../base/retry.js";
import { NO_TRACES, type Traces } from "../base/traces.js";
import { Offloaded } from "../offload/offloaded.js";
import type { ObjectStore } from "../storage/object-store.js";
import type { ChangeStreamReader } from "../stream/change-stream.js";
import { CompactionPlanner } from "../table/compaction-plan.js";
import { TenantOrdinals } from "../table/entity-hash.js";
import { EntityKeys } from "../table/entity-keys.js";
import { type FileRun, MadeRuns } from "../table/made-runs.js";
import { UpsertWriter } from "../table/upsert.js";
import type { IngestContext, IngestMetrics } from "./context.js";
import { ALONE, type Crew } from "./crew.js";
import { DeadLetterBox } from "./dead-letter-box.js";
import { NO_MODEL } from "./dead-letters.js";
import type { EventBatch } from "./event-batch.js";
import { Health } from "./health.js";
import { EVERYTHING } from "./holdings.js";
import type { Beside } from "./lane-keeper.js";
import { Pipeline } from "./pipeline.js";
import { loadProject, type Project } from "./project.js";
import { serveRepairs } from "./repair-desk.js";
import { Suspects } from "./suspects.js";

/** Of the one worker, or the first one on its disk. */
export const SOLE = "ingest";

/** The engine holds a slice several times over: as columns, as the model's rows, as the file that is written. */
const SLICES_IN_MEMORY = 32;
const SLICES_AT_ONCE = 2;
/** A compaction's rows are in memory as they are read, sorted, and as the file that is written; others run beside it. */
const COMPACTIONS_IN_MEMORY = 16;
const RANGE_EVENTS = 100_000;
const REFINED = { layer: "refined" } as const;

/** Everything ingest needs, opened: descriptors, bound models, tables' engine, dead letters. */
export async function openContext(options: {
  readonly config: Config;
  readonly store: ObjectStore;
  /** Name of the stream whose events are landed without a pipeline; a pipeline knows its own. */
  readonly stream?: string;
  readonly log: Logger;
  readonly registry: Registry;
  /** Default: nobody listens. */
  readonly traces?: Traces;
  /** Default: what the configured folders hold. */
  readonly project?: Project;
  /** Names this worker's part of the scratch folder. */
  readonly folder?: string;
  /** What its status goes by; alone it needs no name. */
  readonly worker?: string;
  /** Default: there is nobody else. */
  readonly crew?: Crew;
  /** Default: this is no job's process. */
  readonly offerRun?: (run: FileRun) => Promise<void>;
}): Promise<IngestContext> {
  const { config, store, stream = "", log, crew = ALONE, worker = SOLE, folder = SOLE } = options;
  const duck = await Duck.create({
    memoryBytes: config.ingest.duckdbMemoryBytes,
    tempFolder: join(layout(config.data).scratch, folder),
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
  const fingerprints = models.map(({ fingerprint }) => fingerprint);
  const tenants = new TenantOrdinals();
  const madeRuns = new MadeRuns();
  const metrics = metricsOf(options.registry);
  // A counter that comes into being with its first letters has not grown, as Prometheus sees it.
  for (const name of [NO_MODEL, ...models.map((model) => model.name)])
    metrics.deadLetters.inc({ model: name }, 0);
  return {
    stream,
    store,
    duck,
    registry,
    models,
    deadLetters,
    health: new Health(
      store,
      { name: worker, fingerprints },
      log,
      quarantinedGauge(registers),
      parkedGauge(registers),
    ),
    config,
    tableOptions,
    log,
    metrics,
    suspects: Suspects.open(
      join(layout(config.data).scratch, folder === SOLE ? "suspects" : `suspects-${folder}`),
    ),
    traces: options.traces ?? NO_TRACES,
    decoding: {
      sliceBytes: Math.max(1, Math.floor(config.ingest.duckdbMemoryBytes / SLICES_IN_MEMORY)),
      rangeEvents: RANGE_EVENTS,
      permits: new Permits(SLICES_AT_ONCE),
      offloaded: new Offloaded(store, config.offload.keepMs),
    },
    planner,
    crew,
    ours: EVERYTHING,
    madeRuns,
    offerRun: options.offerRun,
    // The budget is for the process; every table may have its share.
    writerFor: (table, entityType) =>
      UpsertWriter.for(
        table,
        config.ingest.keyIndexBytes / Math.max(models.length, 1),
        new EntityKeys(entityType, tenants),
        (result) => {
          if (result.kind === "conflict") metrics.conflicts.inc(REFINED);
          if (result.kind !== "committed") return;
          metrics.commits.inc(REFINED);
          metrics.overtaken.inc(result.overtaken);
        },
        madeRuns,
      ),
  };
}

/** Errors: TRB-CONFIG; TRB-MODEL-INVALID for the first model that does not fit. */
async function wholeProject(config: Config, duck: Duck): Promise<Project> {
  const project = await loadProject(config, duck);
  if (project.broken[0] !== undefined) throw project.broken[0].error;
  return project;
}

/** A stream to be landed, and which entity types' events come by it. */
export interface Source {
  readonly reader: ChangeStreamReader;
  /** As the configuration calls it. */
  readonly name: string;
  carries(entityType: string): boolean;
}

export interface Ingest {
  /** Lands another stream, from now on until `stop`. Resolves when the stream has taken this worker in. */
  land(source: Source): Promise<void>;
  /** For how long the event has waited that was read and has waited the longest to land, in ms; 0 when none does. */
  lagMs(): number;
  /**
   * Lands events that wait elsewhere in the lake and have come along a track that nobody here reads. Live ones of their
   * type go first, until these have waited for so long (ms) that they take their turn. Undefined where no stream that is
   * landed here carries the type. Unless it resolves to "landed" they are to come again. Errors: TRB-STREAM-CORRUPT, where
   * raw has another event in the place of one of them.
   */
  landBeside(events: EventBatch, waitedMs: number): Promise<Beside> | undefined;
  /** Looks at what others have done to the tables: a job is over, say, and left something to be taken in. */
  look(): void;
  /** Resolves after `stop`; rejects when ingest cannot go on. */
  readonly done: Promise<void>;
  /** Lands what was read, then ends. */
  stop(): void;
}

/**
 * Starts to land streams, each by itself: one that is down is tried again and holds up no other. Lanes open beside each
 * other and beside reading.
 */
export function startIngest(context: IngestContext): Ingest {
  const { health, duck, log } = context;
  const stopping = new AbortController();
  const pipelines = new Map<string, Pipeline>();
  const running = new Set<Promise<void>>();
  let fail: (error: unknown) => void = () => undefined;
  const failed = new Promise<never>((_, reject) => {
    fail = reject;
  });
  health.start();
  const desk = serveRepairs(context, pipelines, stopping.signal);
  const land = async ({ reader, name, carries }: Source): Promise<void> => {
    let joined: () => void = () => undefined;
    const first = new Promise<void>((resolve) => {
      joined = resolve;
    });
    const run = new Retry(stopping.signal)
      .run(
        async () => {
          const pipeline = new Pipeline(context, reader, carries, name);
          pipelines.set(reader.name, pipeline);
          void pipeline.joined.then(joined);
          await pipeline.run();
        },
        ({ error, pauseMs }) => {
          if (!isOfStreamAlone(error, running.size)) throw error;
          context.metrics.streamFailures.inc({ stream: name });
          log.error({ err: error, stream: reader.name, pauseMs }, "a stream cannot be read; trying again");
          joined();
        },
      )
      .catch((error: unknown) => {
        if (!stopping.signal.aborted || !isOfStreamAlone(error, running.size)) fail(error);
      })
      .finally(() => {
        joined();
        running.delete(run);
      });
    running.add(run);
    await first;
  };
  const stop = () => {
    stopping.abort();
    for (const pipeline of pipelines.values()) pipeline.stop();
  };
  const stopped = new Promise<void>((resolve) => stopping.signal.addEventListener("abort", () => resolve()));
  const done = Promise.race([failed, stopped.then(() => Promise.all(running)).then(() => undefined)]).finally(
    async () => {
      stop();
      await Promise.all(running);
      await desk;
      await health.close();
      await context.deadLetters.close();
      context.madeRuns.clear();
      duck.close();
    },
  );
  const look = () => {
    if (stopping.signal.aborted) return;
    for (const pipeline of pipelines.values()) {
      pipeline.openKnown();
      void pipeline.look();
    }
  };
  const lagMs = () => {
    const oldest = [...pipelines.values()].map(({ progress }) => progress.oldest ?? Number.POSITIVE_INFINITY);
    return Math.max(0, Date.now() - Math.min(...oldest));
  };
  const landBeside = (events: EventBatch, waitedMs: number) =>
    [...pipelines.values()]
      .find((pipeline) => pipeline.moves(`raw/${events.entityType}`))
      ?.landBeside(events, waitedMs);
  return { land, lagMs, landBeside, look, done, stop };
}

/**
 * What holds up one of so many streams and is no reason to leave the others alone. What a stream has forgotten, or holds
 * that nobody can read, ends an ingest that has nothing else to do: whoever started it has to see that.
 */
const isOfStreamAlone = (error: unknown, streams: number): boolean =>
  hasCode(error, "TRB-BUS-STREAM-DOWN") ||
  (streams > 1 && (hasCode(error, "TRB-STREAM-FORGOTTEN") || hasCode(error, "TRB-STREAM-CORRUPT")));

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
    conflicts: new Counter({
      name: "tributary_ingest_conflicts_total",
      help: "Batches that another worker's commit has overtaken, and that were redone.",
      labelNames: ["layer"],
      registers,
    }),
    overtaken: new Counter({
      name: "tributary_ingest_overtaken_total",
      help: "Commits of other workers that came before one of ours, which was settled key by key and stands.",
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
    streamFailures: new Counter({
      name: "tributary_ingest_stream_failures_total",
      help: "Times that a stream could not be read, or had forgotten what had not landed; it is tried again.",
      labelNames: ["stream"],
      registers,
    }),
    retention: new Gauge({
      name: "tributary_ingest_stream_retention_seconds",
      help: "For how long the stream keeps events, whether or not they were read.",
      labelNames: ["stream"],
      registers,
    }),
    retentionLeft: new Gauge({
      name: "tributary_ingest_stream_retention_left_seconds",
      help: "Until the stream forgets the oldest event that was read and is neither in raw nor parked.",
      labelNames: ["stream"],
      registers,
    }),
  };
}
