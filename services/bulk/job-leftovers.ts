import type { ObjectStore } from "../storage/object-store.js";
import type { Job } from "./jobs/job.js";
import { jobOfPlan, PLANS } from "./verify/reconcile-plan.js";

/**
 * Removes what jobs that are over have worked with, and nobody reads again: the lists of what was to be deleted. One that
 * has failed may be resumed, and keeps its own. Called again after a kill, and beside other jobs, it does no harm.
 */
export async function removeLeftovers(
  store: Pick<ObjectStore, "list" | "delete">,
  jobs: readonly Job[],
): Promise<void> {
  const over = new Set(
    jobs
      .filter(({ state: { phase } }) => phase === "done" || phase === "cancelled")
      .map(({ order }) => order.id),
  );
  const keys: string[] = [];
  for await (const { key } of store.list(PLANS)) if (over.has(jobOfPlan(key) ?? "")) keys.push(key);
  if (keys.length > 0) await store.delete(keys);
}
