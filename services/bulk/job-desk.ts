import { randomBytes, randomUUID } from "node:crypto";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { TributaryError } from "../base/errors.js";
import { layout } from "../base/paths.js";
import { audit } from "../operate/audit-log.js";
import { inspect } from "../sources/inspect.js";
import { Sources } from "../sources/sources.js";
import type { ObjectStore } from "../storage/object-store.js";
import {
  type BootstrapCheck,
  type CheckContext,
  checkBootstrap,
  requirePassed,
} from "./bootstrap/bootstrap-check.js";
import { sourceOf } from "./bootstrap/job-source.js";
import {
  type BootstrapRequest,
  hasEnded,
  type Job,
  type JobWish,
  jobOrder,
  type ReplayRequest,
  tenantOf,
  type VerifyRequest,
} from "./jobs/job.js";
import { JobStore } from "./jobs/job-store.js";
import { type RejectPage, readRejects } from "./jobs/rejects.js";
import { type PlanContext, planReplay, type ReplayPlan } from "./replay/replay-plan.js";
import { type Report, type ReportContext, reportOf } from "./report.js";
import { confirmDeletes, type ToDelete } from "./verify/reconcile.js";

/** Lends what a source is checked against. */
export type Checking = <T>(use: (parts: Omit<CheckContext, "store">) => Promise<T>) => Promise<T>;

/** Lends what a replay is planned with. */
export type Planning = <T>(use: (parts: Omit<PlanContext, "store">) => Promise<T>) => Promise<T>;

/** Where operators ask for jobs and wish about them, by whatever way they come. All they ask for is in the audit. */
export class JobDesk {
  readonly jobs: JobStore;

  constructor(readonly store: ObjectStore) {
    this.jobs = new JobStore(store);
  }

  /** What would become of it; nothing is asked for. Errors: as `checkBootstrap`, and of the source's place. */
  async dryRun(context: Omit<CheckContext, "store">, asked: BootstrapRequest): Promise<BootstrapCheck> {
    const { config } = context;
    const scratch = join(layout(config.data).scratch, `check-${randomUUID()}`);
    const sources = await Sources.open(config, scratch);
    try {
      const place = sources.at(asked.source);
      const manifest = await inspect(place, asked, config.bulk);
      return await checkBootstrap({ ...context, store: this.store }, asked, place, manifest);
    } finally {
      sources.close();
      await rm(scratch, { recursive: true, force: true });
    }
  }

  /**
   * Resolves to the job, and to whether it was there before: who asks again in the same words gets the same job,
   * whatever has become of its source: it is checked when it is new. Errors: TRB-JOB-EXISTS; as `dryRun`, and what that finds against it.
   */
  async bootstrap(
    checking: Checking,
    { id = madeUpId(), ...asked }: BootstrapRequest,
    by: string,
  ): Promise<{ readonly job: Job; readonly wasThere: boolean }> {
    const at = new Date().toISOString();
    const order = jobOrder.parse({ kind: "bootstrap", id, ...asked, by, at });
    const { source, entityType, tenant } = asked;
    await audit(this.store, { at, by, action: "bootstrap start", job: id, source, entityType, tenant });
    if (!(await this.jobs.has(id))) requirePassed(await checking((parts) => this.dryRun(parts, asked)));
    const outcome = await this.jobs.order(order);
    return { job: await this.jobs.get(id), wasThere: outcome === "exists" };
  }

  /** What there is to read for it; nothing is asked for. Errors: as `planReplay`. */
  replayPlan(context: Omit<PlanContext, "store">, asked: ReplayRequest): Promise<ReplayPlan> {
    return planReplay({ ...context, store: this.store }, asked);
  }

  /**
   * Who asks again in the same words gets the same job, and no plan: that is made of one that is new. Errors:
   * TRB-JOB-EXISTS; as `replayPlan`.
   */
  async replay(
    planning: Planning,
    { id = madeUpId(), ...asked }: ReplayRequest,
    by: string,
  ): Promise<{ readonly job: Job; readonly wasThere: boolean; readonly plan?: ReplayPlan }> {
    const { model: source, tenant, action } = asked;
    const at = new Date().toISOString();
    await audit(this.store, { at, by, action: `replay ${action}`, job: id, source, tenant });
    const isNew = !(await this.jobs.has(id));
    const plan = isNew ? await planning((parts) => this.replayPlan(parts, asked)) : undefined;
    const outcome = await this.jobs.order(jobOrder.parse({ kind: "replay", id, ...asked, by, at }));
    const job = await this.jobs.get(id);
    return { job, wasThere: outcome === "exists", ...(plan === undefined ? {} : { plan }) };
  }

