import { afterEach, beforeEach, expect, test } from "vitest";
import { startTestBus, type TestBus } from "../../test/support/bus-server.js";
import { CODES } from "./codes.js";
import { TributaryError } from "./errors.js";

let bus: TestBus;
let reason: string | undefined;
beforeEach(async () => {
  reason = undefined;
  bus = await startTestBus({}, { notReady: () => reason });
  bus.server.app.get("/fault", async () => {
    throw new Error("secret internals");
  });
  bus.server.app.get("/conflict", async () => {
    throw new TributaryError("TRB-TABLE-NOT-FOUND", "no table of that name", { details: { hint: 1 } });
  });
  bus.server.app.post(
    "/typed",
    { schema: { body: { type: "object", required: ["sql"], properties: { sql: { type: "string" } } } } },
    async () => ({ ok: true }),
  );
});
afterEach(() => bus.close());

const get = (url: string, headers = {}) => bus.server.app.inject({ url, headers });

test("health and readiness are open, and readiness says why not", async () => {
  expect((await get("/healthz")).json()).toEqual({ status: "ok" });
  expect((await get("/readyz")).json()).toEqual({ status: "ready" });
  reason = "the stream recovers";
  const reply = await get("/readyz");
  expect([reply.statusCode, reply.json()]).toEqual([
    503,
    { status: "not ready", reason: "the stream recovers" },
  ]);
  expect((await get("/healthz")).statusCode).toBe(200);
});

test("no answer is kept by what stands between, or taken for another type than it says", async () => {
  for (const url of ["/healthz", "/no/such/route", "/docs/json"]) {
    const { headers } = await get(url);
    expect([headers["cache-control"], headers["x-content-type-options"]]).toEqual(["no-store", "nosniff"]);
  }
});

test("metrics need an operator", async () => {
  expect((await get("/metrics")).json()).toMatchObject({ error: { code: "TRB-AUTH-MISSING" } });
  for (const role of ["producer", "analyst"] as const) {
    const reply = await get("/metrics", { authorization: await bus.bearer({ role }) });
    expect([reply.statusCode, reply.json()]).toMatchObject([403, { error: { code: "TRB-AUTH-ROLE" } }]);
  }
  expect((await get("/metrics", { authorization: await bus.bearer({ role: "operator" }) })).statusCode).toBe(
    200,
  );
});

test.each([
  ["GET", "/no/such/route", 404, "TRB-REQ-NOT-FOUND"],
  ["DELETE", "/v1/events", 404, "TRB-REQ-NOT-FOUND"],
  ["GET", "/%zz", 404, "TRB-REQ-NOT-FOUND"],
  ["GET", "/fault", 500, "TRB-INTERNAL"],
  ["GET", "/conflict", 404, "TRB-TABLE-NOT-FOUND"],
  ["POST", "/typed", 400, "TRB-REQ-INVALID"],
] as const)("%s %s is answered %i with the error body", async (method, url, status, code) => {
  const reply = await bus.server.app.inject({
    method,
    url,
    ...(method === "POST" && { payload: { sql: [] } }),
  });
  expect(reply.statusCode).toBe(status);
  expect(reply.headers["content-type"]).toBe("application/json; charset=utf-8");
  const { error } = reply.json<{ error: { code: string; message: string } }>();
  expect(error.code).toBe(code);
  expect(error.message).not.toBe("");
  expect(reply.payload).not.toContain("secret internals");
  if (url !== "/%zz") expect(reply.headers["x-request-id"]).toMatch(/^[0-9a-f-]{36}$/);
});

test("bodies that other routes read fail with the same codes", async () => {
  const typed = (payload: string, type: string) =>
    bus.server.app.inject({ method: "POST", url: "/typed", payload, headers: { "content-type": type } });
  expect((await typed("{", "application/json")).json()).toMatchObject({
    error: { code: "TRB-REQ-UNREADABLE" },
  });
  expect((await typed("x", "text/csv")).json()).toMatchObject({ error: { code: "TRB-REQ-CONTENT-TYPE" } });
  const large = JSON.stringify({ sql: "x".repeat(2_000_000) });
  expect((await typed(large, "application/json")).json()).toMatchObject({
    error: { code: "TRB-REQ-TOO-LARGE" },
  });
});

test("the documentation lists every route and every code", async () => {
  const document = (await get("/docs/json")).json<{
    openapi: string;
    info: { description: string };
    paths: Record<
      string,
      Record<string, { responses: Record<string, unknown>; requestBody?: { content: object } }>
    >;
  }>();
  expect(document.openapi).toMatch(/^3\./);
  expect(Object.keys(document.paths).sort()).toEqual([
    "/conflict",
    "/fault",
    "/healthz",
    "/metrics",
    "/readyz",
    "/typed",
    "/v1/events",
    "/v1/uploads",
  ]);
  const publish = document.paths["/v1/events"]!.post!;
  expect(Object.keys(publish.requestBody!.content)).toEqual([
    "application/json",
    "application/x-protobuf",
    "application/x-ndjson",
  ]);
  expect(Object.keys(publish.responses)).toEqual([
    "200",
    "400",
    "401",
    "403",
    "408",
    "413",
    "415",
    "429",
    "503",
  ]);
  for (const [code, { status, remedy }] of Object.entries(CODES)) {
    expect(document.info.description).toContain(`\`${code}\` | ${status} |`);
    expect(document.info.description).toContain(remedy);
  }
});

test("the documentation's page and all it loads come from this server, and nothing else may be loaded", async () => {
  const page = await get("/docs");
  expect(page.statusCode).toBe(200);
  expect(page.headers["content-security-policy"]).toMatch(/^default-src 'none'; script-src 'self';/);
  expect(page.headers["content-security-policy"]).not.toMatch(/https?:|\*|unsafe-eval|script-src[^;]*unsafe/);
  expect(page.payload).not.toMatch(/<script>|(src|href)="(https?:)?\/\//);
  const assets = [...page.payload.matchAll(/(?:src|href)="([^"]+)"/g)].map(([, path]) => path!);
  expect(assets.length).toBeGreaterThan(4);
  for (const asset of assets) expect([asset, (await get(asset)).statusCode]).toEqual([asset, 200]);
  // The rest of the server is under no such policy.
  expect((await get("/healthz")).headers["content-security-policy"]).toBeUndefined();
});

test("a server that drains is not ready, answers new work with its code, and is alive", async () => {
  const release = bus.stream.hold();
  const url = await bus.server.listen("127.0.0.1", 0);
  const kept = await fetch(`${url}/healthz`);
  expect(kept.status).toBe(200);
  const drained = bus.server.drain();
  expect(bus.server.draining).toBe(true);
  expect(bus.server.drain()).toBe(drained);
  release();
  await drained;
  await expect(fetch(`${url}/healthz`)).rejects.toThrow();
});
