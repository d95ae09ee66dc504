import { availableParallelism } from "node:os";
import { Registry } from "prom-client";
import type { Config } from "../../base/config.js";
import { cpuTimeMs } from "../../base/cpu-time.js";
import { TributaryError } from "../../base/errors.js";
import { beKillable } from "../../base/killable.js";
import { tellParent } from "../../base/tell-parent.js";
import { runHere } from "../../bulk/job-here.js";
import type { Job } from "../../bulk/jobs/job.js";
import type { Told } from "../../bulk/jobs/job-report.js";
import type { Outcome } from "../../bulk/jobs/job-runner.js";
import { type Beside, Pace } from "../../bulk/jobs/pace.js";
import { ProtoRegistry } from "../../contracts/registry.js";
import { openContext } from "../../ingest/ingest.js";
import type { BoundModel } from "../../models/bind.js";
import { type HashSeed, useHashSeed } from "../../table/entity-hash.js";
import type { FileRun } from "../../table/made-runs.js";
import { cleanUp } from "./ingest-process.js";
import { openStore } from "./lake-store.js";
import { paceClock } from "./pace-clock.js";
import { freePlace, openLog } from "./runtime.js";

/** The process of one bulk job. It lives as long as its parent; what it has not committed is done again by the next one. */
export type ToJob = Start | { readonly stop: true } | { readonly beside: Beside };
interface Start {
  readonly config: Config;
  /** A FileDescriptorSet, and the models bound against it. */
  readonly descriptors: Uint8Array;
  readonly models: readonly BoundModel[];
  readonly job: Job;
  /** By which runs of keys are made: its parent's. */
  readonly hashSeed: HashSeed;
}
export type FromJob = { readonly told: Told } | { readonly run: FileRun } | { readonly ended: Outcome };

/** Part of the names of its folders. */
const NAME = "bulk";

const stopping = new AbortController();
let pace: Pace | undefined;
const tell = (message: FromJob) => tellParent(message);

beKillable();
// A service manager tells every process of the group: it stops as it does when its parent says so.
process.on("SIGTERM", () => stopping.abort());
process.on("message", (message: ToJob) => {
  if ("stop" in message) stopping.abort();
  else if ("beside" in message) pace?.tell(message.beside);
  else void start(message);
});

async function start(message: Start): Promise<void> {
  const log = openLog(message.config);
  const ended = await run(message, (error) =>
    log.error({ err: error, job: message.job.order.id }, "a job has failed"),
  );
  await tell({ ended });
  // process.exit() waits for the engine's threads, which may wait for this very thread.
  process.kill(process.pid, "SIGKILL");
}

async function run(
  { config, descriptors, models, job, hashSeed }: Start,
  failed: (error: unknown) => void,
): Promise<Outcome> {
  try {
    useHashSeed(hashSeed);
    const place = await freePlace(config, NAME);
    await cleanUp(config, place);
    const context = await openContext({
      config,
      store: await openStore(config, place.folder),
      folder: place.folder,
      worker: place.folder,
      log: openLog(config),
      registry: new Registry(),
      project: { registry: ProtoRegistry.of(descriptors), models },
      offerRun: (run) => tell({ run }),
    });
    const { windows, yieldAtMs, limits: total } = config.bulk;
    const own = job.order.limits ?? {};
    pace = new Pace({ own, total, windows, yieldAtMs, cores: availableParallelism() }, paceClock(cpuTimeMs));
    const outcome = await runHere(context, job, {
      pace,
      signal: stopping.signal,
      tell: (told) => void tell({ told }),
      log: failed,
    });
    await context.deadLetters.close();
    return outcome;
  } catch (error) {
    failed(error);
    const known = error instanceof TributaryError ? error : new TributaryError("TRB-INTERNAL");
    // What the process needs of its machine or its store may come back.
    return { kind: "failed", code: known.code, reason: known.message, retryable: true };
  }
}
