import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { jobOrder, jobState, type Phase } from "../../bulk/jobs/job.js";
import { JobStore } from "../../bulk/jobs/job-store.js";
import { FileStore } from "../../storage/file-store.js";
import { runProgram } from "./program.js";

vi.mock("../../sources/source-process.js", () => import("../../../test/support/readers-here.js"));

/** What a command wrote. */
let out = "";
let err = "";
let folder: string;
let store: FileStore;
let jobs: JobStore;

beforeEach(async () => {
  out = "";
  err = "";
  folder = mkdtempSync(join(tmpdir(), "tributary-bootstrap-"));
  mkdirSync(join(folder, "data/lake"), { recursive: true });
  store = await FileStore.open({ folder: join(folder, "data/lake"), staging: join(folder, "scratch") });
  jobs = new JobStore(store);
  vi.spyOn(console, "log").mockImplementation((text) => {
    out += `${text}\n`;
  });
  vi.spyOn(console, "error").mockImplementation((text) => {
    err += `${text}\n`;
  });
  vi.spyOn(process.stderr, "write").mockImplementation((text) => {
    err += text;
    return true;
  });
  const mapping =
    "tenant: customer\nentityId: id\nversion: rev\npayload: { path: id, change_count: changes }\n";
  writeFileSync(join(folder, "mapping.yaml"), mapping);
  mkdirSync(join(folder, "exports/a"), { recursive: true });
  writeFileSync(
    join(folder, "exports/a/1.ndjson"),
    exported.map((row) => `${JSON.stringify(row)}\n`).join(""),
  );
  writeFileSync(
    join(folder, "tributary.yaml"),
    `bulk: { sources: { exports: ${join(folder, "exports")} } }\n`,
  );
});
afterEach(() => {
  vi.restoreAllMocks();
  process.exitCode = undefined;
  rmSync(folder, { recursive: true, force: true });
});

/** What an application might export; the last one is of no tenant. */
const exported = [
  { customer: "acme", id: "a.txt", rev: 3, changes: 7, more: true },
  { customer: "acme", id: "b.txt", rev: 1, changes: 1 },
  { id: "c.txt", rev: 1, changes: 1 },
];

const PATIENCE = { timeout: 20_000 };
const data = () => join(folder, "data");
const run = (...args: string[]) => {
  out = "";
  err = "";
  return runProgram(["bootstrap", ...args, "--data", data(), "--config", join(folder, "tributary.yaml")]);
};
const start = (...args: string[]) => run("start", "--source", "exports/a", "--type", "scm.v1.File", ...args);
/** As `start` would ask for it: it is there then, and its source is not looked at. */
const asked = () => {
  const payload = { path: "id", change_count: "changes" };
  const mapping = { tenant: "customer", entityId: "id", version: "rev", payload };
  const words = { kind: "bootstrap", id: "a", source: "exports/a", entityType: "scm.v1.File", mapping };
  return jobs.order(jobOrder.parse({ ...words, by: "ops", at: "2026-01-02T03:04:05Z" }));
};
const mapped = () => ["--mapping", join(folder, "mapping.yaml")];
const tell = (phase: Phase, more: object = {}) =>
  jobs.tell("a", jobState.parse({ phase, writtenAt: new Date().toISOString(), ...more }));

