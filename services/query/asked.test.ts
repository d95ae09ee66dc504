import { connect } from "node:net";
import { pino } from "pino";
import { Registry } from "prom-client";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { Admission } from "../base/admission.js";
import { TributaryError } from "../base/errors.js";
import { buildServer, type HttpServer } from "../base/http.js";
import { Grant } from "../tenancy/grant.js";
import { requireRole } from "../tenancy/http-auth.js";
import type { TokenVerifier } from "../tenancy/tokens.js";
import { Asked, tenantOf } from "./asked.js";
import type { Asking, QueryAnswer, QueryRequest, QueryService } from "./query-service.js";

const KiB = 1024;
const LIMIT = 4_000 * KiB;
const MAX_BODY = 2_000 * KiB;

/** Answers as the test says; the token is the tenant's name. */
let run: (request: QueryRequest, asking: Required<Asking>) => Promise<readonly Buffer[]>;
let server: HttpServer;
let url: URL;
let held: Admission;
beforeEach(async () => {
  held = new Admission(LIMIT, () => new TributaryError("TRB-QUERY-BUSY"));
  const verifier = {
    verify: (header: string) => new Grant("a", { role: "analyst", tenants: [header.slice(7)] }),
  } as unknown as TokenVerifier;
  const service = {
    run: async (request: QueryRequest, asking: Required<Asking>): Promise<QueryAnswer> => ({
      columns: [],
      rows: await run(request, asking),
      rowCount: 0,
      elapsedMs: 0,
      snapshot: "",
    }),
  } as unknown as QueryService;
  const onRequest = requireRole(verifier, "analyst");
  server = await buildServer({
    log: pino({ level: "silent" }),
    metrics: new Registry(),
    guardMetrics: onRequest,
    limits: {
      minBodyBytesPerSecond: 16 * KiB,
      bodyGraceMs: 5_000,
      answerGraceMs: 30_000,
      maxConnections: 100,
    },
  });
  await server.app.register(async (scope) => {
    scope.removeAllContentTypeParsers();
    scope.addContentTypeParser("application/json", (_request, _payload, done) => done(null));
    scope.post("/v1/query", { onRequest }, async (request, reply) => {
      const asked = new Asked(request, reply);
      try {
        asked.reservation = held.enter(request.headers.authorization ?? "", asked.giveUp);
        await asked.answer(service, await asked.body(MAX_BODY));
      } finally {
        asked.end();
      }
      return reply;
    });
  });
  url = new URL(await server.listen("127.0.0.1", 0));
});
afterEach(() => server.drain(0));

const post = async (body: string, tenant = "acme") => {
  const headers = { authorization: `Bearer ${tenant}`, "content-type": "application/json" };
  const answer = await fetch(new URL("/v1/query", url), { method: "POST", headers, body });
  return { status: answer.status, text: await answer.text() };
};
const ask = (tenant?: string) => post('{"sql":"select 1"}', tenant);
/** A connection that has sent a request and reads nothing. */
const silent = (body: string, announced = body.length, tenant = "acme") => {
  const socket = connect(Number(url.port), url.hostname);
  socket.on("error", () => undefined);
  socket.pause();
  socket.write(
    `POST /v1/query HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${tenant}\r\ncontent-type: application/json\r\ncontent-length: ${announced}\r\n\r\n${body}`,
  );
  return socket;
};
const soon = (ms = 5) => new Promise((resolve) => setTimeout(resolve, ms));
const until = async (what: () => boolean) => {
  while (!what()) await soon();
};
const big = (bytes: number) => [Buffer.alloc(bytes, "x")];

describe("the tenant of a request", () => {
  const grant = (tenants: "*" | string[], scope?: string[]) =>
    new Grant("a", { role: "analyst", tenants, ...(scope && { scope }) });
  const codeOf = (...args: Parameters<typeof tenantOf>) => {
    try {
      return tenantOf(...args);
    } catch (error) {
      return (error as TributaryError).code;
    }
  };

  test("is one that the token grants; others, and what cannot be one, are answered alike", () => {
    expect(codeOf(grant(["acme"]), undefined)).toBe("acme");
    expect(codeOf(grant(["acme", "umbrella"]), "umbrella")).toBe("umbrella");
    expect(codeOf(grant("*"), "anyone")).toBe("anyone");
    for (const other of ["umbrella", "ACME", "acme ", "", "../acme", "~shared", 7, null, ["acme"]]) {
      expect(codeOf(grant(["acme"]), other), String(other)).toBe("TRB-AUTH-TENANT");
    }
    expect(codeOf(grant("*"), "~shared")).toBe("TRB-AUTH-TENANT");
  });

  test("must be named where the token grants several", () => {
    for (const tenants of ["*", ["acme", "umbrella"]] as const) {
      expect(codeOf(grant(tenants === "*" ? "*" : [...tenants]), undefined)).toBe("TRB-QUERY-TENANT");
    }
  });

  test("is none for a token with a scope: its predicates are not enforced yet", () => {
    expect(codeOf(grant(["acme"], ["eu"]), undefined)).toBe("TRB-AUTH-ROLE");
    expect(codeOf(grant(["acme"], []), "acme")).toBe("TRB-AUTH-ROLE");
  });
});

