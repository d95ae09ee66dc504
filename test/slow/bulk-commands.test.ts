import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { layout } from "../../services/base/paths.js";
import type { Job } from "../../services/bulk/jobs/job.js";
import { JobStore } from "../../services/bulk/jobs/job-store.js";
import { FileStore } from "../../services/storage/file-store.js";
import {
  cli,
  makeToken,
  removeFolder,
  Server,
  temporaryFolder,
  until,
  untilLanded,
} from "../support/stack.js";

/** A bootstrap as an operator runs it: real processes, a pause, a kill, rejects that are mended. */

const FILES = 6;
const ROWS = 400;
const MAPPING = `
tenant: customer
entityId: id
version: revision
payload: { path: name, change_count: changes }
`;
const MiB = 1024 * 1024;

let folder: string;
let data: string;
let server: Server;
let env: NodeJS.ProcessEnv;

beforeAll(async () => {
  folder = await temporaryFolder();
  data = join(folder, "data");
  env = {
    TRIBUTARY_BULK__SOURCES__EXPORTS: join(folder, "exports"),
    TRIBUTARY_BULK__SCRATCH_BYTES: String(64 * MiB),
  };
  // Files of which there is no room for copies of several together are read each by itself.
  const pad = "x".repeat((9 * MiB) / ROWS);
  mkdirSync(join(folder, "exports", "files"), { recursive: true });
  writeFileSync(join(folder, "mapping.yaml"), MAPPING);
  for (let file = 0; file < FILES; file++) {
    const lines = Array.from({ length: ROWS }, (_, row) => {
      const id = `f${file}-${row}`;
      // Two of no customer.
      const customer = file === 4 && row < 2 ? "" : "acme";
      return JSON.stringify({ customer, id, revision: 10 + row, name: `exported/${id}`, changes: row, pad });
    });
    writeFileSync(join(folder, "exports", "files", `${file}.ndjson`), `${lines.join("\n")}\n`);
  }
  server = await Server.start("up", data, env);
});
afterAll(async () => {
  await server?.stop();
  await removeFolder(folder);
});

const bootstrap = (...args: string[]) => cli(["bootstrap", ...args, "--data", data], env);
const words = (id: string, source = "exports/files") => {
  const mapped = ["--mapping", join(folder, "mapping.yaml"), "--type", "scm.v1.File"];
  return ["start", "--source", source, ...mapped, "--id", id];
};
/** A second a file: so that it is met in its midst. */
const one = () => [...words("one"), "--rows-per-second", String(ROWS)];
/** Not by the command, which takes a second of CPU each time that it is asked. */
const status = async (id: string): Promise<Job> => {
  const store = await FileStore.open({ folder: layout(data).lake, staging: join(folder, "reading") });
  return new JobStore(store).get(id);
};
const reached = (id: string, phase: string) =>
  until(`job ${id} to be ${phase}`, async () => (await status(id)).state.phase === phase, 120);

async function files(sql: string): Promise<unknown[][]> {
  const token = await makeToken(data, "analyst", "acme");
  const { stdout, stderr } = await cli(["sql", sql, "--url", server.url, "--token", token, "--json"]);
  if (stdout === "") throw new Error(stderr);
  return (JSON.parse(stdout) as { rows: unknown[][] }).rows;
}

async function publish(events: readonly { id: string; version: number; path?: string }[]): Promise<void> {
  const lines = events.map(({ id, version, path }) =>
    JSON.stringify({
      tenantId: "acme",
      entityType: "scm.v1.File",
      entityId: id,
      operation: path === undefined ? "OPERATION_DELETED" : "OPERATION_UPDATED",
      version: String(version),
      ...(path === undefined ? {} : { payload: { "@type": "type.googleapis.com/scm.v1.File", path } }),
    }),
  );
  const file = join(folder, "live.ndjson");
  writeFileSync(file, `${lines.join("\n")}\n`);
  const token = await makeToken(data, "producer");
  const { code, stderr } = await cli(["publish", file, "--url", server.url, "--token", token, "--no-resume"]);
  if (code !== 0) throw new Error(stderr);
  await untilLanded(data, 120, env);
}

