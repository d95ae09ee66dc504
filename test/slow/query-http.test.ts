import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pino } from "pino";
import { Registry } from "prom-client";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { loadConfig } from "../../services/base/config.js";
import { buildServer, type HttpServer } from "../../services/base/http.js";
import { registerQuery } from "../../services/query/routes.js";
import { requireRole } from "../../services/tenancy/http-auth.js";
import { SigningKey } from "../../services/tenancy/signing-key.js";
import { signToken, type TokenInit, TokenVerifier } from "../../services/tenancy/tokens.js";
import { asker, createLake, leaks, others, type TestLake } from "../support/query-lake.js";

const folder = mkdtempSync(join(tmpdir(), "query-"));
let lake: TestLake;
let server: HttpServer;
let key: SigningKey;
let query: { close(): Promise<void> };
const metrics = new Registry();

beforeAll(async () => {
  lake = await createLake([asker, ...others]);
  key = await SigningKey.openOrCreate(join(folder, "keys"));
  const verifier = new TokenVerifier(key, "tributary");
  const log = pino({ level: "silent" });
  const config = loadConfig({ query: { maxRows: 500 } }, { env: {} });
  const guardMetrics = requireRole(verifier, "operator");
  server = await buildServer({ log, metrics, limits: config.http, guardMetrics });
  query = await registerQuery(server.app, { catalog: lake, verifier, config, metrics, log });
});

afterAll(async () => {
  await server.drain();
  await query.close();
  lake.close();
  rmSync(folder, { recursive: true });
});

const bearer = async (token: Partial<TokenInit> = {}) =>
  `Bearer ${await signToken(key, "tributary", { role: "analyst", tenants: [asker.id], subject: "test", expiresIn: 60, ...token })}`;

async function post(
  body: unknown,
  options: { token?: Partial<TokenInit>; accept?: string; search?: string; authorization?: string } = {},
) {
  return server.app.inject({
    method: "POST",
    url: `/v1/query${options.search ?? ""}`,
    headers: {
      authorization: options.authorization ?? (await bearer(options.token)),
      "content-type": "application/json",
      ...(options.accept === undefined ? {} : { accept: options.accept }),
    },
    payload: JSON.stringify(body),
  });
}

