import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { bootstrapOf, hostOf } from "../../../test/support/jobs.js";
import { Lake, type TestEvent, TestStream, THING, writeProto } from "../../../test/support/lake.js";
import { ProtoRegistry } from "../../contracts/registry.js";
import { JobDesk } from "../job-desk.js";
import { jobState, type VerifyJob } from "../jobs/job.js";
import type { JobHost } from "../jobs/job-run.js";
import { verificationOf } from "../verify/verification.js";
import { runBootstrap } from "./bootstrap-job.js";
import { sourceOf } from "./job-source.js";
import { runVerify } from "./verify-job.js";

vi.mock("../../sources/source-process.js", () => import("../../../test/support/readers-here.js"));

const folder = mkdtempSync(join(tmpdir(), "tributary-export-"));
let lake: Lake;
beforeAll(async () => {
  lake = await Lake.create({ sources: { exports: folder } });
});
afterAll(async () => {
  await lake.close();
  rmSync(folder, { recursive: true, force: true });
});
const at = "2026-01-02T03:04:05Z";

function put(id: string, versions: readonly number[], name = "n"): string {
  mkdirSync(join(folder, id), { recursive: true });
  const rows = versions.map((rev, i) => JSON.stringify({ customer: "acme", id: `e-${i}`, rev, name }));
  const file = join(folder, id, "a.ndjson");
  writeFileSync(file, rows.join("\n"));
  return file;
}

/** Keeps what it is told. */
function listening(): { readonly host: JobHost; readonly told: Parameters<JobHost["tell"]>[0][] } {
  const told: Parameters<JobHost["tell"]>[0][] = [];
  return { host: hostOf({ tell: (change) => void told.push(change) }), told };
}

const live = (version: number): TestEvent[] =>
  Array.from({ length: 20 }, (_, i) => ({
    tenant: "acme",
    id: `l-${i}`,
    operation: 1,
    version: BigInt(version),
    thing: { name: "n" },
  }));

test("a job is verified again after its end, by a job that tells how far it is and fails where they differ", async () => {
  const { context } = lake;
  const desk = new JobDesk(context.store);
  const file = put("again", [1, 2, 3]);
  await desk.jobs.order(bootstrapOf("again"));
  await expect(desk.verify("again", { priority: 0 }, "olga")).rejects.toMatchObject({
    code: "TRB-VERIFY-NOTHING",
    message: '"again" is waiting: it is verified at its end',
  });
  await desk.jobs.tell("again", jobState.parse({ phase: "cancelled", writtenAt: at }));
  await expect(desk.verify("again", { priority: 0 }, "olga")).rejects.toMatchObject({
    code: "TRB-VERIFY-NOTHING",
  });
  await runBootstrap(context, bootstrapOf("again"), hostOf());
  const first = (await verificationOf(context.store, "again", THING))!;
  const { job } = await desk.verify("again", { id: "look", priority: 0 }, "olga");
  expect(job.order).toMatchObject({ kind: "verify", id: "look", of: "again", by: "olga" });
  expect((await desk.verify("again", { id: "look", priority: 0 }, "olga")).wasThere).toBe(true);
  const looking = listening();
  expect(await runVerify(context, job.order as VerifyJob, looking.host)).toBe(true);
  expect(looking.told[0]).toEqual({ phase: "verifying" });
  const shares = looking.told.flatMap(({ verified }) => (typeof verified === "number" ? [verified] : []));
  expect(shares).toEqual([...shares].sort((a, b) => a - b));
  expect(shares.some((share) => share > 0 && share < 1)).toBe(true);
  expect(shares.at(-1)).toBe(1);
  const found = (await verificationOf(context.store, "again", THING))!;
  expect(found).toMatchObject({ equal: true, source: first.source, raw: first.raw });
  expect(found.at > first.at).toBe(true);
  // As long as it was, and as old.
  const { atime, mtime } = statSync(file);
  put("again", [1, 2, 3], "m");
  utimesSync(file, atime, mtime);
  const { job: second } = await desk.verify("again", { priority: 0 }, "olga");
  const ended = runVerify(context, second.order as VerifyJob, hostOf());
  await expect(ended).rejects.toMatchObject({ code: "TRB-SOURCE-CHANGED" });
  await expect(desk.verify("look", { priority: 0 }, "olga")).rejects.toMatchObject({
    code: "TRB-VERIFY-NOTHING",
  });
});

test("source and lake that differ since a descriptor has changed are told with that", async () => {
  const { context } = lake;
  const desk = new JobDesk(context.store);
  mkdirSync(join(folder, "painted"), { recursive: true });
  const row = { customer: "acme", id: "e", rev: 1, name: "n", color: "red" };
  writeFileSync(join(folder, "painted", "a.ndjson"), JSON.stringify(row));
  await desk.jobs.order(bootstrapOf("painted"));
  expect(await runBootstrap(context, bootstrapOf("painted"), hostOf())).toBe(true);
  await desk.jobs.tell("painted", jobState.parse({ phase: "done", writtenAt: at }));
  const { job } = await desk.verify("painted", { priority: 0 }, "olga");
  const protos = writeProto(mkdtempSync(join(tmpdir(), "tributary-protos-")));
  const file = join(protos, "t", "v1", "thing.proto");
  const before = readFileSync(file, "utf8");
  const differs = async (text: string) => {
    writeFileSync(file, text);
    const registry = ProtoRegistry.load([protos]);
    return runVerify({ ...context, registry }, job.order as VerifyJob, hostOf()).then(
      () => "equal",
      (error: Error) => error.message,
    );
  };
  try {
    expect(await differs(`// Of no matter.\n${before}`)).toBe("equal");
    const painted = before.replace("string name = 1;", "string name = 1;\n  string color = 20;");
    expect(await differs(painted)).toMatch(
      /^source and lake differ .* the descriptor of t\.v1\.Thing has changed/,
    );
  } finally {
    rmSync(protos, { recursive: true });
  }
});

test("what is refused leaves nothing, and a job that has passed is not looked at again", async () => {
  const lane = await lake.lane();
  const stream = new TestStream("live");
  await lane.land(stream.batch(live(3)));
  const job = bootstrapOf("mended");
  const { context } = lake;
  put("mended", [1_700_000_000_000, 1_700_000_000_001]);
  const refused = { code: "TRB-BULK-VERSIONS" };
  await expect(runBootstrap(context, job, hostOf())).rejects.toMatchObject(refused);
  expect(await sourceOf(context.store, "mended")).toBeUndefined();
  // A file more, too.
  put("mended", [4, 5, 6]);
  const stopped = new AbortController();
  stopped.abort();
  expect(await runBootstrap(context, job, hostOf({ signal: stopped.signal }))).toBe(false);
  expect(await sourceOf(context.store, "mended")).toMatchObject({ manifest: { files: [{}] } });
  // What has come since would refuse it now, and nothing of it has landed yet.
  const late = live(1_700_000_000_000).map((event) => ({ ...event, id: `late-${event.id}` }));
  await lane.land(stream.batch([...late, ...late.map((event) => ({ ...event, id: `more-${event.id}` }))]));
  await lake.settled();
  expect(await runBootstrap(context, job, hostOf())).toBe(true);
  await expect(
    runBootstrap(context, bootstrapOf("other", { source: job.source }), hostOf()),
  ).rejects.toMatchObject(refused);
});