test("an export is tried, brought in beside live events, through a pause and kill -9, once", async () => {
  await publish([
    { id: "f0-0", version: 1000, path: "live/newer" },
    { id: "f0-1", version: 1, path: "live/older" },
    { id: "f0-2", version: 1000 },
  ]);
  const tried = await bootstrap(...one(), "--dry-run");
  expect(tried).toMatchObject({ code: 0, stderr: "" });
  expect(tried.stdout).toContain("it would begin");
  expect((await bootstrap("status", "one")).stderr).toContain("TRB-JOB-UNKNOWN");

  expect((await bootstrap(...one(), "--detach", "--json")).code).toBe(0);
  await until("rows to land", async () => (await status("one")).state.rowsLanded > 0, 120);
  expect((await bootstrap("pause", "one")).code).toBe(0);
  await reached("one", "paused");
  const { rowsLanded } = (await status("one")).state;
  expect(rowsLanded).toBeLessThan(FILES * ROWS - 2);
  expect((await bootstrap("resume", "one")).code).toBe(0);
  await until("more to land", async () => (await status("one")).state.rowsLanded > rowsLanded, 120);
  await server.kill();
  expect((await status("one")).state.phase).not.toBe("done");

  server = await Server.start("up", data, env);
  // The same words once more: who looked away follows it to its end.
  const followed = await bootstrap(...one());
  expect(followed).toMatchObject({ code: 0, stderr: expect.stringContaining("it is there already: one") });
  expect(followed.stdout).toMatch(/phase +done/);
  expect((await status("one")).state).toMatchObject({ rowsLanded: FILES * ROWS - 2, rejected: 2 });
  expect(await files("select count(*) from files")).toEqual([[String(FILES * ROWS - 3)]]);
  expect(
    await files(
      "select entity_id, path from files where entity_id in ('f0-0', 'f0-1', 'f0-2', 'f5-9') order by 1",
    ),
  ).toEqual([
    ["f0-0", "live/newer"],
    ["f0-1", "exported/f0-1"],
    ["f5-9", "exported/f5-9"],
  ]);
  const landed = async () => {
    const { stdout } = await cli(["table", "ls", "--data", data, "--json"], env);
    const { tables } = JSON.parse(stdout) as { tables: { table: string; rows: number }[] };
    return tables.find(({ table }) => table === "raw/scm.v1.File")?.rows;
  };
  expect(await landed()).toBe(FILES * ROWS - 2 + 3);
  expect((await bootstrap(...one())).code).toBe(0);
  expect(await landed()).toBe(FILES * ROWS - 2 + 3);
});

test("rejects are shown, exported, mended, and brought in alone", async () => {
  const { stdout } = await bootstrap("rejects", "one", "--json");
  const { rejects } = JSON.parse(stdout) as { rejects: { row: number; source: string; code: string }[] };
  expect(rejects.map(({ row, source, code }) => [row, source, code])).toEqual([
    [0, "exports/files/4.ndjson", "TRB-EVENT-TENANT"],
    [1, "exports/files/4.ndjson", "TRB-EVENT-TENANT"],
  ]);
  const to = join(folder, "exports", "mended", "a.ndjson");
  expect((await bootstrap("rejects", "export", "one", "--to", to)).stdout).toContain("2 rows written");
  expect(await bootstrap("rejects", "export", "one", "--to", to)).toMatchObject({
    code: 2,
    stderr: expect.stringContaining("--to: expected a file that is not there yet"),
  });
  writeFileSync(to, readFileSync(to, "utf8").replaceAll('"customer":""', '"customer":"acme"'));
  const mended = await bootstrap(...words("two", "exports/mended"));
  expect(mended.code, mended.stderr).toBe(0);
  expect((await status("two")).state).toMatchObject({ rowsLanded: 2, rejected: 0 });
  expect(
    await files("select entity_id, path from files where entity_id like 'f4-_' order by 1 limit 2"),
  ).toEqual([
    ["f4-0", "exported/f4-0"],
    ["f4-1", "exported/f4-1"],
  ]);
  const { stdout: trail } = await cli(["audit", "--data", data, "--json"]);
  const { audit } = JSON.parse(trail) as { audit: { action: string; job: string }[] };
  expect(audit.map(({ action, job }) => `${action} ${job}`)).toEqual([
    "bootstrap start one",
    "bootstrap pause one",
    "bootstrap resume one",
    "bootstrap start one",
    "bootstrap start one",
    "bootstrap rejects one",
    "bootstrap rejects one",
    "bootstrap rejects one",
    "bootstrap start two",
  ]);
});

