import { z } from "zod";
import { limits } from "../../base/config-bulk.js";
import { CSV_DEFAULTS, FORMATS } from "../../sources/formats.js";
import { mappingShape } from "../../sources/mapping.js";

/** What bulk jobs are, as they stand in the lake: an order that never changes, what operators wish, how far it is. */

/** Part of the names of positions and folders. */
export const JOB_ID = /^[a-z0-9][a-z0-9-]{0,62}$/;

/** What every job is asked for with. */
const common = {
  id: z.string().regex(JOB_ID, "expected 1 to 63 of a-z 0-9 -, not - first"),
  /** Of two that may both run the greater comes first, then the older. */
  priority: z.number().int().min(-100).max(100).default(0),
  /** What it may take; it gets no more than its part of what all jobs may. */
  limits: limits.optional(),
  /** Who asked for it: the token's subject, or the local user. */
  by: z.string(),
  /** When, ISO 8601. */
  at: z.iso.datetime(),
};

const csv = z.strictObject({
  delimiter: z
    .string()
    .regex(/^[\t -~]$/, "expected one ASCII character")
    .default(CSV_DEFAULTS.delimiter),
  columns: z.array(z.string().min(1)).min(1).optional(),
  nullText: z.string().default(CSV_DEFAULTS.nullText),
});

/** A version that may be beyond what JSON's numbers hold exactly. */
const version = z.union([
  z.int().min(0),
  z.string().regex(/^\d{1,19}$/, "expected a whole number from 0 to 2^63-1"),
]);

/**
 * Until when an export surely holds what was written: a version, that one included, or how far the streams were before
 * it began, by "<stream>.<partition>", as `tributary bootstrap watermark` prints it.
 */
const watermarkShape = z.union([
  z.strictObject({ version }),
  z.strictObject({ positions: z.record(z.string().regex(/^.+\.[^.]+$/), z.string().min(1)) }),
]);
export type Watermark = z.infer<typeof watermarkShape>;

/** Brings in an export. */
const bootstrapOrder = z.strictObject({
  kind: z.literal("bootstrap"),
  ...common,
  /** `<root>/<path>`, of a root that the configuration names. */
  source: z.string().min(1),
  /** Of the source's files, where their names do not tell it. */
  format: z.enum(FORMATS).optional(),
  /** How they are written, if that is CSV. */
  csv: csv.optional(),
  /** How its rows become events; whole events need none. */
  mapping: mappingShape.optional(),
  /** What it brings is of this entity type; of any, where the source holds whole events. */
  entityType: z.string().min(1).optional(),
  /** What it brings is of this tenant: rows of others are rejected. */
  tenant: z.string().min(1).optional(),
  /** After so many rejected rows it pauses. */
  rejectLimit: z.number().int().min(0).default(1000),
  /** Straight into the tables, in files of its own, or row by row in turn with live events; by its size when absent. */
  through: z.enum(["files", "queue"]).optional(),
  /** Entities that the export does not hold, and that are no newer than its watermark, are deleted, once confirmed. */
  reconcile: z.strictObject({ watermark: watermarkShape }).optional(),
});
export type BootstrapJob = z.infer<typeof bootstrapOrder>;

/** What is to be brought in, as operators ask for it; without an id one is made up. */
export const bootstrapRequest = bootstrapOrder
  .omit({ kind: true, by: true, at: true })
  .extend({ id: common.id.optional() });
export type BootstrapRequest = z.infer<typeof bootstrapRequest>;

/** Runs raw into a model again. */
const replayOrder = z.strictObject({
  kind: z.literal("replay"),
  ...common,
  model: z.string().min(1),
  /** All tenants where there is none. */
  tenant: z.string().min(1).optional(),
  /** Events received from then on and until then, ISO 8601, or of these versions. */
  from: z.union([z.iso.datetime(), z.int().min(0)]).optional(),
  until: z.union([z.iso.datetime(), z.int().min(0)]).optional(),
  /** Show the difference; swap what is served; replace a tenant's rows in place. */
  action: z.enum(["compare", "swap", "repair"]),
  /** Rows may go whose payloads in the object store are lost. */
  incomplete: z.boolean().default(false),
});
export type ReplayJob = z.infer<typeof replayOrder>;

