import { randomUUID } from "node:crypto";
import { expect, test } from "vitest";
import { openWorkbench } from "../../test/support/tables.js";
import { removeLeftovers } from "./job-leftovers.js";
import { type Job, jobOrder, jobState, type Phase } from "./jobs/job.js";

const at = "2026-01-02T03:04:05Z";
const job = (id: string, phase: Phase, words: object): Job => ({
  order: jobOrder.parse({ id, by: "ops", at, ...words }),
  wish: "run",
  state: jobState.parse({ phase, writtenAt: at }),
});
const bootstrap = (id: string, phase: Phase) => job(id, phase, { kind: "bootstrap", source: "exports/a" });

test("what jobs that are over have worked with goes; reports, plans, and what others work with stay", async () => {
  const { store } = await openWorkbench();
  const plan = (id: string) => `jobs/reconciles/reconcile-${id}-${randomUUID()}.parquet`;
  const gone = [plan("a"), plan("a-b")];
  const kept = [
    plan("failed"),
    plan("unknown"),
    plan("a-b-c"),
    "jobs/reconciles/a.json",
    "jobs/reports/a/t.v1.Thing.json",
    "jobs/manifests/a.json",
  ];
  for (const key of [...gone, ...kept]) await store.put(key, Buffer.from("{}"));
  const jobs = [
    bootstrap("a", "done"),
    bootstrap("a-b", "cancelled"),
    bootstrap("a-b-c", "paused"),
    bootstrap("failed", "failed"),
  ];
  await removeLeftovers(store, jobs);
  await removeLeftovers(store, jobs);
  const left: string[] = [];
  for await (const { key } of store.list("jobs/")) left.push(key);
  expect(left).toEqual(kept.sort());
});