describe("a job", () => {
  it("is asked for, shown, wished about, and all of that is in the audit", async () => {
    const words = ["--id", "a", ...mapped(), "--tenant", "acme", "--detach"];
    expect(await start(...words, "--priority", "-5", "--through", "queue", "--json")).toBe(0);
    expect(JSON.parse(out)).toMatchObject({
      id: "a",
      source: "exports/a",
      mapping: { tenant: "customer", version: "rev" },
      entityType: "scm.v1.File",
      tenant: "acme",
      priority: -5,
      through: "queue",
      rejectLimit: 1000,
      by: expect.stringMatching(/^local:./),
      wish: "run",
      state: { phase: "waiting" },
    });
    const waiting = { rowsWaiting: 2345, waitingSince: new Date(Date.now() - 60_000).toISOString() };
    await tell("landing", { rowsLanded: 1234, bytes: 200, bytesDone: 50, ...waiting });
    expect(await run("pause", "a")).toBe(0);
    expect(out).toContain("landing, to be paused");
    expect(await run("status", "a")).toBe(0);
    expect(out).toMatch(/landed +1,234 rows/);
    expect(out).toMatch(/waiting +2,345 rows in the import queue, for up to (60|1)/);
    expect(out).toMatch(/read +50 of 200 bytes \(25 %\)/);
    expect(await run("resume", "a", "--json")).toBe(0);
    expect(JSON.parse(out)).toMatchObject({ id: "a", wish: "run" });
    expect(await run("ls")).toBe(0);
    expect(out).toMatch(/a +bootstrap +exports\/a +landing +25 % +1,234/);
    expect(await run("cancel", "a")).toBe(0);
    expect(out).toContain("landing, to be cancelled");
    expect(await runProgram(["audit", "--data", data(), "--json"])).toBe(0);
    const { audit } = JSON.parse(out.slice(out.indexOf("{"))) as { audit: { action: string }[] };
    expect(audit.map(({ action }) => action)).toEqual([
      "bootstrap start",
      "bootstrap pause",
      "bootstrap resume",
      "bootstrap cancel",
    ]);
    expect(audit[0]).toMatchObject({ job: "a", tenant: "acme", source: "exports/a" });
  });

  it("is followed until it ends, is paused or has failed, and the exit code says which", async () => {
    const ends: [Phase, number, string][] = [
      ["paused", 1, "TRB-JOB-ENDED: too many rejects"],
      ["failed", 1, "failed"],
      ["done", 0, "done"],
    ];
    for (const [phase, code, words] of ends) {
      await asked();
      await tell("landing");
      const followed = start("--id", "a", ...mapped());
      await vi.waitFor(() => expect(err).toContain("it is there already: a"), PATIENCE);
      await tell(phase, { code: "TRB-JOB-ENDED", reason: "too many rejects", rowsLanded: 7 });
      expect(await followed).toBe(code);
      expect(out).toContain(words);
      expect(out).toMatch(/landed +7 rows/);
      process.exitCode = undefined;
    }
    // Nothing is asked for twice.
    expect((await jobs.list()).length).toBe(1);
  });

  it("goes on when who follows it is stopped, and says how to look at it again", async () => {
    vi.spyOn(process, "kill").mockReturnValue(true);
    await asked();
    const followed = start("--id", "a", ...mapped());
    await vi.waitFor(() => expect(err).toContain("it is there already: a"), PATIENCE);
    process.emit("SIGINT", "SIGINT");
    expect(err).toContain("the job goes on; see `tributary bootstrap status a`");
    await tell("done");
    expect(await followed).toBe(0);
    expect((await jobs.get("a")).wish).toBe("run");
  });

  it("of another's id, of none, and of one that has ended is refused", async () => {
    await asked();
    expect(await start("--id", "a", ...mapped(), "--detach", "--tenant", "b")).toBe(1);
    expect(err).toContain("TRB-JOB-EXISTS");
    expect(await run("status", "b", "--json")).toBe(1);
    expect(JSON.parse(err)).toMatchObject({ error: { code: "TRB-JOB-UNKNOWN" } });
    await tell("done");
    expect(await run("pause", "a")).toBe(1);
    expect(err).toContain("TRB-JOB-ENDED");
  });
});

describe("a dry run", () => {
  it("shows what would land and what would be rejected, and changes nothing", async () => {
    expect(await start(...mapped(), "--dry-run")).toBe(0);
    expect(out).toContain("exports/a: ndjson, 1 file, ");
    expect(out).toContain("bytes, 3 rows");
    expect(out).toContain("of the first rows 2 would land, 1 be rejected");
    expect(out).toMatch(/acme +a\.txt +CREATED +3 +\{"path":"a\.txt","changeCount":7\}/);
    expect(out).toMatch(/1 +TRB-EVENT-TENANT +tenant: expected .* +a\/1\.ndjson:2/);
    expect(out).toContain("columns that nothing is mapped to: more");
    expect(out).toContain("it would begin");
    expect(await jobs.list()).toEqual([]);
  });

  it("tells why a job would be refused, as the job's start does", async () => {
    expect(await start(...mapped(), "--tenant", "zeta", "--dry-run", "--json")).toBe(1);
    expect(JSON.parse(out)).toMatchObject({
      dryRun: true,
      rows: 3,
      rowsExact: true,
      sample: { rows: 0, rejected: 3 },
      refusals: [{ code: "TRB-BULK-MAPPING", message: expect.stringContaining("TRB-BULK-TENANT") }],
    });
    expect(await start(...mapped(), "--tenant", "zeta", "--detach")).toBe(1);
    expect(err).toContain("TRB-BULK-MAPPING");
    const wrong: [string[], string][] = [
      [["--source", "nowhere/a"], "TRB-SOURCE-ROOT"],
      [["--source", "exports/../a"], "TRB-SOURCE-PATH"],
      [["--source", "exports/b"], "TRB-SOURCE-EMPTY"],
      [["--type", "scm.v1.Nothing"], "TRB-BULK-MAPPING: entityType"],
    ];
    for (const [args, words] of wrong) {
      expect(await start(...mapped(), ...args, "--detach"), words).toBe(1);
      expect(err).toContain(words);
    }
    expect(await jobs.list()).toEqual([]);
  });
});