  /** Errors: TRB-JOB-UNKNOWN, TRB-JOB-ENDED. */
  async wish(id: string, wish: JobWish["wish"], by: string): Promise<Job> {
    const { order } = await this.jobs.get(id);
    const at = new Date().toISOString();
    const tenant = tenantOf(order);
    await audit(this.store, { at, by, action: `${order.kind} ${WORDS[wish]}`, job: id, tenant });
    return this.jobs.wish(id, { wish, by, at });
  }

  /**
   * Compares source and lake again, by a job of its own. Who asks again in the same words gets the same job. Errors:
   * TRB-JOB-UNKNOWN, TRB-JOB-EXISTS; TRB-VERIFY-NOTHING.
   */
  async verify(
    of: string,
    { id = madeUpId(), ...asked }: VerifyRequest,
    by: string,
  ): Promise<{ readonly job: Job; readonly wasThere: boolean }> {
    const { order, state } = await this.jobs.get(of);
    const nothing = (why: string) => new TributaryError("TRB-VERIFY-NOTHING", `"${of}" ${why}`);
    if (order.kind !== "bootstrap") throw nothing(`is a ${order.kind}: expected a bootstrap`);
    // A job that is at it has rows that are not in raw yet.
    if (!hasEnded(state)) throw nothing(`is ${state.phase}: it is verified at its end`);
    if ((await sourceOf(this.store, of)) === undefined) throw nothing("has landed nothing");
    const at = new Date().toISOString();
    await audit(this.store, { at, by, action: "bootstrap verify", job: of, tenant: order.tenant });
    const outcome = await this.jobs.order(jobOrder.parse({ kind: "verify", id, of, ...asked, by, at }));
    return { job: await this.jobs.get(id), wasThere: outcome === "exists" };
  }

  /** Rows of a job that are no events, a page of them. Errors: TRB-JOB-UNKNOWN; those of reading a table. */
  async rejects(
    context: Omit<ReportContext, "store">,
    id: string,
    page: { readonly limit: number; readonly after?: string },
    by: string,
  ): Promise<RejectPage> {
    const { order } = await this.jobs.get(id);
    const at = new Date().toISOString();
    await audit(this.store, { at, by, action: "bootstrap rejects", job: id, tenant: tenantOf(order) });
    return readRejects({ ...context, store: this.store }, id, page);
  }

  /** All that is known of a job; it names tenants and entities. Errors: as `reportOf`. */
  async report(context: Omit<ReportContext, "store">, id: string, by: string): Promise<Report> {
    const { order } = await this.jobs.get(id);
    const at = new Date().toISOString();
    await audit(this.store, { at, by, action: "bootstrap report", job: id, tenant: tenantOf(order) });
    return reportOf({ ...context, store: this.store }, id);
  }

  /** The job deletes what it has found, and goes on. Errors: TRB-JOB-UNKNOWN, TRB-JOB-ENDED; TRB-RECONCILE-COUNT. */
  async confirm(id: string, deletes: ToDelete, by: string): Promise<Job> {
    const { order } = await this.jobs.get(id);
    const at = new Date().toISOString();
    await audit(this.store, { at, by, action: "bootstrap confirm", job: id, tenant: tenantOf(order) });
    await confirmDeletes(this.store, id, deletes, by);
    return this.jobs.wish(id, { wish: "run", by, at });
  }
}

const WORDS = { run: "resume", pause: "pause", cancel: "cancel" } as const;

/** When it was asked for, to be found again, and something that nobody else has. */
const madeUpId = (): string =>
  `${new Date().toISOString().slice(0, 19).replace(/[-:]/g, "").replace("T", "-")}-${randomBytes(2).toString("hex")}`;
