import { afterEach, beforeEach, expect, test } from "vitest";
import { overriding } from "../../../test/support/faulty-store.js";
import { openWorkbench } from "../../../test/support/tables.js";
import { type JobOrder, jobOrder, jobState } from "./job.js";
import { JobStore } from "./job-store.js";

const { store } = await openWorkbench();
const at = "2026-01-02T03:04:05Z";
const order = (id: string, more: Partial<JobOrder> = {}): JobOrder =>
  jobOrder.parse({ id, kind: "bootstrap", source: "exports/issues", by: "ops", at, ...more });
const told = (phase: string) => jobState.parse({ phase, writtenAt: at });

let jobs: JobStore;
beforeEach(() => {
  jobs = new JobStore(store);
});
afterEach(async () => {
  const keys: string[] = [];
  for await (const { key } of store.list("jobs/")) keys.push(key);
  await store.delete(keys);
});

test("a job is what was ordered, wished and told of it", async () => {
  await jobs.order(order("a", { tenant: "acme" }));
  expect(await jobs.get("a")).toMatchObject({
    order: { id: "a", tenant: "acme", rejectLimit: 1000 },
    wish: "run",
    state: { phase: "waiting", rowsLanded: 0, writtenAt: at },
  });
  await jobs.wish("a", { wish: "pause", by: "ops", at });
  await jobs.tell("a", jobState.parse({ phase: "landing", rowsLanded: 7, writtenAt: at }));
  expect(await jobs.get("a")).toMatchObject({ wish: "pause", state: { phase: "landing", rowsLanded: 7 } });
});

test("jobs are listed as they were ordered; what cannot be read is left out", async () => {
  for (const [i, id] of ["z", "m", "a"].entries())
    await jobs.order(order(id, { at: `2026-01-02T03:04:0${i}Z` }));
  await store.put("jobs/orders/broken.json", Buffer.from("{"));
  await store.put("jobs/states/m.json", Buffer.from("{}"));
  const all = await jobs.list();
  expect(all.map(({ order: { id } }) => id)).toEqual(["z", "m", "a"]);
  expect(all[1]!.state.phase).toBe("waiting");
});

test("an id is one job's for ever, though the answer to its order be lost", async () => {
  let lost = true;
  const losing = overriding(store, {
    putIfAbsent: async (key, bytes) => {
      const outcome = await store.putIfAbsent(key, bytes);
      if (!lost) return outcome;
      lost = false;
      throw new Error("connection reset");
    },
  });
  const there = new JobStore(losing);
  await expect(there.order(order("a"))).rejects.toThrow("reset");
  await there.order(order("a"));
  await expect(there.order(order("a", { source: "exports/others" }))).rejects.toMatchObject({
    code: "TRB-JOB-EXISTS",
  });
  expect((await jobs.get("a")).order).toMatchObject({ source: "exports/issues" });
});

test("asked for again in the same words it is the same job, whoever asks and when", async () => {
  const mapping = { tenant: "t", entityId: "i", version: { constant: 0 }, payload: { key: "k", name: "n" } };
  expect(await jobs.order(order("a", { mapping }))).toBe("created");
  const reordered = { ...mapping, payload: { name: "n", key: "k" } };
  const again = { mapping: reordered, by: "others", at: "2026-01-02T03:04:06Z", tenant: undefined };
  expect(await jobs.order(order("a", again as Partial<JobOrder>))).toBe("exists");
  expect((await jobs.get("a")).order).toMatchObject({ by: "ops", at });
  for (const other of [{ mapping: { ...mapping, version: "v" } }, { mapping, tenant: "acme" }, {}])
    await expect(jobs.order(order("a", other))).rejects.toMatchObject({ code: "TRB-JOB-EXISTS" });
});

test("what is no job, or none any more, is told apart", async () => {
  for (const id of ["b", "../orders/a", "A", ""])
    await expect(jobs.get(id)).rejects.toMatchObject({ code: "TRB-JOB-UNKNOWN" });
  await jobs.order(order("a"));
  await jobs.tell("a", told("done"));
  await expect(jobs.wish("a", { wish: "pause", by: "ops", at })).rejects.toMatchObject({
    code: "TRB-JOB-ENDED",
  });
  await jobs.tell("a", told("failed"));
  await expect(jobs.wish("a", { wish: "pause", by: "ops", at })).rejects.toMatchObject({
    code: "TRB-JOB-ENDED",
  });
  for (const wish of ["cancel", "run"] as const)
    expect((await jobs.wish("a", { wish, by: "ops", at })).wish).toBe(wish);
});
