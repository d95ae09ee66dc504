import { TributaryError } from "../../base/errors.js";
import type { IngestContext } from "../../ingest/context.js";
import type { BootstrapOrder } from "../chunks/bootstrap-order.js";
import type { BootstrapJob } from "../jobs/job.js";
import type { JobHost } from "../jobs/job-run.js";
import { folderOf } from "../verify/key-buckets.js";
import { MadeFiles } from "../verify/made-files.js";
import { reconcile } from "../verify/reconcile.js";
import { type SourceFacts, sourceFacts } from "../verify/source-facts.js";
import { hasLanded, keepVerification, type Verification, verify } from "../verify/verification.js";
import { refineJob } from "./refine-job.js";
import { VerifyProgress } from "./verify-progress.js";

type Host = Pick<JobHost, "signal" | "pace" | "tell">;

/**
 * What a job does once all of a source stands in raw and in the models: reads the source again, deletes what the export
 * lacks, where that was ordered, and compares source and lake. Goes on wherever it stopped. Resolves to whether it is
 * done, false when the signal stopped it. Errors: those of `reconcile`, `sourceFacts`, `verify` and `refineJob`;
 * TRB-VERIFY-DIFFERS.
 */
export async function endJob(
  context: IngestContext,
  { reconcile: ordered }: Pick<BootstrapJob, "reconcile">,
  landed: BootstrapOrder,
  host: Host,
  /** That have landed. */
  rows: number,
): Promise<boolean> {
  const { job, entityType, tenant } = landed;
  const found = await verifyJob(context, landed, host, rows, async (facts) => {
    if (ordered === undefined) return true;
    // What did not land of an export would be taken for what it lacks.
    if (!(await hasLanded(context, landed, facts))) throw incomplete();
    const order = { job, entityType, tenant, watermark: ordered.watermark };
    if (!(await reconcile(context, order, host, facts))) return false;
    return refineJob(context, job, entityType, host, rows);
  });
  if (found === undefined) return false;
  requireEqual(context, [landed], [found]);
  return true;
}

const progressOf = (
  { models }: Pick<IngestContext, "models">,
  entityType: string,
  host: Host,
  rows: number,
): VerifyProgress =>
  new VerifyProgress(host, rows, models.filter((model) => model.entityType === entityType).length);

/** Errors: TRB-VERIFY-DIFFERS, also telling whose descriptors have changed since the job began. */
export function requireEqual(
  { registry }: Pick<IngestContext, "registry">,
  landed: readonly BootstrapOrder[],
  found: readonly Verification[],
): void {
  const unequal = found.filter((one) => !one.equal);
  if (unequal.length === 0) return;
  const differing = unequal.flatMap(({ tenants }) => tenants.filter((one) => !one.equal)).length;
  const changed = landed
    .filter(({ entityType }) => unequal.some((one) => one.entityType === entityType))
    .filter(
      ({ entityType, descriptor }) =>
        descriptor !== undefined && descriptor !== registry.fingerprint(entityType),
    )
    .map(({ entityType }) => entityType);
  const hint =
    changed.length === 0
      ? ""
      : `; the descriptor of ${changed.join(", ")} has changed since the job began, and its rows were made by the earlier one`;
  const message = `source and lake differ for ${differing} tenants: see the job's report${hint}`;
  throw new TributaryError("TRB-VERIFY-DIFFERS", message);
}

const incomplete = (): TributaryError =>
  new TributaryError("TRB-RECONCILE-EXPORT", "the export is incomplete: raw has not all of its rows");

/**
 * Reads a source again and compares it with the lake; what was found is kept. Begins anew when it is called again.
 * Undefined when the signal stopped it. Errors: those of `sourceFacts` and `verify`.
 */
export function verifyJob(
  context: IngestContext,
  landed: BootstrapOrder,
  host: Host,
  /** About, that have landed. */
  rows: number,
  /** What is to be done between; resolves to false when the signal stopped it. */
  between: (facts: SourceFacts) => Promise<boolean> = () => Promise.resolve(true),
): Promise<Verification | undefined> {
  const progress = progressOf(context, landed.entityType, host, rows);
  return MadeFiles.with(folderOf(context), async (files) => {
    const facts = await sourceFacts(context, landed, progress.host, files);
    if (facts === undefined || !(await between(facts))) return undefined;
    progress.sourceRead();
    return compared(context, landed, facts, progress.host);
  });
}

async function compared(
  context: IngestContext,
  landed: BootstrapOrder,
  facts: SourceFacts,
  host: Pick<JobHost, "signal" | "pace">,
): Promise<Verification | undefined> {
  try {
    const found = await verify(context, landed, facts, host);
    await keepVerification(context.store, found);
    return found;
  } catch (error) {
    if (host.signal.aborted) return undefined;
    throw error;
  }
}