describe("a body", () => {
  beforeEach(() => {
    run = async () => [];
  });

  test.each([
    ["objects", `[${"{},".repeat(400_000)}{}]`, "params.0: expected null"],
    ["lists of two kinds at the end", `[${"[1],".repeat(200_000)}[1,"a"]]`, "params.200000: expected null"],
    ["names", `{${Array.from({ length: 60_000 }, (_, i) => `"k${i}":1`)},"x":{}}`, "params.x: expected null"],
  ])("with very many values is told in a moment what is wrong: %s", async (_, params, words) => {
    const body = `{"sql":"select 1","params":${params}}`;
    const parsing = performance.now();
    JSON.parse(body);
    const started = performance.now();
    const { status, text } = await post(body);
    expect([status, text]).toEqual([400, expect.stringContaining(words)]);
    // A hundred times as long as parsing, while each of them was looked at by a schema.
    expect(performance.now() - started).toBeLessThan(200 + 30 * (started - parsing));
  });

  test("that is no JSON, too long, of no type or cut short is refused, and nothing is held for it", async () => {
    expect(await post("{")).toMatchObject({
      status: 400,
      text: expect.stringContaining("TRB-REQ-UNREADABLE"),
    });
    expect((await post(" ".repeat(MAX_BODY + 1))).status).toBe(413);
    expect((await post('\ufeff{"sql":""}')).status).toBe(200);
    const bare = await fetch(new URL("/v1/query", url), {
      method: "POST",
      headers: { authorization: "Bearer acme" },
    });
    expect(bare.status).toBe(415);
    const socket = silent("{", 100);
    await until(() => held.inFlightBytes > 0);
    socket.destroy();
    await until(() => held.inFlightBytes === 0);
  });

  test("counts by what has come, and is given up for another tenant's share", async () => {
    const part = `{"sql":"${"x".repeat(1_500 * KiB)}`;
    const sockets = [1, 2].map(() => silent(part, MAX_BODY));
    await until(() => held.inFlightBytes > 3_000 * KiB);
    expect((await post(part)).text).toContain("TRB-QUERY-BUSY");
    run = async () => [];
    const other = await post(`{"sql":"${"x".repeat(1_200 * KiB)}"}`, "umbrella");
    expect(other.status).toBe(200);
    for (const socket of sockets) socket.destroy();
    await until(() => held.inFlightBytes === 0);
  });
});

describe("an answer", () => {
  test("is held while nobody reads it, and given up for another tenant's share", async () => {
    // More than the system's buffers take.
    run = async () => big(30_000 * KiB);
    const sockets = [silent('{"sql":""}')];
    await until(() => held.inFlightBytes > 30_000 * KiB);
    expect(await ask()).toMatchObject({ status: 429, text: expect.stringContaining("TRB-QUERY-BUSY") });
    // Until then it may be on its way to somebody who does read.
    await soon(1_100);
    expect(held.inFlightBytes).toBeGreaterThan(30_000 * KiB);
    run = async (_, asking) => {
      asking.begin();
      asking.take(1_000 * KiB);
      return big(1_000 * KiB);
    };
    expect((await ask("umbrella")).text).toHaveLength(
      1_000 * KiB + '{"columns":[],"rows":[],"rowCount":0,"elapsedMs":0,"snapshot":""}'.length,
    );
    await until(() => held.inFlightBytes === 0);
    for (const socket of sockets) socket.destroy();
  });

  test("that grows beyond what is free ends its query; one that starts over begins at nothing", async () => {
    const ended: boolean[] = [];
    run = async (_, asking) => {
      for (let attempt = 0; attempt < 3; attempt++) {
        asking.begin();
        asking.take(0.8 * LIMIT);
      }
      return big(1);
    };
    expect((await ask()).status).toBe(200);
    run = (_, asking) =>
      new Promise((_resolve, reject) => {
        asking.signal.addEventListener("abort", () => {
          ended.push(asking.signal.aborted);
          reject(new TributaryError("TRB-QUERY-TIMEOUT"));
        });
        asking.begin();
        asking.take(0.6 * LIMIT);
      });
    const first = ask();
    await until(() => held.inFlightBytes > 0.5 * LIMIT);
    expect((await ask()).text).toContain("TRB-QUERY-BUSY");
    expect(ended).toEqual([true]);
    // Another tenant's share goes before what this one has made so far.
    run = async (_, asking) => {
      asking.begin();
      asking.take(0.45 * LIMIT);
      return big(1);
    };
    expect((await ask("umbrella")).status).toBe(200);
    expect((await first).text).toContain("TRB-QUERY-BUSY");
    await until(() => held.inFlightBytes === 0);
  });

  test("is no longer made when who asked has gone", async () => {
    let aborted = false;
    run = (_, asking) =>
      new Promise((_resolve, reject) => {
        asking.signal.addEventListener("abort", () => {
          aborted = true;
          reject(new TributaryError("TRB-QUERY-TIMEOUT"));
        });
      });
    // Two on one connection: the second stands behind the first.
    const one = `POST /v1/query HTTP/1.1\r\nhost: x\r\nauthorization: Bearer acme\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n{"sql":""}`;
    const socket = connect(Number(url.port), url.hostname);
    socket.write(one + one);
    await until(() => held.inFlightBytes > 2 * 16 * KiB);
    socket.destroy();
    await until(() => held.inFlightBytes === 0);
    expect(aborted).toBe(true);
  });
});
