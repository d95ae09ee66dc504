import { randomBytes, randomUUID } from "node:crypto";
import { rm } from "node:fs/promises";
import { join } from "node:path";
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
import { type BootstrapRequest, type Job, type JobWish, jobOrder, type ReplayRequest } from "./jobs/job.js";
import { JobStore } from "./jobs/job-store.js";
import { selectionOf } from "./replay/replay-plan.js";

/** Lends what a source is checked against. */
export type Checking = <T>(use: (parts: Omit<CheckContext, "store">) => Promise<T>) => Promise<T>;

/** Where operators ask for jobs and wish about them, by whatever way they come. All they ask for is in the audit. */
export class JobDesk {
  readonly jobs: JobStore;

  constructor(private readonly store: ObjectStore) {
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

  /** Who asks again in the same words gets the same job. Errors: TRB-JOB-EXISTS, TRB-REPLAY-ORDER. */
  async replay(
    { id = madeUpId(), ...asked }: ReplayRequest,
    by: string,
  ): Promise<{ readonly job: Job; readonly wasThere: boolean }> {
    selectionOf(asked);
    const { model: source, tenant, action } = asked;
    const at = new Date().toISOString();
    await audit(this.store, { at, by, action: `replay ${action}`, job: id, source, tenant });
    const outcome = await this.jobs.order(jobOrder.parse({ kind: "replay", id, ...asked, by, at }));
    return { job: await this.jobs.get(id), wasThere: outcome === "exists" };
  }

  /** Errors: TRB-JOB-UNKNOWN, TRB-JOB-ENDED. */
  async wish(id: string, wish: JobWish["wish"], by: string): Promise<Job> {
    const { order } = await this.jobs.get(id);
    const at = new Date().toISOString();
    const { tenant } = order;
    await audit(this.store, { at, by, action: `${order.kind} ${WORDS[wish]}`, job: id, tenant });
    return this.jobs.wish(id, { wish, by, at });
  }
}

const WORDS = { run: "resume", pause: "pause", cancel: "cancel" } as const;

/** When it was asked for, to be found again, and something that nobody else has. */
const madeUpId = (): string =>
  `${new Date().toISOString().slice(0, 19).replace(/[-:]/g, "").replace("T", "-")}-${randomBytes(2).toString("hex")}`;