describe("what is asked for wrongly ends with 2 and names the field", () => {
  it.each([
    [["--id", "A B"], "id"],
    [["--mapping", "nosuch.yaml"], "--mapping"],
    [["--delimiter", "ab"], "csv.delimiter"],
    [["--priority", "101"], "--priority"],
    [["--reject-limit", "-1"], "--reject-limit"],
    [["--format", "xml"], "--format"],
    [["--cpu-share", "1.5"], "--cpu-share"],
    [["--rows-per-second", "0"], "--rows-per-second"],
    [["--reconcile", "nosuch.json"], "--reconcile"],
    [["--reconcile", '{"version":-1}'], "reconcile.watermark"],
  ])("%j", async (args, field) => {
    expect(await start("--detach", ...args)).toBe(2);
    expect(err).toContain(field);
    expect(await jobs.list()).toEqual([]);
  });

  it("a mapping of another shape", async () => {
    writeFileSync(join(folder, "mapping.yaml"), "tenant: customer\nid: id\n");
    expect(await start("--detach", ...mapped(), "--json")).toBe(2);
    expect(JSON.parse(err).error.message).toMatch(/mapping/);
  });
});

describe("what an export lacks", () => {
  it("is asked for with a watermark, as JSON or as a file of it, beside limits", async () => {
    const positions = { "embedded-1.0": "0007" };
    writeFileSync(join(folder, "watermark.json"), JSON.stringify({ positions }));
    const file = ["--reconcile", join(folder, "watermark.json")];
    const limits = ["--rows-per-second", "1000", "--cpu-share", "0.25"];
    expect(await start(...mapped(), "--detach", "--json", ...file, ...limits)).toBe(0);
    expect(JSON.parse(out)).toMatchObject({
      reconcile: { watermark: { positions } },
      limits: { rowsPerSecond: 1000, cpuShare: 0.25 },
    });
  });

  it("is confirmed by numbers, which are told where they are others", async () => {
    await asked();
    await tell("paused", { code: "TRB-RECONCILE-CONFIRM", reason: "3 entities" });
    expect(await run("confirm", "a", "--count", "3", "--as-of", "7")).toBe(1);
    expect(err).toContain("the job has found none to be confirmed yet");
    const plan = {
      deletes: 3,
      tenants: 1,
      byTenant: [],
      some: [],
      leftAlone: 0,
      digest: "d",
      table: "t",
      version: 8,
      key: "k",
    };
    await store.put(
      "jobs/reconciles/a.json",
      Buffer.from(JSON.stringify({ ...plan, at: "2026-01-02T03:04:05Z" })),
    );
    expect(await run("confirm", "a", "--count", "3", "--as-of", "7")).toBe(1);
    expect(err).toContain("expected 3 as of version 8");
    expect(await run("report", "a")).toBe(0);
    expect(out).toContain("tributary bootstrap confirm a --count 3 --as-of 8");
    expect((await jobs.get("a")).state.phase).toBe("paused");
    expect(await run("confirm", "a", "--count", "3", "--as-of", "8")).toBe(0);
    expect(out).toMatch(/phase +waiting/);
  });
});

describe("a report", () => {
  it("is text, JSON, or a page in a file of its own", async () => {
    await asked();
    expect(await run("report", "a")).toBe(0);
    expect(out).toContain("Bootstrap a: Nobody has compared source and lake yet; the job is waiting");
    expect(await run("report", "a", "--json")).toBe(0);
    expect(JSON.parse(out)).toMatchObject({ job: { id: "a" }, equal: null, verifications: [] });
    const page = join(folder, "report.html");
    expect(await run("report", "a", "--html", page)).toBe(0);
    expect(readFileSync(page, "utf8")).toMatch(/^<!doctype html>.*Bootstrap a/s);
    expect(await run("report", "a", "--html", page)).toBe(2);
    expect(err).toContain("--html");
    expect(await run("verify", "a")).toBe(1);
    expect(err).toContain("TRB-VERIFY-NOTHING");
  });
});