describe("POST /v1/query", () => {
  test("answers with columns, rows, count, time and snapshot", async () => {
    const answer = await post({ sql: "select path, change_count from files order by entity_id limit 2" });
    expect(answer.statusCode).toBe(200);
    expect(answer.headers["content-type"]).toContain("application/json");
    const body = answer.json();
    expect(Object.keys(body)).toEqual(["columns", "rows", "rowCount", "elapsedMs", "snapshot"]);
    expect(body.columns).toEqual([
      { name: "path", type: "VARCHAR" },
      { name: "change_count", type: "INTEGER" },
    ]);
    expect(body.rows).toEqual([
      ["src/quokka/dir0/file0.ts", 0],
      ["src/quokka/dir1/file1.ts", 7],
    ]);
    expect(body.rowCount).toBe(2);
    expect(body.elapsedMs).toBeGreaterThan(0);
    expect(body.snapshot).toMatch(/^[A-Za-z0-9_-]{40,}$/);
  });

  test("an empty answer is one", async () => {
    expect((await post({ sql: "select path from files where false" })).json()).toMatchObject({
      rows: [],
      rowCount: 0,
    });
  });

  test("64-bit integers and decimals are text, or numbers where asked for", async () => {
    const sql = "select count(*) as n, sum(cost) as c, 9223372036854775807 as big from issues";
    expect((await post({ sql })).json().rows[0]).toEqual([
      "120",
      expect.stringMatching(/^\d+\.\d\d$/),
      "9223372036854775807",
    ]);
    const [n, c] = (await post({ sql }, { search: "?numbers=js" })).json().rows[0];
    expect(n).toBe(120);
    expect(typeof c).toBe("number");
    expect((await post({ sql }, { search: "?numbers=python" })).json().error.code).toBe("TRB-REQ-INVALID");
  });

  test("parameters are bound, in order and by name", async () => {
    const ordered = await post({
      sql: "select count(*) from files where extension = ? and modified_at > ? and change_count in (select unnest(?))",
      params: ["ts", "2024-01-01", [0, 1, 2]],
    });
    const expected = Array.from({ length: asker.rows }, (_, i) => i).filter(
      (i) => i % 4 === 0 && (i * 7) % 13 <= 2,
    );
    expect(ordered.json().rows).toEqual([[String(expected.length)]]);
    const named = await post({
      sql: "select $who || $n, $none",
      params: { who: "it's; drop table files --", n: 1, none: null },
    });
    expect(named.json().rows).toEqual([["it's; drop table files --1", null]]);
    for (const params of [undefined, [], [1, 2], { other: 1 }, { 1: { a: 1 } }, "x"]) {
      expect((await post({ sql: "select $1", params })).json().error.code, JSON.stringify(params)).toBe(
        "TRB-REQ-INVALID",
      );
    }
  });

  test("CSV has a header, quotes what needs it, and tells nulls from empty texts", async () => {
    const sql = `select 'a,"b"' as "x,y", null as n, '' as e, 'l' || chr(10) || 'm' as m, [1, 2] as l, true as t, 1.50 as d`;
    const answer = await post({ sql }, { accept: "text/csv" });
    expect(answer.headers["content-type"]).toContain("text/csv");
    expect(answer.body).toBe('"x,y",n,e,m,l,t,d\r\n"a,""b""",,"","l\nm","[1,2]",true,1.50\r\n');
    expect(answer.headers["tributary-snapshot"]).toMatch(/^[\w-]+$/);
    expect(answer.headers["tributary-row-count"]).toBe("1");
  });

  test("Accept is weighed as it says", async () => {
    const typeOf = async (accept: string) =>
      String((await post({ sql: "select 1" }, { accept })).headers["content-type"]).split(";")[0];
    expect(await typeOf("text/csv;q=0.1, application/json;q=0.9")).toBe("application/json");
    expect(await typeOf("application/json;q=0.2, text/csv")).toBe("text/csv");
    expect(await typeOf("text/csv;q=0, application/x-ndjson, */*;q=0.1")).toBe("application/x-ndjson");
    expect(await typeOf("text/*;q=0.5, image/png")).toBe("text/csv");
    expect(await typeOf("*/*")).toBe("application/json");
    expect((await post({ sql: "select 1" }, { accept: "application/json;q=0" })).statusCode).toBe(415);
  });

  test("what is wrong with a body is named", async () => {
    for (const [body, words] of [
      [{ sql: "select 1", parms: [] }, "parms: expected { sql"],
      [{ sql: 1 }, "sql: expected { sql"],
      [{ sql: "select $1", params: [["a", 1]] }, "params.0: expected null"],
      [{ sql: "select $a", params: { a: [1, true] } }, "params.a: expected null"],
    ] as const) {
      const answer = await post(body);
      expect(answer.statusCode, words).toBe(400);
      expect(answer.json().error.message).toContain(words);
    }
  });

  test("a fault of the engine is no fault of the server, and the next query runs", async () => {
    const answer = await post({ sql: "select array_inner_product([1.0]::float[1], [null]::float[1])" });
    expect([answer.statusCode, answer.json().error.code]).toEqual([400, "TRB-QUERY-RUNTIME"]);
    expect((await post({ sql: "select count(*) from files" })).json().rows).toEqual([[String(asker.rows)]]);
  });

  test("NDJSON is one object a line", async () => {
    const answer = await post(
      { sql: "select i, {'k': i} as s from range(2) r(i)" },
      { accept: "application/x-ndjson" },
    );
    expect(answer.body).toBe('{"i":"0","s":{"k":"0"}}\n{"i":"1","s":{"k":"1"}}\n');
    const refused = await post({ sql: "select 1" }, { accept: "image/png" });
    expect(refused.statusCode).toBe(415);
    expect(refused.json().error.code).toBe("TRB-REQ-CONTENT-TYPE");
  });

  test("failures have their code, status and place", async () => {
    const cases: [string, number, string, unknown][] = [
      ["select\n  nothing\nfrom files", 400, "TRB-QUERY-COLUMN", { line: 2, column: 3 }],
      ["select 1,\n 'ä', cast(path as int) from files", 400, "TRB-QUERY-RUNTIME", { line: 2, column: 7 }],
      ["select * fro files where", 400, "TRB-QUERY-SYNTAX", { line: 1, column: 14 }],
      ["select * from glob('*')", 400, "TRB-QUERY-FUNCTION", { line: 1, column: 15 }],
      ["select i from range(501) r(i)", 413, "TRB-QUERY-ROWS", undefined],
    ];
    for (const [sql, status, code, position] of cases) {
      const answer = await post({ sql });
      expect(answer.statusCode, sql).toBe(status);
      expect(answer.json().error.code, sql).toBe(code);
      expect(answer.json().error.details?.position, sql).toEqual(position);
    }
  });

  test("bodies of another shape are refused", async () => {
    for (const body of [
      {},
      { sql: 1 },
      [],
      "select 1",
      null,
      { sql: "select 1", more: 1 },
      { sql: "select 1", tenant: 3 },
    ]) {
      const answer = await post(body);
      expect(answer.statusCode, JSON.stringify(body)).toBe(400);
      expect(answer.json().error.code).toMatch(/^TRB-REQ-(INVALID|UNREADABLE)$/);
    }
  });
});

