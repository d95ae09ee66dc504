import { randomBytes } from "node:crypto";
import { TributaryError } from "../base/errors.js";
import { type Actor, recordAudit } from "../status/audit.js";
import type { ObjectStore } from "../storage/object-store.js";
import { type BootstrapRequest, type Job, type JobWish, jobOrder } from "./job.js";
import { JobStore } from "./job-store.js";

/** Where operators ask for jobs and wish about them, by whatever way they come. All they ask for is in the audit. */
export class JobDesk {
  readonly jobs: JobStore;

  constructor(private readonly store: ObjectStore) {
    this.jobs = new JobStore(store);
  }

  /**
   * Resolves to the job, and to whether it was there before: who asks again in the same words gets the same job.
   * Errors: TRB-JOB-EXISTS, TRB-BULK-MAPPING.
   */
  async bootstrap(
    { id = madeUpId(), ...asked }: BootstrapRequest,
    actor: Actor,
  ): Promise<{ readonly job: Job; readonly wasThere: boolean }> {
    if (asked.mapping === undefined && asked.format !== "events" && asked.format !== undefined)
      throw new TributaryError("TRB-BULK-MAPPING", "mapping: expected one, as rows are no whole events");
    const { source, entityType = null, tenant = null } = asked;
    await recordAudit(this.store, actor, "bootstrap.start", { id, source, entityType, tenant });
    const at = new Date().toISOString();
    const outcome = await this.jobs.order(
      jobOrder.parse({ kind: "bootstrap", id, ...asked, by: actor.by, at }),
    );
    return { job: await this.jobs.get(id), wasThere: outcome === "exists" };
  }

  /** Errors: TRB-JOB-UNKNOWN, TRB-JOB-ENDED. */
  async wish(id: string, wish: JobWish["wish"], actor: Actor): Promise<Job> {
    const { order } = await this.jobs.get(id);
    await recordAudit(this.store, actor, `${order.kind}.${WORDS[wish]}`, { id });
    return this.jobs.wish(id, { wish, by: actor.by, at: new Date().toISOString() });
  }
}

const WORDS = { run: "resume", pause: "pause", cancel: "cancel" } as const;

/** When it was asked for, to be found again, and something that nobody else has. */
const madeUpId = (): string =>
  `${new Date().toISOString().slice(0, 19).replace(/[-:]/g, "").replace("T", "-")}-${randomBytes(2).toString("hex")}`;
