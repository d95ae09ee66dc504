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
import { rawRoot, rawSpec } from "../ingest/raw-table.js";
import { loadModels } from "../models/project.js";
import { auditTrail } from "../operate/audit-log.js";
import { FileStore } from "../storage/file-store.js";
import { DeltaTable } from "../table/delta-table.js";
import { requireRole } from "../tenancy/http-auth.js";
import { SigningKey } from "../tenancy/signing-key.js";
import { signToken, type TokenInit, TokenVerifier } from "../tenancy/tokens.js";
import { JobDesk } from "./job-desk.js";
import { jobOrder, jobState } from "./jobs/job.js";
import { JobRejects } from "./jobs/rejects.js";
import type { ReportContext } from "./report.js";
import { registerBulk } from "./routes.js";
import { STANDINGS, type Standing } from "./verify/standings.js";
import { keepVerification } from "./verify/verification.js";

vi.mock("../sources/source-process.js", () => import("../../test/support/readers-here.js"));

const folder = mkdtempSync(join(tmpdir(), "tributary-bulk-"));
const at = "2026-01-02T03:04:05Z";
let store: FileStore;
let server: HttpServer;
let key: SigningKey;
let desk: JobDesk;
let duck: Duck;
let context: ReportContext;
/** What a check waits for before it begins. */
let before = async (): Promise<void> => undefined;

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
  const models = loadModels(join(packageRoot, "transforms"));
  const parts = { registry, duck, config, tableOptions: { checkpointEvery: 10 } };
  await registerBulk(server.app, {
    desk,
    verifier,
    checking: async (use) => {
      await before();
      return use(parts);
    },
    reading: (_, use) => use({ name: "live", head: async () => new Map([["0", "0007"]]) }),
    planning: (use) => use({ duck, tableOptions: parts.tableOptions, models }),
  });
  context = { store, ...parts };
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
  accept = "application/json",
): Promise<Answer> {
  const init = { role: "operator", tenants: "*", subject: "olga", expiresIn: 60, ...token } as const;
  const headers = { authorization: `Bearer ${await signToken(key, "tributary", init)}`, accept };
  const url = path.startsWith("/v1/") ? path : `/v1/bootstraps${path}`;
  const options: InjectOptions = { method, url, headers };
  const sent =
    body === undefined
      ? options
      : {
          ...options,
          headers: { ...headers, "content-type": "application/json" },
          payload: typeof body === "string" ? body : JSON.stringify(body),
        };
  const answer = await server.app.inject(sent);
  const isJson = String(answer.headers["content-type"]).startsWith("application/json");
  return {
    status: answer.statusCode,
    body: (isJson ? answer.json() : {}) as Answer["body"],
    text: answer.body,
    headers: answer.headers,
  };
}

