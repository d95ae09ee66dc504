import type { IngestContext } from "../ingest/context.js";
import { type Job, jobJson } from "./jobs/job.js";
import { JobStore } from "./jobs/job-store.js";
import { type RejectReason, rejectReasons } from "./jobs/rejects.js";
import { type ReplayReport, replayReport } from "./replay/replay-report.js";
import { confirmationOf } from "./verify/reconcile.js";
import { planOf, type ReconcilePlan } from "./verify/reconcile-plan.js";
import { type Verification, verificationsOf } from "./verify/verification.js";

/** All that is known of a bootstrap job. Plain JSON. */
export interface BootstrapReport {
  readonly job: ReturnType<typeof jobJson>;
  /** Whether source and lake are equal, all rows that were not rejected; null where nobody has looked yet. */
  readonly equal: boolean | null;
  readonly rejects: readonly RejectReason[];
  /** Entities that the export lacks; null where the job does not look for these, or has not yet. */
  readonly vanished:
    | ({
        readonly count: number;
        readonly asOf: number;
        /** How many tenants they are of. */
        readonly ofTenants: number;
        readonly foundAt: string;
        readonly confirmed: { readonly by: string; readonly at: string } | null;
      } & Pick<ReconcilePlan, "leftAlone" | "byTenant" | "some">)
    | null;
  /** One an entity type, as found last. */
  readonly verifications: readonly Verification[];
}

/** What a replay has found, beside the job. */
export interface ReplayJobReport {
  readonly job: ReturnType<typeof jobJson>;
  /** null while there is nothing. */
  readonly replay: ReplayReport | null;
}

export type Report = BootstrapReport | ReplayJobReport;

export type ReportContext = Pick<IngestContext, "store" | "duck" | "tableOptions">;

/** The report of a job; that of a verification is the verified job's. Errors: TRB-JOB-UNKNOWN; those of tables and the store. */
export async function reportOf(context: ReportContext, id: string): Promise<Report> {
  const { store } = context;
  const jobs = new JobStore(store);
  const job = await jobs.get(id);
  const { order } = job;
  if (order.kind === "verify") return reportOf(context, order.of);
  if (order.kind === "replay") return { job: jobJson(job), replay: (await replayReport(store, id)) ?? null };
  return bootstrapReport(context, job);
}

async function bootstrapReport(context: ReportContext, job: Job): Promise<BootstrapReport> {
  const { store } = context;
  const { id } = job.order;
  const [verifications, rejects, vanished] = await Promise.all([
    verificationsOf(store, id),
    rejectReasons(context, id),
    vanishedOf(context, id),
  ]);
  return {
    job: jobJson(job),
    equal: verifications.length === 0 ? null : verifications.every(({ equal }) => equal),
    rejects,
    vanished,
    verifications,
  };
}

async function vanishedOf(
  { store }: Pick<ReportContext, "store">,
  id: string,
): Promise<BootstrapReport["vanished"]> {
  const plan = await planOf(store, id);
  if (plan === undefined) return null;
  const { deletes: count, version: asOf, tenants: ofTenants, leftAlone, byTenant, some, at: foundAt } = plan;
  const confirmed = await confirmationOf(store, id);
  const by = confirmed === undefined ? null : { by: confirmed.by, at: confirmed.at };
  return { count, asOf, ofTenants, leftAlone, byTenant, some, foundAt, confirmed: by };
}