test("times in ms against live counters are refused before anything lands", async () => {
  const line = { customer: "acme", id: "x", revision: 1_700_000_000_000, name: "x", changes: 1 };
  writeFileSync(join(folder, "exports", "times.ndjson"), `${JSON.stringify(line)}\n`);
  const refused = await bootstrap(...words("times", "exports/times.ndjson"), "--json");
  expect(refused.code).toBe(1);
  expect(JSON.parse(refused.stderr)).toMatchObject({
    error: { code: "TRB-BULK-VERSIONS", message: expect.stringContaining("about 10^12 in the export") },
  });
  expect((await bootstrap("status", "times")).stderr).toContain("TRB-JOB-UNKNOWN");
});

test("what an export lacks is deleted once its numbers are confirmed; a report tells, and it can be verified later", async () => {
  await publish([
    { id: "here", version: 1, path: "live/here" },
    { id: "gone", version: 1, path: "live/gone" },
  ]);
  const watermark = join(folder, "watermark.json");
  writeFileSync(watermark, (await bootstrap("watermark", "--type", "scm.v1.File")).stdout);
  await publish([{ id: "later", version: 1, path: "live/later" }]);
  mkdirSync(join(folder, "exports", "lacks"));
  const all = await files("select entity_id from files where entity_id not in ('gone', 'later')");
  const lines = all.map(([id]) =>
    JSON.stringify({ customer: "acme", id, revision: 5000, name: `again/${id}`, changes: 1 }),
  );
  const exported = join(folder, "exports", "lacks", "a.ndjson");
  writeFileSync(exported, lines.join("\n"));
  const paused = await bootstrap(...words("lacks", "exports/lacks"), "--reconcile", watermark);
  expect(paused).toMatchObject({
    code: 1,
    stdout: expect.stringContaining("1 entities of 1 tenants would be deleted"),
  });
  const { stdout } = await bootstrap("report", "lacks");
  const [, command = ""] = /tributary bootstrap (confirm lacks --count 1 --as-of \d+)/.exec(stdout) ?? [];
  expect(stdout).toMatch(/acme +gone +1/);
  expect((await bootstrap("confirm", "lacks", "--count", "2", "--as-of", "0")).stderr).toContain(
    "expected 1 as of",
  );
  expect((await bootstrap(...command.split(" "))).code).toBe(0);
  await reached("lacks", "done");
  expect(
    await files("select entity_id from files where entity_id in ('here', 'gone', 'later') order by 1"),
  ).toEqual([["here"], ["later"]]);
  expect((await bootstrap("report", "lacks")).stdout).toContain("All of the source is in the lake");
  expect(await bootstrap("verify", "lacks")).toMatchObject({ code: 0 });
  writeFileSync(exported, lines.slice(1).join("\n"));
  const changed = await bootstrap("verify", "lacks");
  expect(changed).toMatchObject({ code: 1, stdout: expect.stringContaining("TRB-SOURCE-CHANGED") });
});
