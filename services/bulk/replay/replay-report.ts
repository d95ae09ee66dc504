import type { ObjectStore } from "../../storage/object-store.js";
import type { Difference } from "./comparison.js";
import type { ReplayOrder, ReplayPlan } from "./replay-plan.js";

/** What a replay has found. */
export interface ReplayReport extends ReplayOrder {
  readonly job: string;
  readonly plan: ReplayPlan;
  /** Events that were run again, by this run of the job alone. */
  readonly events: number;
  /** Events that are in no row, by why: those among them whose payloads are not to be had. */
  readonly setAside: readonly SetAside[];
  /** As it was before anything was mended. */
  readonly difference: Difference;
  /** Of the table, as it was compared. */
  readonly version: number;
  /** When it was, ISO 8601. */
  readonly comparedAt: string;
}

export interface SetAside {
  readonly code: string;
  readonly reason: string;
  /** Those that were in hand when a run was killed are counted twice. */
  readonly events: number;
  /** Where some of them stand in raw. */
  readonly places: readonly {
    readonly stream: string;
    readonly partition: string;
    readonly position: string;
  }[];
}

const keyOf = (job: string): string => `jobs/replays/${job}.json`;
const asideKeyOf = (job: string): string => `jobs/replays/${job}-aside.json`;

/** What a job has set aside so far: a run that goes on where another one ended reads no event twice. */
export async function putSetAside(
  store: ObjectStore,
  job: string,
  aside: readonly SetAside[],
): Promise<void> {
  await store.put(asideKeyOf(job), Buffer.from(JSON.stringify(aside)));
}

export async function setAsideBy(store: ObjectStore, job: string): Promise<SetAside[]> {
  const bytes = await store.get(asideKeyOf(job));
  return bytes === undefined ? [] : (JSON.parse(bytes.toString("utf8")) as SetAside[]);
}

export async function putReplayReport(store: ObjectStore, report: ReplayReport): Promise<void> {
  await store.put(keyOf(report.job), Buffer.from(JSON.stringify(report)));
}

/** Undefined while there is none. */
export async function replayReport(store: ObjectStore, job: string): Promise<ReplayReport | undefined> {
  const bytes = await store.get(keyOf(job));
  return bytes === undefined ? undefined : (JSON.parse(bytes.toString("utf8")) as ReplayReport);
}
