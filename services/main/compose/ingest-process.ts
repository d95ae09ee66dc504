import { randomBytes } from "node:crypto";
import { readdir, rm, stat } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import type { Logger } from "pino";
import { Registry } from "prom-client";
import type { Config } from "../../base/config.js";
import { checkData } from "../../base/data-format.js";
import { nodeFiles } from "../../base/files.js";
import { layout } from "../../base/paths.js";
import { waitForLock } from "../../base/process-lock.js";
import { JobTracks } from "../../bulk/jobs/job-tracks.js";
import { ALONE, SharedCrew } from "../../ingest/crew.js";
import { type Ingest, openContext, SOLE, startIngest } from "../../ingest/ingest.js";
import { PayloadRounds } from "../../ingest/payload-rounds.js";
import { CONSUMER } from "../../ingest/pipeline.js";
import type { Project } from "../../ingest/project.js";
import { Collector } from "../../offload/collector.js";
import { cachesIn } from "../../storage/object-cache.js";
import type { ObjectStore } from "../../storage/object-store.js";
import type { ChangeStreamReader, StreamBatch } from "../../stream/change-stream.js";
import { serveImports, serveJobs } from "./job-process.js";
import { openStore } from "./lake-store.js";
import { freePlace, lockData, openLog, openTraces, type Place } from "./runtime.js";
import { OpenStreams, streamKind, typesOfDomains } from "./streams.js";

const LOCK_WAIT_MS = 10_000;
const DAY_MS = 24 * 3600 * 1000;

export interface RunningIngest extends Pick<Ingest, "done" | "stop"> {
  readonly metrics: Registry;
}

/**
 * One worker of ingest. On the embedded log there is one at a time, the next waits a little for the last one to end; on
 * a remote stream any number, whether or not they share a disk.
 * Errors: TRB-DATA-VERSION, TRB-STREAM-LOCKED, TRB-CONFIG.
 */
export async function runIngest(config: Config, project: Project): Promise<RunningIngest> {
  const log = openLog(config);
  const place = await placeOf(config);
  const closers: (() => Promise<unknown>)[] = [() => place.lock.release()];
  const close = async () => {
    for (const one of closers.splice(0).reverse())
      await one().catch((error: unknown) => log.warn({ err: error }, "closing failed"));
  };
  try {
    // A server that goes on running may start ingest long after a newer version has taken the folder over.
    await checkData(nodeFiles, config.data);
    await cleanUp(config, place);
    const metrics = new Registry();
    const store = await openStore(config, place.folder, metrics);
    const crew = config.stream.kind === "embedded" ? undefined : await joinCrew(store, place, project, log);
    if (crew !== undefined) closers.push(() => crew.shared.close());
    const traces = await openTraces(config, "tributary-ingest");
    closers.push(() => traces.close());
    const tracks = new JobTracks();
    const context = await openContext({
      config,
      store,
      folder: place.folder,
      ...(crew === undefined ? {} : { worker: crew.name }),
      crew: tracks.sparedBy(crew?.shared ?? ALONE),
      log,
      registry: metrics,
      traces,
      project,
    });
    const ingest = startIngest(context);
    const { done, stop } = ingest;
    const streams = await landStreams(config, project, ingest, metrics, log);
    closers.push(() => streams.close());
    const jobs = serveJobs(context, metrics, tracks, ingest);
    closers.push(() => jobs.close());
    const imports = serveImports(context, metrics, jobs, ingest);
    closers.push(() => imports.close());
    const { keepMs, collectEveryMs } = config.offload;
    const waiting = () => waitingAnywhere(config, project);
    const collector = new Collector({ store, keepMs, waiting });
    const rounds = new PayloadRounds(context, () => collector.run(), collectEveryMs, metrics);
    closers.push(() => rounds.close());
    const stopAll = () => {
      stop();
      void jobs.close();
      void imports.close();
    };
    return { done: done.finally(close), stop: stopAll, metrics };
  } catch (error) {
    await close();
    throw error;
  }
}

/** The first place that is free; the embedded log's one worker waits for the one there is. */
async function placeOf(config: Config): Promise<Place> {
  if (config.stream.kind !== "embedded") return freePlace(config, SOLE);
  return { folder: SOLE, lock: await waitForLock(LOCK_WAIT_MS, () => lockData(config, SOLE)) };
}

/** Of a name that no process had before: one that was frozen may wake up beside its successor. */
async function joinCrew(store: ObjectStore, { folder }: Place, { models }: Project, log: Logger) {
  const host = hostname()
    .replace(/[^\w.-]/g, "_")
    .slice(0, 64);
  const name = `${host}-${folder}-${randomBytes(4).toString("hex")}`;
  const shared = new SharedCrew(store, name, models, log);
  await shared.start();
  return { name, shared };
}

/** Resolves when each stream has taken this worker in, or was found to be down. */
async function landStreams(
  config: Config,
  { registry }: Project,
  ingest: Ingest,
  metrics: Registry,
  log: Logger,
): Promise<OpenStreams<ChangeStreamReader>> {
  const kind = await streamKind(config, metrics);
  const joining: Promise<void>[] = [];
  const streams = new OpenStreams<ChangeStreamReader>(
    kind,
    (name) => kind.reader(name),
    log,
    (reader, name) => {
      joining.push(ingest.land({ reader, name, carries: (entityType) => kind.nameOf(entityType) === name }));
    },
  );
  await streams.want(typesOfDomains(kind, registry.entityTypes(), config.ingest.domains));
  await Promise.race([Promise.all(joining), ingest.done]);
  return streams;
}

/** What waits in the streams of all domains, whichever are landed here. Errors: those of the streams. */
async function* waitingAnywhere(config: Config, { registry }: Project): AsyncGenerator<StreamBatch> {
  const kind = await streamKind(config);
  for (const name of new Set(registry.entityTypes().map((type) => kind.nameOf(type)))) {
    const reader = await kind.reader(name);
    try {
      yield* reader.waiting(CONSUMER);
    } finally {
      await reader.close();
    }
  }
}

/** Removes files of a run that was killed; nobody else stages or spills here while the place is held. */
export async function cleanUp(config: Config, place: Place): Promise<void> {
  const { staging, scratch, cache } = layout(config.data);
  await rm(join(staging, place.folder), { recursive: true, force: true });
  // A scratch disk that is full or gone stops only what has to spill.
  await rm(join(scratch, place.folder), { recursive: true, force: true }).catch(() => undefined);
  // What commands left that were killed; none of them takes a day.
  for (const above of [staging, cachesIn(cache)]) {
    for (const name of await readdir(above).catch(() => [])) {
      const folder = join(above, name);
      const touched = name.startsWith("cli-") ? (await stat(folder)).mtimeMs : Number.POSITIVE_INFINITY;
      if (touched < Date.now() - DAY_MS) await rm(folder, { recursive: true, force: true });
    }
  }
}