interface Answer {
  readonly status: number;
  readonly body: Record<string, unknown> & { error: { code: string; message: string } };
  readonly text: string;
  readonly headers: Readonly<Record<string, unknown>>;
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
  expect(again).toMatchObject({ status: 200, body: started.body });
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
    ["GET", "/hidden/report"],
    ["GET", "/hidden/rejects"],
    ["POST", "/hidden/confirm"],
    ["POST", "/hidden/verify"],
    ["POST", "/v1/replays"],
    ["GET", "/v1/watermarks/scm.v1.File"],
    ["POST", "/hidden/cancel"],
  ] as const;
  for (const [method, path] of routes) {
    const url = path.startsWith("/v1/") ? path : `/v1/bootstraps${path}`;
    const none = await server.app.inject({ method, url });
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

test("jobs that are none, over or of other words are told apart", async () => {
  await there("two");
  for (const id of ["none", "..%2Forders%2Ftwo"]) {
    for (const path of ["", "/report", "/rejects"])
      expect((await ask("GET", `/${id}${path}`)).body.error.code).toBe("TRB-JOB-UNKNOWN");
    expect((await ask("POST", `/${id}/cancel`)).body.error.code).toBe("TRB-JOB-UNKNOWN");
    expect((await ask("POST", `/${id}/verify`)).body.error.code).toBe("TRB-JOB-UNKNOWN");
  }
  expect((await ask("POST", "", { ...asked, id: "two", tenant: "acme" })).body.error.code).toBe(
    "TRB-JOB-EXISTS",
  );
  await desk.jobs.tell("two", jobState.parse({ phase: "done", writtenAt: at }));
  expect(await ask("POST", "/two/pause")).toMatchObject({
    status: 409,
    body: { error: { code: "TRB-JOB-ENDED" } },
  });
});

test("a replay is asked for, once, and is looked at and wished about like every other job", async () => {
  const words = { id: "over", model: "scm.files", action: "repair", tenant: "acme" };
  const limits = { rowsPerSecond: 100 };
  const early = await ask("POST", "/v1/replays", words);
  expect(early).toMatchObject({ status: 404, body: { error: { code: "TRB-TABLE-NOT-FOUND" } } });
  expect((await ask("GET", "/over")).status).toBe(404);
  const type = "scm.v1.File";
  await DeltaTable.openOrCreate(store, rawRoot(type), duck, context.tableOptions, rawSpec(type));
  for (const query of ["", "?dryRun=true"]) {
    const { status, body } = await ask("POST", `/v1/replays${query}`, words);
    expect(status).toBe(404);
    expect(body.error).toMatchObject({
      code: "TRB-TABLE-NOT-FOUND",
      message: expect.stringContaining("`tributary table repair scm.files`"),
    });
  }
  expect((await ask("GET", "/over")).status).toBe(404);
  // Whatever its columns are.
  await DeltaTable.openOrCreate(store, "refined/scm/files", duck, context.tableOptions, rawSpec(type));
  expect(await ask("POST", "/v1/replays?dryRun=true", words)).toMatchObject({
    status: 200,
    body: { dryRun: true, plan: { files: 0, rows: 0, bytes: 0, seconds: 0 } },
  });
  expect((await ask("GET", "/over")).status).toBe(404);
  expect(await ask("POST", "/v1/replays", { ...words, limits })).toMatchObject({
    status: 201,
    body: { kind: "replay", by: "olga", limits, state: { phase: "waiting" } },
  });
  expect((await ask("POST", "/v1/replays", { ...words, limits })).status).toBe(200);
  expect(await ask("POST", "/over/pause")).toMatchObject({ status: 200, body: { wish: "pause" } });
  expect((await ask("GET", "/over/report")).body).toMatchObject({ job: { id: "over" }, replay: null });
  const wrong = [
    [{ ...words, id: "x", model: "scm.nothing" }, "TRB-REPLAY-ORDER", "model"],
    [{ ...words, id: "x", tenant: undefined }, "TRB-REPLAY-ORDER", "tenant"],
    [{ ...words, id: "x", action: "drop" }, "TRB-REQ-INVALID", "action"],
    [{ ...words, id: "x", limits: { cpuShare: 2 } }, "TRB-REQ-INVALID", "cpuShare"],
  ] as const;
  for (const [body, code, field] of wrong) {
    const { error } = (await ask("POST", "/v1/replays", body)).body;
    expect(error).toMatchObject({ code, message: expect.stringContaining(field) });
  }
});

test("a watermark is the stream's end, or further where raw is", async () => {
  const { body } = await ask("GET", "/v1/watermarks/scm.v1.File");
  expect(body).toEqual({ positions: { "live.0": "0007" } });
  expect((await ask("GET", "/v1/watermarks/scm.v1.Nothing")).body.error.code).toBe("TRB-BULK-MAPPING");
});

/** A job that has been verified, has rejects, and has found what its export lacks; its names are somebody's who hopes to be shown. */
async function reported(id: string): Promise<{ readonly tenant: string }> {
  const tenant = '"><script>alert(1)</script>';
  const entity = "a\u202eb<img src=x>&'";
  await there(id);
  const seconds = { landing: 2, verifying: 0.5 };
  const told = { rowsLanded: 3000, rejected: 2, seconds, writtenAt: at, startedAt: at };
  await desk.jobs.tell(id, jobState.parse({ phase: "paused", code: "TRB-RECONCILE-CONFIRM", ...told }));
  const rejects = await JobRejects.open(context, id);
  const bytes = Buffer.from('{"id":"b"}');
  const why = { code: "TRB-EVENT-TENANT" as const, message: "tenant: expected one", offset: undefined };
  const file = { number: 0, shown: "exports/a/<1>.ndjson" };
  await rejects.keep(
    file,
    [1, 2].map((row) => ({ ...why, row, bytes })),
  );
  await rejects.close();
  const events = { rows: 3000, keys: "a".repeat(32), events: "b".repeat(32) };
  const none = Object.fromEntries(STANDINGS.map((one) => [one, 0])) as Record<Standing, number>;
  const model = {
    entities: { ...none, winning: 2999, missing: 1 },
    made: { path: "c".repeat(16) },
    found: { path: "d".repeat(16) },
    differing: { path: 7 },
    equal: false,
  };
  const one = { tenant, equal: false, source: events, raw: events, models: { "scm.files": model } };
  await keepVerification(store, {
    job: id,
    entityType: "scm.v1.File",
    at,
    equal: false,
    rejected: 2,
    source: events,
    raw: { ...events, version: 5 },
    models: { "scm.files": 7 },
    tenants: [one],
    more: 0,
    keys: [{ model: "scm.files", tenant, id: entity, why: "missing" }],
  });
  const some = Array.from({ length: 20 }, (_, i) => ({ tenant: "acme", id: `gone-${i}`, version: "1" }));
  const byTenant = [{ tenant: "acme", entities: 25 }];
  const plan = {
    deletes: 25,
    tenants: 1,
    byTenant,
    some,
    leftAlone: 2,
    digest: "e",
    table: "t",
    version: 41,
    key: "k",
    at,
  };
  await store.put(`jobs/reconciles/${id}.json`, Buffer.from(JSON.stringify(plan)));
  return { tenant };
}

test("a report tells programs all of it, and people on one page that runs and fetches nothing", async () => {
  const { tenant } = await reported("told");
  const json = (await ask("GET", "/told/report")).body;
  expect(json).toMatchObject({
    job: { id: "told", by: "ops" },
    equal: false,
    rejects: [{ code: "TRB-EVENT-TENANT", rows: 2, source: "exports/a/<1>.ndjson", row: 1 }],
    vanished: {
      count: 25,
      asOf: 41,
      leftAlone: 2,
      confirmed: null,
      byTenant: [{ tenant: "acme", entities: 25 }],
    },
    verifications: [{ tenants: [{ tenant, models: { "scm.files": { differing: { path: 7 } } } }] }],
  });
  const page = await ask("GET", "/told/report", undefined, {}, "text/html,*/*;q=0.8");
  expect(page.headers).toMatchObject({
    "content-type": "text/html; charset=utf-8",
    "content-security-policy": expect.stringContaining("default-src 'none'"),
  });
  expect(page.text).not.toMatch(/<script|<img|<link|<[^>]*(src|href)=|\u202e/);
  expect(page.text).toContain("&quot;&gt;&lt;script&gt;alert(1)&lt;/script&gt;");
  expect(page.text).toContain("a\\u202eb&lt;img src=x&gt;&amp;&#39;");
  for (const words of [
    "Source and lake differ for 1 tenant",
    "tributary bootstrap confirm told --count 25 --as-of 41",
    "1,500",
    "gone-3",
    "… and 5 more",
    `${"c".repeat(16)}`,
  ])
    expect(page.text).toContain(words);
  expect(page.text).not.toContain(folder);
});

test("a source that takes long to look at holds up other sources, and nothing that is in the lake", async () => {
  await there("slow");
  let isOver = (): void => undefined;
  const over = new Promise<void>((resolve) => {
    isOver = resolve;
  });
  let began = (): void => undefined;
  const begun = new Promise<void>((resolve) => {
    began = resolve;
  });
  before = () => {
    before = async () => undefined;
    began();
    return over;
  };
  const checked = ask("POST", "?dryRun=true", asked);
  await begun;
  const plan = ask("POST", "/v1/replays?dryRun=true", { model: "scm.files", action: "compare" });
  for (const look of [ask("GET", "/slow/report"), ask("GET", "/slow/rejects"), plan])
    expect((await look).status).toBeLessThan(500);
  expect((await ask("GET", "/v1/watermarks/scm.v1.File")).status).toBe(200);
  isOver();
  expect((await checked).status).toBe(200);
});

test("deletes are confirmed by their number and snapshot, and the job goes on", async () => {
  await reported("lacks");
  for (const [body, message] of [
    [{ count: 24, asOf: 41 }, "expected 25 as of version 41"],
    [{ count: 25, asOf: 40 }, "expected 25 as of version 41"],
    [{ count: 25 }, "asOf"],
  ] as const) {
    const { error } = (await ask("POST", "/lacks/confirm", body)).body;
    expect(error.message).toContain(message);
    expect((await desk.jobs.get("lacks")).state.phase).toBe("paused");
  }
  const { body } = await ask("POST", "/lacks/confirm", { count: 25, asOf: 41 });
  expect(body).toMatchObject({ wish: "run", state: { phase: "waiting" } });
  expect((await ask("GET", "/lacks/report")).body).toMatchObject({ vanished: { confirmed: { by: "olga" } } });
});

test("rejects come page by page, as they were or as lines to be mended", async () => {
  await reported("bad");
  const first = await ask("GET", "/bad/rejects?limit=1");
  expect(first.body).toMatchObject({
    id: "bad",
    rejects: [{ row: 1, code: "TRB-EVENT-TENANT", offset: null }],
  });
  const link = /^<(.+)>; rel="next"$/.exec(String(first.headers.link))?.[1];
  const second = await ask("GET", link!, undefined, {}, "application/x-ndjson");
  expect(JSON.parse(second.text)).toMatchObject({ id: "b", tributary_reject: { row: 2 } });
  expect((await ask("GET", "/bad/rejects?limit=0")).body.error).toMatchObject({ code: "TRB-REQ-INVALID" });
  const done: string[] = [];
  for await (const { action, by, job } of auditTrail(store)) if (job === "bad") done.push(`${action} ${by}`);
  expect(done).toEqual(["bootstrap rejects olga", "bootstrap rejects olga"]);
});
