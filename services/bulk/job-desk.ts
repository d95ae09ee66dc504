import { randomBytes } from "node:crypto";
import { TributaryError } from "../base/errors.js";
import { audit } from "../operate/audit-log.js";
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
    by: string,
  ): Promise<{ readonly job: Job; readonly wasThere: boolean }> {
    if (asked.mapping === undefined && asked.format !== "events" && asked.format !== undefined)
      throw new TributaryError("TRB-BULK-MAPPING", "mapping: expected one, as rows are no whole events");
    const { source, entityType, tenant } = asked;
    const at = new Date().toISOString();
    await audit(this.store, { at, by, action: "bootstrap start", job: id, source, entityType, tenant });
    const outcome = await this.jobs.order(jobOrder.parse({ kind: "bootstrap", id, ...asked, by, at }));
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
