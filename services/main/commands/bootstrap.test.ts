import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { jobState, type Phase } from "../../bulk/job.js";
import { JobStore } from "../../bulk/job-store.js";
import { FileStore } from "../../storage/file-store.js";
import { runProgram } from "./program.js";

/** What a command wrote. */
let out = "";
let err = "";
let folder: string;
let jobs: JobStore;

beforeEach(async () => {
  out = "";
  err = "";
  folder = mkdtempSync(join(tmpdir(), "tributary-bootstrap-"));
  mkdirSync(join(folder, "lake"));
  jobs = new JobStore(
    await FileStore.open({ folder: join(folder, "lake"), staging: join(folder, "scratch") }),
  );
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
  writeFileSync(join(folder, "mapping.yaml"), "tenant: customer\nentityId: id\nversion: { constant: 0 }\n");
});
afterEach(() => {
  vi.restoreAllMocks();
  process.exitCode = undefined;
  rmSync(folder, { recursive: true, force: true });
});

const run = (...args: string[]) => {
  out = "";
  err = "";
  return runProgram(["bootstrap", ...args, "--data", folder]);
};
const start = (...args: string[]) => run("start", "--source", "exports/a", ...args);
const mapped = () => ["--mapping", join(folder, "mapping.yaml")];
const tell = (phase: Phase, more: object = {}) =>
  jobs.tell("a", jobState.parse({ phase, writtenAt: new Date().toISOString(), ...more }));

describe("a job", () => {
  it("is asked for, shown, wished about, and all of that is in the audit", async () => {
    const words = ["--id", "a", ...mapped(), "--type", "scm.v1.File", "--tenant", "acme", "--detach"];
    expect(await start(...words, "--priority", "-5", "--json")).toBe(0);
    expect(JSON.parse(out)).toMatchObject({
      id: "a",
      source: "exports/a",
      mapping: { tenant: "customer", version: { constant: 0 } },
      entityType: "scm.v1.File",
      tenant: "acme",
      priority: -5,
      rejectLimit: 1000,
      by: expect.stringMatching(/^local:./),
      wish: "run",
      state: { phase: "waiting" },
    });
    await tell("landing", { rowsLanded: 1234, bytes: 200, bytesDone: 50 });
    expect(await run("pause", "a")).toBe(0);
    expect(out).toContain("landing, to be paused");
    expect(await run("status", "a")).toBe(0);
    expect(out).toMatch(/landed +1,234 rows/);
    expect(out).toMatch(/read +50 of 200 bytes \(25 %\)/);
    expect(await run("resume", "a", "--json")).toBe(0);
    expect(JSON.parse(out)).toMatchObject({ id: "a", wish: "run" });
    expect(await run("ls")).toBe(0);
    expect(out).toMatch(/a +bootstrap +exports\/a +landing +25 % +1,234/);
    expect(await run("cancel", "a")).toBe(0);
    expect(out).toContain("landing, to be cancelled");
    expect(await runProgram(["audit", "--data", folder, "--json"])).toBe(0);
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
      if ((await jobs.list()).length > 0) await tell("landing");
      const followed = start("--id", "a", ...mapped());
      await vi.waitFor(() => expect(err).toMatch(/: a\n/));
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
    const followed = start("--id", "a", ...mapped());
    await vi.waitFor(() => expect(err).toContain("asked for: a"));
    process.emit("SIGINT", "SIGINT");
    expect(err).toContain("the job goes on; see `tributary bootstrap status a`");
    await tell("done");
    expect(await followed).toBe(0);
    expect((await jobs.get("a")).wish).toBe("run");
  });

  it("of another's id, of none, and of one that has ended is refused", async () => {
    expect(await start("--id", "a", ...mapped(), "--detach")).toBe(0);
    expect(await start("--id", "a", ...mapped(), "--detach", "--tenant", "b")).toBe(1);
    expect(err).toContain("TRB-JOB-EXISTS");
    expect(await run("status", "b", "--json")).toBe(1);
    expect(JSON.parse(err)).toMatchObject({ error: { code: "TRB-JOB-UNKNOWN" } });
    await tell("done");
    expect(await run("pause", "a")).toBe(1);
    expect(err).toContain("TRB-JOB-ENDED");
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