describe("who may ask", () => {
  const sql = "select distinct tenant_id from files";

  test("the tenant comes from the token when it grants exactly one", async () => {
    expect((await post({ sql })).json().rows).toEqual([[asker.id]]);
    expect((await post({ sql, tenant: asker.id })).json().rows).toEqual([[asker.id]]);
  });

  test("a token for several must say which", async () => {
    for (const tenants of ["*" as const, [asker.id, others[0]!.id]]) {
      expect((await post({ sql }, { token: { tenants } })).json().error.code).toBe("TRB-QUERY-TENANT");
      const tenant = others[0]!.id;
      expect((await post({ sql, tenant }, { token: { tenants } })).json().rows).toEqual([[tenant]]);
    }
  });

  test("a tenant that exists, one that does not and one that cannot are refused alike", async () => {
    const bodies = new Set<string>();
    for (const tenant of [others[0]!.id, "nobody", "..", "~shared", "a/b", "", "acme' or '1'='1", "ACME"]) {
      const answer = await post({ sql, tenant });
      expect(answer.statusCode).toBe(403);
      expect(answer.json().error.code).toBe("TRB-AUTH-TENANT");
      bodies.add(answer.body);
    }
    expect(bodies.size).toBe(1);
    // Also for a token that grants all: what cannot be a tenant is none.
    expect((await post({ sql, tenant: "a'b" }, { token: { tenants: "*" } })).json().error.code).toBe(
      "TRB-AUTH-TENANT",
    );
  });

  test("a tenant without rows gets none", async () => {
    expect((await post({ sql, tenant: "newcomer" }, { token: { tenants: "*" } })).json().rows).toEqual([]);
  });

  test("other roles, no token, and a scope that is not enforced yet get nothing", async () => {
    expect((await post({ sql }, { token: { role: "producer" } })).json().error.code).toBe("TRB-AUTH-ROLE");
    expect((await post({ sql }, { token: { role: "operator" } })).json().error.code).toBe("TRB-AUTH-ROLE");
    expect((await post({ sql }, { token: { scope: ["own_team"] } })).json().error.code).toBe("TRB-AUTH-ROLE");
    expect((await post({ sql }, { authorization: "" })).json().error.code).toBe("TRB-AUTH-MISSING");
    expect((await post({ sql }, { authorization: "Bearer x.y.z" })).json().error.code).toBe(
      "TRB-AUTH-INVALID",
    );
  });
});

test("GET /v1/tables lists tables with visible columns only", async () => {
  const get = async (url: string, token?: Partial<TokenInit>) =>
    server.app.inject({ method: "GET", url, headers: { authorization: await bearer(token) } });
  const answer = await get("/v1/tables");
  expect(answer.statusCode).toBe(200);
  const { tables } = answer.json();
  expect(tables.map(({ schema, name }: { schema: string; name: string }) => `${schema}.${name}`)).toEqual([
    "scm.files",
    "scm.commits",
    "tracker.issues",
    "tracker.projects",
  ]);
  expect(tables[0]).toMatchObject({ description: "files as of their last change", freshnessMs: 12 });
  expect(tables[0].columns[2]).toEqual({ name: "path", type: "VARCHAR", description: "path from the root" });
  expect(leaks(answer.body, lake)).toEqual([]);
  expect((await get("/v1/tables", { tenants: "*" })).json().error.code).toBe("TRB-QUERY-TENANT");
  expect((await get(`/v1/tables?tenant=${others[0]!.id}`)).json().error.code).toBe("TRB-AUTH-TENANT");
  expect((await get("/v1/tables", { role: "producer" })).json().error.code).toBe("TRB-AUTH-ROLE");
});

test("the OpenAPI document has both routes, and metrics name no tenant", async () => {
  const { paths } = (await server.app.inject("/docs/json")).json();
  expect(Object.keys(paths)).toEqual(expect.arrayContaining(["/v1/query", "/v1/tables"]));
  const exposition = await metrics.metrics();
  expect(exposition).toMatch(/tributary_query_answers_total\{code="ok"\} \d+/);
  expect(exposition).not.toContain(asker.id);
});
