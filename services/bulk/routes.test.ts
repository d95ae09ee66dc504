import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { InjectOptions } from "fastify";
import { pino } from "pino";
import { Registry } from "prom-client";
import { afterAll, beforeAll, expect, test, vi } from "vitest";
import { loadConfig } from "../base/config.js";
import { Duck } from "../base/duckdb.js";
import { buildServer, type HttpServer } from "../base/http.js";
import { packageRoot } from "../base/paths.js";
import { ProtoRegistry } from "../contracts/registry.js";
import { auditTrail } from "../operate/audit-log.js";
import { FileStore } from "../storage/file-store.js";
import { requireRole } from "../tenancy/http-auth.js";
import { SigningKey } from "../tenancy/signing-key.js";
import { signToken, type TokenInit, TokenVerifier } from "../tenancy/tokens.js";
import { JobDesk } from "./job-desk.js";
import { jobOrder, jobState } from "./jobs/job.js";
import { registerBulk } from "./routes.js";

vi.mock("../sources/source-process.js", () => import("../../test/support/readers-here.js"));

const folder = mkdtempSync(join(tmpdir(), "tributary-bulk-"));
const at = "2026-01-02T03:04:05Z";
let store: FileStore;
let server: HttpServer;
let key: SigningKey;
let desk: JobDesk;
let duck: Duck;

beforeAll(async () => {
  store = await FileStore.open({ folder: join(folder, "data/lake"), staging: join(folder, "data/staging") });
  mkdirSync(join(folder, "exports/a"), { recursive: true });
  const row = { customer: "acme", id: "a.txt", rev: 3, path: "a.txt" };
  writeFileSync(join(folder, "exports/a/1.ndjson"), `${JSON.stringify(row)}\n{"id":"b"}\n`);
  const sources = { exports: join(folder, "exports") };
  const config = loadConfig({ data: join(folder, "data"), bulk: { sources } }, { env: {} });
  key = await SigningKey.openOrCreate(join(folder, "keys"));
  const verifier = new TokenVerifier(key, "tributary");
  const log = pino({ level: "silent" });
  const guardMetrics = requireRole(verifier, "operator");
  server = await buildServer({ log, metrics: new Registry(), limits: config.http, guardMetrics });
  duck = await Duck.create({ memoryBytes: 256 * 1024 * 1024 });
  desk = new JobDesk(store);
  const registry = ProtoRegistry.load([join(packageRoot, "proto")]);
  const parts = { registry, duck, config, tableOptions: { checkpointEvery: 10 } };
  await registerBulk(server.app, { desk, verifier, checking: (use) => use(parts) });
});
afterAll(async () => {
  await server.drain();
  duck.close();
  rmSync(folder, { recursive: true });
});

async function ask(
  method: "GET" | "POST",
  path: string,
  body?: unknown,
  token: Partial<TokenInit> = {},
): Promise<{ status: number; body: Record<string, unknown> & { error: { code: string; message: string } } }> {
  const init = { role: "operator", tenants: "*", subject: "olga", expiresIn: 60, ...token } as const;
  const headers = { authorization: `Bearer ${await signToken(key, "tributary", init)}` };
  const options: InjectOptions = { method, url: `/v1/bootstraps${path}`, headers };
  const sent =
    body === undefined
      ? options
      : {
          ...options,
          headers: { ...headers, "content-type": "application/json" },
          payload: typeof body === "string" ? body : JSON.stringify(body),
        };
  const answer = await server.app.inject(sent);
  return { status: answer.statusCode, body: answer.json() };
}

const asked = {
  id: "one",
  source: "exports/a",
  entityType: "scm.v1.File",
  mapping: { tenant: "customer", entityId: "id", version: "rev" },
};
const there = (id: string, kind: "bootstrap" | "replay" = "bootstrap") =>
  desk.jobs.order(
    jobOrder.parse(
      kind === "bootstrap"
        ? { ...asked, kind, id, by: "ops", at }
        : { kind, id, by: "ops", at, model: "scm.files", action: "compare" },
    ),
  );