/** What is to be replayed, as operators ask for it; without an id one is made up. */
export const replayRequest = replayOrder
  .omit({ kind: true, by: true, at: true })
  .extend({ id: common.id.optional() });
export type ReplayRequest = z.infer<typeof replayRequest>;

/** Compares what a bootstrap job has landed with its source once more. */
const verifyOrder = z.strictObject({
  kind: z.literal("verify"),
  ...common,
  /** The id of that job. */
  of: common.id,
});
export type VerifyJob = z.infer<typeof verifyOrder>;

/** How it is to be verified, as operators ask for it; without an id one is made up. */
export const verifyRequest = verifyOrder
  .omit({ kind: true, by: true, at: true, of: true })
  .extend({ id: common.id.optional() });
export type VerifyRequest = z.infer<typeof verifyRequest>;

export const jobOrder = z.discriminatedUnion("kind", [bootstrapOrder, replayOrder, verifyOrder]);
export type JobOrder = z.infer<typeof jobOrder>;

/** What operators wish; a job without one is to run. */
export const jobWish = z.strictObject({
  wish: z.enum(["run", "pause", "cancel"]),
  by: z.string(),
  at: z.iso.datetime(),
});
export type JobWish = z.infer<typeof jobWish>;

/**
 * `waiting` for its turn or a worker; `checking` source and mapping; `landing` in raw; `refining`; `verifying` what has
 * come of it, and deleting what the export lacks; then one of the ends. A paused job goes on where it stopped.
 */
export const PHASES = [
  "waiting",
  "checking",
  "landing",
  "refining",
  "verifying",
  "paused",
  "done",
  "failed",
  "cancelled",
] as const;
export type Phase = (typeof PHASES)[number];

/** As whoever runs the job last wrote it: a report, never a lock. What has landed stands in the tables' own positions. */
export const jobState = z.strictObject({
  phase: z.enum(PHASES),
  /** Why it is paused or has failed: a code and words without paths or values. */
  code: z.string().optional(),
  reason: z.string().optional(),
  files: z.number().int().default(0),
  /** Bytes of the source, as far as they are known, and how many of them are done with. */
  bytes: z.number().default(0),
  bytesDone: z.number().default(0),
  rowsLanded: z.number().int().default(0),
  rowsRefined: z.number().int().default(0),
  /** Beside those that have landed: they are in the import queue, since then at the latest. */
  rowsWaiting: z.number().int().optional(),
  waitingSince: z.iso.datetime().optional(),
  rejected: z.number().int().default(0),
  /** How much of comparing source and lake is done, from 0 to 1; once it has begun. */
  verified: z.number().optional(),
  /** For how many seconds it has been at work in a phase, in all of its runs. */
  seconds: z
    .strictObject({
      landing: z.number().optional(),
      refining: z.number().optional(),
      verifying: z.number().optional(),
    })
    .optional(),
  /** For how many seconds it has held back while live events waited, in all of its runs. */
  yieldedSeconds: z.number().optional(),
  /** So many rejects do not pause it: those of its order, or more since it was resumed. */
  rejectsAllowed: z.number().int().optional(),
  /** Of late; while it runs. */
  rowsPerSecond: z.number().optional(),
  /** Until it is done, as it goes at the moment. */
  etaSeconds: z.number().int().optional(),
  /** Of tries that failed one after the other. */
  attempts: z.number().int().optional(),
  startedAt: z.iso.datetime().optional(),
  writtenAt: z.iso.datetime(),
});
export type JobState = z.infer<typeof jobState>;

export interface Job {
  readonly order: JobOrder;
  readonly wish: JobWish["wish"];
  readonly state: JobState;
}

/** The tenant that it is bound to, if any. */
export const tenantOf = (order: JobOrder): string | undefined =>
  order.kind === "verify" ? undefined : order.tenant;

/** As it is answered: the order's own words, what is wished, and how far it is. Plain JSON. */
export const jobJson = ({ order, wish, state }: Job) => ({ ...order, wish, state });

const ENDS: ReadonlySet<Phase> = new Set(["done", "failed", "cancelled"]);

/** Nothing becomes of it any more, unless it failed and somebody wishes that it runs. */
export const hasEnded = ({ phase }: Pick<JobState, "phase">): boolean => ENDS.has(phase);
