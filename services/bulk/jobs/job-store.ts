import { isDeepStrictEqual } from "node:util";
import type { z } from "zod";
import { TributaryError } from "../../base/errors.js";
import { inGroups } from "../../base/in-groups.js";
import type { ObjectStore } from "../../storage/object-store.js";
import {
  hasEnded,
  JOB_ID,
  type Job,
  type JobOrder,
  type JobState,
  type JobWish,
  jobOrder,
  jobState,
  jobWish,
} from "./job.js";

/** Orders are put once, and say which jobs there are; wishes and states are put anew. */
const ORDERS = "jobs/orders/";
const WISHES = "jobs/wishes/";
const STATES = "jobs/states/";
const AT_ONCE = 16;

/**
 * The jobs of a lake, on whatever machine they are asked for, wished about, and run: small objects of its store. Two
 * that write a state at once do no harm: it is a report.
 */
export class JobStore {
  /** Nothing becomes of these any more: they are read once. */
  private readonly over = new Map<string, Job>();

  constructor(private readonly store: ObjectStore) {}

  /**
   * Asked for again in the same words, by whomever, it stays the one job: who has lost an answer asks again. Errors:
   * TRB-JOB-EXISTS for an id that is taken by an order of other words.
   */
  async order(order: JobOrder): Promise<"created" | "exists"> {
    const key = keyOf(ORDERS, order.id);
    if ((await this.store.putIfAbsent(key, bytesOf(order))) === "created") return "created";
    const taken = await this.read(ORDERS, order.id, jobOrder);
    if (taken === undefined || !isDeepStrictEqual(wordsOf(taken), wordsOf(order)))
      throw new TributaryError("TRB-JOB-EXISTS", `"${order.id}" is another job's id`);
    return "exists";
  }

  /** All of them, the oldest first; those that cannot be read are left out. Errors: TRB-STORE-FAILED. */
  async list(): Promise<Job[]> {
    const ids: string[] = [];
    for await (const { key } of this.store.list(ORDERS)) ids.push(key.slice(ORDERS.length, -".json".length));
    const found = await inGroups(ids, AT_ONCE, (id) => this.find(id));
    return found.filter((job) => job !== undefined).sort((a, b) => (a.order.at < b.order.at ? -1 : 1));
  }

  /** Errors: TRB-JOB-UNKNOWN. */
  async get(id: string): Promise<Job> {
    const job = JOB_ID.test(id) ? await this.find(id) : undefined;
    if (job === undefined) throw new TributaryError("TRB-JOB-UNKNOWN", `no job "${printable(id)}"`);
    return job;
  }

  async has(id: string): Promise<boolean> {
    return (await this.store.stat(keyOf(ORDERS, id))) !== undefined;
  }

  private async find(id: string): Promise<Job | undefined> {
    const known = this.over.get(id);
    if (known !== undefined) return known;
    const [order, wish, state] = await Promise.all([
      this.read(ORDERS, id, jobOrder),
      this.read(WISHES, id, jobWish),
      this.read(STATES, id, jobState),
    ]);
    if (order === undefined) return undefined;
    const job: Job = {
      order,
      wish: wish?.wish ?? "run",
      state: state ?? jobState.parse({ phase: "waiting", writtenAt: order.at }),
    };
    if (hasEnded(job.state) && job.state.phase !== "failed") this.over.set(id, job);
    return job;
  }

  private async read<T>(folder: string, id: string, shape: z.ZodType<T>): Promise<T | undefined> {
    const bytes = await this.store.get(keyOf(folder, id));
    if (bytes === undefined) return undefined;
    try {
      return shape.parse(JSON.parse(bytes.toString("utf8")));
    } catch {
      return undefined;
    }
  }

  /**
   * One that is paused or has failed waits for its turn again once it is to run; one that has failed may be cancelled,
   * too, and keeps nothing then. Errors: TRB-JOB-UNKNOWN; TRB-JOB-ENDED, for what nothing becomes of any more.
   */
  async wish(id: string, wish: JobWish): Promise<Job> {
    const job = await this.get(id);
    const failed = job.state.phase === "failed";
    const again = failed && wish.wish === "run";
    if (hasEnded(job.state) && !(failed && wish.wish !== "pause"))
      throw new TributaryError("TRB-JOB-ENDED", `"${id}" is ${job.state.phase}`);
    await this.store.put(keyOf(WISHES, id), bytesOf(wish));
    if (wish.wish !== "run" || (job.state.phase !== "paused" && !again)) return { ...job, wish: wish.wish };
    const state = { ...resumed(job), writtenAt: wish.at };
    await this.tell(id, state);
    return { ...job, wish: wish.wish, state };
  }

  async tell(id: string, state: JobState): Promise<void> {
    this.over.delete(id);
    await this.store.put(keyOf(STATES, id), bytesOf(state));
  }
}

/** Of a job that is resumed: as many rejects again do not pause it. */
function resumed({ order, state }: Job): JobState {
  const { code, reason: _, attempts: __, ...rest } = state;
  const more = order.kind === "bootstrap" && code === "TRB-JOB-REJECTS";
  return {
    ...rest,
    phase: "waiting",
    ...(more ? { rejectsAllowed: state.rejected + order.rejectLimit } : {}),
  };
}

const keyOf = (folder: string, id: string): string => `${folder}${id}.json`;
const bytesOf = (value: unknown): Buffer => Buffer.from(JSON.stringify(value));
/** As they are stored: without what is not given. */
const wordsOf = ({ by: _, at: __, ...words }: JobOrder): unknown => JSON.parse(JSON.stringify(words));
const printable = (id: string): string => id.replace(/[^\w.-]/g, "?").slice(0, 64);