test("an export is tried, asked for once, looked at and wished about, and the audit says by whom", async () => {
  const tried = await ask("POST", "?dryRun=true", asked);
  expect(tried).toMatchObject({
    status: 200,
    body: {
      dryRun: true,
      rows: 2,
      sample: { rows: 1, rejected: 1 },
      preview: [{ tenant: "acme", entityId: "a.txt", version: "3", payload: { path: "a.txt" } }],
      rejects: [{ code: "TRB-EVENT-TENANT", rows: 1, file: "a/1.ndjson", row: 1 }],
      refusals: [],
    },
  });
  expect((await ask("GET", "")).body).toEqual({ jobs: [] });
  const started = await ask("POST", "", asked);
  expect(started).toMatchObject({
    status: 201,
    body: { id: "one", mapping: asked.mapping, by: "olga", wish: "run", state: { phase: "waiting" } },
  });
  const again = await ask("POST", "", asked);
  expect(again).toEqual({ status: 200, body: started.body });
  expect(await ask("POST", "/one/pause")).toMatchObject({ status: 200, body: { wish: "pause" } });
  expect(await ask("GET", "/one")).toMatchObject({ status: 200, body: { id: "one", wish: "pause" } });
  expect(await ask("POST", "/one/resume", {})).toMatchObject({ status: 200, body: { wish: "run" } });
  expect(await ask("POST", "/one/cancel")).toMatchObject({ status: 200, body: { wish: "cancel" } });
  expect((await ask("GET", "")).body).toMatchObject({ jobs: [{ id: "one" }] });
  const done: string[] = [];
  for await (const { action, by, job } of auditTrail(store)) done.push(`${action} ${job} ${by}`);
  const words = ["start", "start", "pause", "resume", "cancel"];
  expect(done).toEqual(words.map((word) => `bootstrap ${word} one olga`));
});

test("nobody but an operator for all tenants gets anything, nor learns what jobs there are", async () => {
  await there("hidden");
  const routes = [
    ["POST", ""],
    ["GET", ""],
    ["GET", "/hidden"],
    ["POST", "/hidden/cancel"],
  ] as const;
  for (const [method, path] of routes) {
    const none = await server.app.inject({ method, url: `/v1/bootstraps${path}` });
    expect([none.statusCode, none.json().error.code]).toEqual([401, "TRB-AUTH-MISSING"]);
    for (const role of ["analyst", "producer"] as const) {
      expect((await ask(method, path, undefined, { role })).body.error.code).toBe("TRB-AUTH-ROLE");
    }
    const bound = await ask(method, path, undefined, { tenants: ["acme"] });
    expect(bound).toMatchObject({ status: 403, body: { error: { code: "TRB-AUTH-TENANT" } } });
  }
  expect((await desk.jobs.get("hidden")).wish).toBe("run");
});

test.each([
  ["no JSON", "{", "TRB-REQ-UNREADABLE", "body"],
  ["no source", { id: "x" }, "TRB-REQ-INVALID", "source"],
  ["a field that is none", { ...asked, sources: "x" }, "TRB-REQ-INVALID", "sources"],
  ["who and when", { ...asked, by: "root" }, "TRB-REQ-INVALID", "by"],
  ["an id that is none", { ...asked, id: "../x" }, "TRB-REQ-INVALID", "id"],
  ["a root that is not configured", { ...asked, id: "x", source: "etc/passwd" }, "TRB-SOURCE-ROOT", "source"],
  ["a way out of its root", { ...asked, id: "x", source: "exports/../x" }, "TRB-SOURCE-PATH", "exports"],
  ["nothing there", { ...asked, id: "x", source: "exports/b" }, "TRB-SOURCE-EMPTY", "exports/b"],
])("%s is refused, and told with the field", async (_, body, code, field) => {
  const { body: answer } = await ask("POST", "", body);
  expect(answer.error).toMatchObject({ code, message: expect.stringContaining(field) });
  expect(JSON.stringify(answer)).not.toContain(folder);
  expect(await desk.jobs.has("x")).toBe(false);
});

test("a dry run that is not spelled so begins nothing", async () => {
  const { body } = await ask("POST", "?dryRun=yes", { ...asked, id: "dry" });
  expect(body.error).toMatchObject({ code: "TRB-REQ-INVALID", message: "dryRun: expected true or false" });
  expect(await desk.jobs.has("dry")).toBe(false);
});

test("jobs that are none, of another kind, over or of other words are told apart", async () => {
  await there("two");
  await there("again", "replay");
  for (const id of ["none", "again", "..%2Forders%2Ftwo"]) {
    expect((await ask("GET", `/${id}`)).body.error.code).toBe("TRB-JOB-UNKNOWN");
    expect((await ask("POST", `/${id}/cancel`)).body.error.code).toBe("TRB-JOB-UNKNOWN");
  }
  expect((await desk.jobs.get("again")).wish).toBe("run");
  expect((await ask("POST", "", { ...asked, id: "two", tenant: "acme" })).body.error.code).toBe(
    "TRB-JOB-EXISTS",
  );
  await desk.jobs.tell("two", jobState.parse({ phase: "done", writtenAt: at }));
  expect(await ask("POST", "/two/pause")).toMatchObject({
    status: 409,
    body: { error: { code: "TRB-JOB-ENDED" } },
  });
});
