import { expect, test } from "vitest";
import { ALONE } from "../../ingest/crew.js";
import { Holdings } from "../../ingest/holdings.js";
import { type Job, jobOrder, jobState, type Phase } from "./job.js";
import { JobTracks } from "./job-tracks.js";

const at = "2026-01-02T03:04:05Z";
const job = (id: string, phase: Phase): Job => ({
  order: jobOrder.parse({ kind: "bootstrap", id, by: "ops", at, source: "exports/x" }),
  wish: "run",
  state: jobState.parse({ phase, writtenAt: at }),
});

test("tables are not moved along the tracks of a job that is not over, whoever runs it; then they are anybody's", async () => {
  const tracks = new JobTracks();
  const ours = new Holdings("log", tracks.sparedBy(ALONE));
  const has = (id: string) => ours.has("t.things", `bootstrap-${id}.0`);
  // Nobody has looked yet: each of them may be at work.
  expect(has("a")).toBe(false);
  expect(ours.has("t.things", "other-log.0")).toBe(true);
  for (const phase of ["waiting", "checking", "landing", "refining", "paused"] as const) {
    await tracks.look(async () => [job("a", phase)]);
    expect(has("a"), phase).toBe(false);
  }
  for (const phase of ["done", "failed", "cancelled"] as const) {
    await tracks.look(async () => [job("a", phase)]);
    expect(has("a"), phase).toBe(true);
  }
});

test("a job that is not known yet has its tracks until a look that began later does not know it either", async () => {
  const tracks = new JobTracks();
  await tracks.look(async () => {
    // Its order came behind the list that was made, and its first rows before this look's end.
    expect(tracks.holds("bootstrap-new.0")).toBe(true);
    return [];
  });
  expect(tracks.holds("bootstrap-new.0")).toBe(true);
  await expect(tracks.look(() => Promise.reject(new Error("down")))).rejects.toThrow("down");
  expect(tracks.holds("bootstrap-new.0")).toBe(true);
  await tracks.look(async () => [job("new", "landing")]);
  expect(tracks.holds("bootstrap-new.0")).toBe(true);
  // Of a lake that lost its jobs: what they landed is not held up.
  expect(tracks.holds("bootstrap-lost.0")).toBe(true);
  await tracks.look(async () => []);
  expect(tracks.holds("bootstrap-lost.0")).toBe(false);
});
