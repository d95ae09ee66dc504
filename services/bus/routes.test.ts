import { createHmac } from "node:crypto";
import { gzipSync } from "node:zlib";
import type { InjectOptions } from "fastify";
import { SignJWT } from "jose";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { startTestBus, type TestBus, testRegistry } from "../../test/support/bus-server.js";
import { CODES, type Code } from "../base/codes.js";
import { type EventInit, encodeEvent, encodeRequest } from "../contracts/encode-event.js";
import { Envelope } from "../contracts/envelope.js";

const MiB = 1024 * 1024;
const PublishResponse = testRegistry.codec("tributary.v1.PublishResponse");
const File = testRegistry.codec("scm.v1.File");
const filePayload = (fields: Record<string, unknown> = {}) =>
  Buffer.from(File.encode(File.create({ path: "a.ts", change_count: 3, ...fields })).finish());

const good: EventInit = {
  tenantId: "acme",
  entityType: "scm.v1.File",
  entityId: "a.ts",
  operation: 2,
  version: 7,
  payload: { value: filePayload() },
};
const goodJson = {
  tenantId: "acme",
  entityType: "scm.v1.File",
  entityId: "a.ts",
  operation: "OPERATION_UPDATED",
  version: "7",
  payload: { "@type": "type.googleapis.com/scm.v1.File", path: "a.ts" },
};

interface Result {
  accepted?: boolean;
  partition?: string;
  position?: string;
  code?: string;
  message?: string;
  retryable?: boolean;
}
interface Answer {
  status: number;
  headers: Record<string, unknown>;
  results: Result[];
  accepted: number;
  rejected: number;
  error: { code: string; message: string } | undefined;
}

let bus: TestBus;
let authorization: string;
beforeEach(async () => {
  bus = await startTestBus({ maxPayloadBytes: 2000, maxOffloadBytes: 2000, maxEventsPerRequest: 20 });
  authorization = await bus.bearer();
});
afterEach(() => bus.close());

async function post(
  type: string,
  body: Buffer | string,
  headers: Record<string, string> = {},
): Promise<Answer> {
  const options: InjectOptions = {
    method: "POST",
    url: "/v1/events",
    headers: { authorization, "content-type": type, ...headers },
    payload: body,
  };
  const reply = await bus.server.app.inject(options);
  const empty = { results: [], accepted: 0, rejected: 0, error: undefined };
  const isProtobuf = reply.headers["content-type"] === "application/x-protobuf";
  const parsed = isProtobuf
    ? PublishResponse.toObject(PublishResponse.decode(reply.rawPayload))
    : (JSON.parse(reply.payload) as Partial<Answer>);
  return { ...empty, ...parsed, status: reply.statusCode, headers: reply.headers };
}

const publish = (...events: (EventInit | Buffer)[]) =>
  post(
    "application/x-protobuf",
    encodeRequest(events.map((event) => (Buffer.isBuffer(event) ? event : encodeEvent(event)))),
  );
const publishJson = (...events: unknown[]) => post("application/json", JSON.stringify(events));

/** The whole request was refused with this code and its status, and nothing reached the stream. */
function expectRefusal(answer: Answer, code: Code): void {
  expect(answer.error?.code).toBe(code);
  expect(answer.status).toBe(CODES[code].status);
  expect(bus.stream.stored).toEqual([]);
}

/** What is on the stream, as entity ids. */
function storedIds(): string[] {
  const envelope = new Envelope();
  return bus.stream.stored.map(({ bytes }) => {
    expect(envelope.read(bytes, 0, bytes.length)).toBeUndefined();
    return envelope.entityId();
  });
}

describe("accepted events", () => {
  test("are stored byte for byte and answered with where they lie", async () => {
    const events = Array.from({ length: 20 }, (_, i) =>
      encodeEvent({ ...good, entityId: `f${i}`, version: i + 1 }),
    );
    const answer = await publish(...events);
    expect(answer).toMatchObject({ status: 200, accepted: 20 });
    expect(answer.results.map(({ accepted }) => accepted)).toEqual(events.map(() => true));
    answer.results.forEach(({ partition, position }, i) => {
      const found = bus.stream.stored.find(
        (stored) => stored.partition === partition && stored.position === position,
      );
      expect(found?.bytes.equals(events[i]!)).toBe(true);
    });
    expect(new Set(answer.results.map(({ partition }) => partition)).size).toBeGreaterThan(1);
  });

  test("of one entity share a partition, in the order sent", async () => {
    const { results } = await publish(...[3, 1, 2].map((version) => ({ ...good, version })));
    expect(new Set(results.map(({ partition }) => partition)).size).toBe(1);
    expect(results.map(({ position }) => position)).toEqual(
      [...results.map(({ position }) => position)].sort(),
    );
  });

  test("are not answered before they are durable", async () => {
    const release = bus.stream.hold();
    let answered = false;
    const answer = publish(good).then((result) => {
      answered = true;
      return result;
    });
    while (bus.stream.appends === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(answered).toBe(false);
    release();
    expect(await answer).toMatchObject({ status: 200, accepted: 1 });
  });

  test("may come as protobuf, JSON, an array and NDJSON, gzipped or not", async () => {
    const json = JSON.stringify(goodJson);
    const bodies: [string, string | Buffer][] = [
      ["application/x-protobuf", encodeRequest([encodeEvent(good)])],
      ["application/json", `{"events":[${json}]}`],
      ["application/json; charset=utf-8", `[${json}]`],
      ["application/x-ndjson", `${json}\n`],
    ];
    for (const [type, body] of bodies) {
      expect(await post(type, body), type).toMatchObject({ status: 200, accepted: 1 });
      const packed = await post(type, gzipSync(body), { "content-encoding": "gzip" });
      expect(packed, type).toMatchObject({ status: 200, accepted: 1 });
    }
    expect(storedIds()).toEqual(Array<string>(8).fill("a.ts"));
  });

  test("of no number are fine", async () => {
    expect(await publish()).toMatchObject({ status: 200, results: [] });
    expect(await publishJson()).toMatchObject({ status: 200, results: [], accepted: 0, rejected: 0 });
    expect(bus.stream.appends).toBe(0);
  });

  test("keep versions exactly, in binary and in JSON", async () => {
    const versions = [2n ** 53n + 1n, 2n ** 63n - 1n];
    for (const version of versions) {
      expect(await publish({ ...good, version })).toMatchObject({ accepted: 1 });
      expect(await publishJson({ ...goodJson, version: String(version) })).toMatchObject({ accepted: 1 });
      const bare = JSON.stringify(goodJson).replace('"7"', String(version));
      expect(await post("application/x-ndjson", bare)).toMatchObject({ accepted: 1 });
    }
    const envelope = new Envelope();
    const stored = bus.stream.stored.map(({ bytes }) => {
      envelope.read(bytes, 0, bytes.length);
      return envelope.version();
    });
    expect(stored).toEqual(versions.flatMap((version) => [version, version, version]));
  });

  test("may carry a packed payload", async () => {
    const value = gzipSync(filePayload());
    expect(await publish({ ...good, payload: { value }, compression: 1 })).toMatchObject({ accepted: 1 });
  });
});

describe("a bad event is rejected with its code, and its neighbours are not", () => {
  const reference = {
    uri: "offload/acme/00",
    typeUrl: "x/scm.v1.File",
    sizeBytes: 1,
    sha256: Buffer.alloc(32),
  };
  const { payload: _, ...withoutPayload } = good;
  test.each<[string, EventInit | Buffer, Code]>([
    ["truncated within", encodeEvent(good).subarray(0, -1), "TRB-EVENT-MALFORMED"],
    ["noise", Buffer.from("not protobuf"), "TRB-EVENT-MALFORMED"],
    ["no tenant", { ...good, tenantId: "" }, "TRB-EVENT-TENANT"],
    ["tenant ..", { ...good, tenantId: ".." }, "TRB-EVENT-TENANT"],
    ["tenant ~shared", { ...good, tenantId: "~shared" }, "TRB-EVENT-TENANT"],
    ["tenant a/b", { ...good, tenantId: "a/b" }, "TRB-EVENT-TENANT"],
    ["an unknown entity type", { ...good, entityType: "no.such.Type" }, "TRB-EVENT-ENTITY-TYPE"],
    [
      "the envelope as entity type",
      { ...good, entityType: "tributary.v1.ChangeEvent" },
      "TRB-EVENT-ENTITY-TYPE",
    ],
    ["an unknown operation", { ...good, operation: 9 }, "TRB-EVENT-OPERATION"],
    ["version 0", { ...good, version: 0 }, "TRB-EVENT-VERSION"],
    [
      "a payload that does not decode",
      { ...good, payload: { value: Buffer.from("0a05", "hex") } },
      "TRB-EVENT-PAYLOAD-DECODE",
    ],
    [
      "a payload of another type",
      { ...good, payload: { typeUrl: "x/scm.v1.Commit", value: Buffer.alloc(0) } },
      "TRB-EVENT-PAYLOAD-TYPE",
    ],
    [
      "a payload over the limit",
      { ...good, payload: { value: filePayload({ path: "x".repeat(2000) }) } },
      "TRB-EVENT-PAYLOAD-SIZE",
    ],
    [
      "a packed payload over the limit",
      { ...good, compression: 1, payload: { value: gzipSync(Buffer.alloc(MiB)) } },
      "TRB-EVENT-PAYLOAD-SIZE",
    ],
    ["a payload not packed as it says", { ...good, compression: 2 }, "TRB-EVENT-COMPRESSION"],
    [
      "a packed payload that does not decode",
      { ...good, compression: 1, payload: { value: gzipSync("\n\x05") } },
      "TRB-EVENT-PAYLOAD-DECODE",
    ],
    ["no content", withoutPayload, "TRB-EVENT-CONTENT"],
    ["a reference", { ...withoutPayload, reference }, "TRB-EVENT-REFERENCE"],
  ])("%s", async (_name, bad, code) => {
    const answer = await publish({ ...good, entityId: "before" }, bad, { ...good, entityId: "after" });
    expect(answer).toMatchObject({ status: 200, accepted: 2, rejected: 1 });
    expect(answer.results.map((result) => result.code)).toEqual([undefined, code, undefined]);
    expect(answer.results[1]?.message).toMatch(/expected/);
    expect(answer.results[1]?.accepted ?? false).toBe(false);
    expect(storedIds().sort()).toEqual(["after", "before"]);
  });

  test("@type unlike entityType, in JSON", async () => {
    const bad = { ...goodJson, payload: { "@type": "type.googleapis.com/scm.v1.Commit" } };
    const answer = await publishJson(goodJson, bad, goodJson);
    expect(answer).toMatchObject({ status: 200, accepted: 2, rejected: 1 });
    expect(answer.results[1]).toEqual({
      accepted: false,
      code: "TRB-EVENT-PAYLOAD-TYPE",
      message: "payload: expected an object whose @type names the entity_type",
      retryable: false,
    });
  });

  test("a malformed line in the middle of NDJSON rejects that line alone", async () => {
    const line = (id: string) => JSON.stringify({ ...goodJson, entityId: id });
    const body = `${line("1")}\n{"tenantId":"acme","entity\n\n${line("2")}\r\n${line("3").replace("path", "pfad")}\n${line("4")}`;
    const answer = await post("application/x-ndjson", body);
    expect(answer).toMatchObject({ status: 200, accepted: 3, rejected: 2 });
    expect(answer.results.map((result) => result.code)).toEqual([
      undefined,
      "TRB-EVENT-MALFORMED",
      undefined,
      "TRB-EVENT-PAYLOAD-DECODE",
      undefined,
    ]);
    expect(answer.results[3]?.message).toBe('payload: field "pfad" is not known');
    expect(storedIds().sort()).toEqual(["1", "2", "4"]);
  });

  test("a whole request of bad events touches no stream", async () => {
    expect(await publish({ ...good, version: 0 }, Buffer.from([0xff]))).toMatchObject({
      status: 200,
      rejected: 2,
    });
    expect(bus.stream.appends).toBe(0);
  });
});

describe("a token", () => {
  test("grants its tenants and entity types, event by event", async () => {
    authorization = await bus.bearer({ tenants: ["acme"], entityTypes: ["scm.v1.File"] });
    const commit = { ...good, entityType: "scm.v1.Commit", payload: { value: Buffer.alloc(0) } };
    const answer = await publish(good, { ...good, tenantId: "umbrella" }, commit, {
      ...good,
      entityId: "last",
    });
    expect(answer.results.map((result) => result.code)).toEqual([
      undefined,
      "TRB-AUTH-TENANT",
      "TRB-AUTH-ENTITY-TYPE",
      undefined,
    ]);
    expect(JSON.stringify(answer.results)).not.toContain("umbrella");
    expect(storedIds().sort()).toEqual(["a.ts", "last"]);
  });

  const claims = { role: "producer", tenants: "*", sub: "s", aud: "tributary" };
  const later = () => Math.floor(Date.now() / 1000) + 60;
  const base64 = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");
  test.each<[string, () => Promise<string>, Code]>([
    ["missing", async () => "", "TRB-AUTH-MISSING"],
    ["of role analyst", () => bus.bearer({ role: "analyst" }), "TRB-AUTH-ROLE"],
    ["of role operator", () => bus.bearer({ role: "operator" }), "TRB-AUTH-ROLE"],
    [
      "expired",
      async () =>
        `Bearer ${await new SignJWT(claims).setProtectedHeader({ alg: "HS256" }).setExpirationTime(1).sign(bus.key.secret)}`,
      "TRB-AUTH-EXPIRED",
    ],
    [
      "of algorithm none",
      async () => `Bearer ${base64({ alg: "none" })}.${base64({ ...claims, exp: later() })}.`,
      "TRB-AUTH-INVALID",
    ],
    [
      "signed with another key",
      async () => {
        const body = `${base64({ alg: "HS256" })}.${base64({ ...claims, exp: later() })}`;
        return `Bearer ${body}.${createHmac("sha256", "another key").update(body).digest("base64url")}`;
      },
      "TRB-AUTH-INVALID",
    ],
  ])("%s opens nothing", async (_name, make, code) => {
    authorization = await make();
    const answer = await publish(good);
    expectRefusal(answer, code);
    expect(answer.headers["www-authenticate"]).toBe(CODES[code].status === 401 ? "Bearer" : undefined);
  });
});

describe("a request is refused as a whole", () => {
  test.each(["text/plain", "application/xml", "application/octet-stream", "application/x-protobufx"])(
    "with content type %s",
    async (type) => expectRefusal(await post(type, "{}"), "TRB-REQ-CONTENT-TYPE"),
  );
  test("without content type", async () => {
    const reply = await bus.server.app.inject({
      method: "POST",
      url: "/v1/events",
      headers: { authorization },
    });
    expect([reply.statusCode, reply.json<Answer>().error?.code]).toEqual([415, "TRB-REQ-CONTENT-TYPE"]);
  });
  test.each<[string, string, string | Buffer]>([
    ["truncated protobuf", "application/x-protobuf", encodeRequest([encodeEvent(good)]).subarray(0, -3)],
    ["JSON sent as protobuf", "application/x-protobuf", JSON.stringify([goodJson])],
    ["truncated JSON", "application/json", '[{"tenantId":"acme"'],
    ["a JSON object of other fields", "application/json", JSON.stringify(goodJson)],
    ["an empty JSON body", "application/json", ""],
  ])("when it is %s", async (_name, type, body) =>
    expectRefusal(await post(type, body), "TRB-REQ-UNREADABLE"),
  );

  test("with an unknown or damaged encoding", async () => {
    const body = encodeRequest([encodeEvent(good)]);
    const as = (encoding: string, bytes: Buffer) =>
      post("application/x-protobuf", bytes, { "content-encoding": encoding });
    expectRefusal(await as("br", body), "TRB-REQ-ENCODING");
    expectRefusal(await as("gzip", body), "TRB-REQ-ENCODING");
    expectRefusal(await as("gzip", gzipSync(body).subarray(0, 40)), "TRB-REQ-ENCODING");
  });

  test("with more events than allowed, in every format", async () => {
    const many = Array.from({ length: 21 }, () => good);
    expectRefusal(await publish(...many), "TRB-REQ-TOO-MANY-EVENTS");
    expectRefusal(await publishJson(...many.map(() => goodJson)), "TRB-REQ-TOO-MANY-EVENTS");
    const body = many.map(() => JSON.stringify(goodJson)).join("\n");
    expectRefusal(await post("application/x-ndjson", body), "TRB-REQ-TOO-MANY-EVENTS");
  });

  test("of 65 MB", async () => {
    expectRefusal(await post("application/x-protobuf", Buffer.alloc(65 * MiB)), "TRB-REQ-TOO-LARGE");
  });

  test("that is a gzip bomb, without unpacking it", async () => {
    const bomb = gzipSync(Buffer.alloc(512 * MiB));
    const before = process.memoryUsage().arrayBuffers;
    expectRefusal(
      await post("application/x-protobuf", bomb, { "content-encoding": "gzip" }),
      "TRB-REQ-TOO-LARGE",
    );
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(200 * MiB);
  });

  test("when the stream is down; what it says about durability is nothing", async () => {
    bus.stream.down = true;
    const answer = await publish(good);
    expect(answer.status).toBe(503);
    expect(answer.error?.code).toBe("TRB-BUS-STREAM-DOWN");
    expect(answer.headers["retry-after"]).toBe("1");
    bus.stream.down = false;
    expect(await publish(good)).toMatchObject({ status: 200, accepted: 1 });
  });
});

describe("back-pressure", () => {
  test("ingest that is behind is told before the body is read", async () => {
    bus.stream.backlog = 512 * MiB + 1;
    const answer = await publish(good);
    expectRefusal(answer, "TRB-BUS-BUSY");
    expect(answer.headers["retry-after"]).toBe("1");
    expect(bus.stream.appends).toBe(0);
    bus.stream.backlog = 0;
    expect(await publish(good)).toMatchObject({ status: 200 });
  });

  test("who floods waits for its own events to land, while others are let in", async () => {
    await bus.close();
    bus = await startTestBus({ maxLagBytes: 1_000 });
    authorization = await bus.bearer();
    bus.stream.backlog = 500;
    for (let i = 0; i < 5; i++) expect(await publish(good)).toMatchObject({ status: 200, accepted: 1 });
    bus.stream.backlog = 900;
    expect(await publish(good)).toMatchObject({ status: 429, error: { code: "TRB-BUS-BUSY" } });
    authorization = await bus.bearer({ subject: "another" });
    expect(await publish(good)).toMatchObject({ status: 200, accepted: 1 });
    authorization = await bus.bearer();
    bus.stream.backlog = 0;
    expect(await publish(good)).toMatchObject({ status: 200, accepted: 1 });
  });

  test("too much in flight refuses what comes next, and lets it in once there is room", async () => {
    await bus.close();
    bus = await startTestBus({ maxInFlightBytes: 1000 });
    authorization = await bus.bearer();
    const body = encodeRequest(Array.from({ length: 10 }, () => encodeEvent(good)));
    expect(body.length).toBeLessThan(1000);
    expect(body.length).toBeGreaterThan(500);
    const release = bus.stream.hold();
    const first = post("application/x-protobuf", body);
    while (bus.stream.appends === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    expectRefusal(await post("application/x-protobuf", body), "TRB-BUS-BUSY");
    // A body that only turns out large while it is inflated is refused too.
    expectRefusal(
      await post("application/x-protobuf", gzipSync(body), { "content-encoding": "gzip" }),
      "TRB-BUS-BUSY",
    );
    release();
    expect(await first).toMatchObject({ status: 200, accepted: 10 });
    expect(await post("application/x-protobuf", body)).toMatchObject({ status: 200, accepted: 10 });
  });
});

describe("a stream at its capacity", () => {
  const three = ["one", "two", "three"].map((entityId) => ({ ...good, entityId }));

  test("takes what it can; the others are refused retryably, in both formats, in their order", async () => {
    bus.stream.refuses = (i) => i === 0 || i === 2;
    const bad = { ...good, version: 0 };
    const binary = await publish(bad, ...three, bad);
    const text = await post(
      "application/json",
      JSON.stringify([{ ...goodJson, version: "0" }, goodJson, goodJson]),
    );
    expect(binary).toMatchObject({ status: 200, accepted: 1, rejected: 4 });
    expect(binary.results.map(({ code }) => code || undefined)).toEqual([
      "TRB-EVENT-VERSION",
      "TRB-BUS-BUSY",
      undefined,
      "TRB-BUS-BUSY",
      "TRB-EVENT-VERSION",
    ]);
    expect(binary.results[1]).toMatchObject({ retryable: true });
    const [stored] = bus.stream.stored;
    expect(binary.results[2]).toMatchObject({ partition: stored!.partition, position: stored!.position });
    expect(text.results.map(({ accepted }) => accepted)).toEqual([false, false, true]);
  });

  test("that takes none answers 429, and has none", async () => {
    bus.stream.refuses = () => true;
    expect(await publish(...three)).toMatchObject({ status: 429, error: { code: "TRB-BUS-BUSY" } });
    expect(bus.stream.stored).toEqual([]);
  });
});

test("an event is no larger than its payload may be and a little, in any format", async () => {
  const attributes = { long: "x".repeat(300_000) };
  const binary = await publish(good, { ...good, attributes }, good);
  const json = await publishJson(goodJson, { ...goodJson, attributes }, goodJson);
  const spaced = JSON.stringify(goodJson).replace(",", `,${" ".repeat(300_000)}`);
  const line = JSON.stringify(goodJson);
  const ndjson = await post("application/x-ndjson", [line, spaced, line].join("\n"));
  for (const { results } of [binary, json, ndjson]) {
    expect(results.map(({ code }) => code)).toEqual([undefined, "TRB-EVENT-PAYLOAD-SIZE", undefined]);
  }
  expect(json.results[1]?.message).toMatch(
    /^event: expected at most \d+ bytes of JSON; larger payloads go by POST \/v1\/uploads, or as protobuf$/,
  );
});

test("what JSON was converted to is held too, until it is stored", async () => {
  const release = bus.stream.hold();
  const body = JSON.stringify([{ ...goodJson, entityId: "x".repeat(1000) }]);
  const answer = post("application/json", body);
  while (bus.stream.appends === 0) await new Promise((resolve) => setTimeout(resolve, 1));
  const operator = await bus.bearer({ role: "operator" });
  const reply = await bus.server.app.inject({ url: "/metrics", headers: { authorization: operator } });
  expect(Number(/in_flight_bytes (\d+)/.exec(reply.payload)?.[1])).toBeGreaterThan(
    16_384 + body.length + 1000,
  );
  release();
  expect(await answer).toMatchObject({ accepted: 1 });
});

describe("events of a type whose table is held", () => {
  const types = { held: ["scm.v1.File"], fails: false };
  const status = async () => {
    if (types.fails) throw new Error("no such object");
    const table = (entityType: string, held: boolean) => ({
      ...{ kind: "raw" as const, name: entityType, entityType, state: "quarantined" as const, held },
      ...{ since: "", code: "", reason: "", remedy: "", attempts: 1, parkedBytes: 0 },
    });
    return {
      writtenAt: "",
      tables: [table("scm.v1.Commit", false), ...types.held.map((name) => table(name, true))],
    };
  };
  const commit = { ...good, entityType: "scm.v1.Commit", entityId: "c", payload: { value: Buffer.alloc(0) } };

  beforeEach(async () => {
    await bus.close();
    Object.assign(types, { held: ["scm.v1.File"], fails: false });
    vi.useFakeTimers({ toFake: ["setInterval", "clearInterval"] });
    bus = await startTestBus({ maxPayloadBytes: 2000 }, { status });
    authorization = await bus.bearer();
  });
  afterEach(() => vi.useRealTimers());

  test("are refused retryably, one by one; others go on", async () => {
    const answer = await publish(good, commit, { ...good, version: 0 }, good);
    expect(answer).toMatchObject({ status: 200, accepted: 1, rejected: 3 });
    expect(answer.results.map((result) => [result.code, result.retryable])).toEqual([
      ["TRB-BUS-TABLE-HELD", true],
      [undefined, undefined],
      ["TRB-EVENT-VERSION", undefined],
      ["TRB-BUS-TABLE-HELD", true],
    ]);
    expect(answer.results[0]?.message).toMatch(/expected/);
    expect(storedIds()).toEqual(["c"]);
  });

  test("are refused as a whole where there are no others", async () => {
    const answers = [
      await publish(good, good),
      await publish({ ...good, compression: 1, payload: { value: gzipSync(filePayload()) } }),
      await publishJson(goodJson),
      await publish({ ...good, version: 0 }, good),
    ];
    for (const answer of answers) {
      expectRefusal(answer, "TRB-BUS-TABLE-HELD");
      expect([answer.status, answer.headers["retry-after"]]).toEqual([429, "1"]);
    }
    expect(await publish({ ...good, version: 0 })).toMatchObject({ status: 200, rejected: 1 });
    expect(await publish(commit)).toMatchObject({ status: 200, accepted: 1 });
  });

  test("are taken again within a second of the table's recovery, and while nobody knows how it does", async () => {
    types.held = [];
    expect(await publish(good)).toMatchObject({ status: 429 });
    await vi.advanceTimersByTimeAsync(1_000);
    expect(await publish(good)).toMatchObject({ accepted: 1 });
    types.held = ["scm.v1.File"];
    await vi.advanceTimersByTimeAsync(1_000);
    expect(await publish(good)).toMatchObject({ status: 429 });
    types.fails = true;
    await vi.advanceTimersByTimeAsync(1_000);
    expect(await publish(good)).toMatchObject({ accepted: 1 });
  });
});

describe("a request that asks for much work", () => {
  /** How often the event loop turned before the request's events were appended. */
  const turnsOf = async (request: Promise<Answer>): Promise<{ turns: number; answer: Answer }> => {
    const before = bus.stream.appends;
    let turns = 0;
    for (; bus.stream.appends === before; turns++) await new Promise((resolve) => setImmediate(resolve));
    return { turns, answer: await request };
  };
  const many = 10_000;
  beforeEach(async () => {
    await bus.close();
    bus = await startTestBus({ maxDecodedBytes: 50_000_000, maxPayloadBytes: 1_000_000 });
    authorization = await bus.bearer();
  });

  test.each<[string, string, () => Buffer]>([
    ["protobuf", "application/x-protobuf", () => encodeRequest(Array(many).fill(encodeEvent(good)))],
    ["JSON", "application/json", () => Buffer.from(`[${Array(many).fill(JSON.stringify(goodJson)).join()}]`)],
    [
      "NDJSON",
      "application/x-ndjson",
      () => Buffer.from(Array(many).fill(JSON.stringify(goodJson)).join("\n")),
    ],
  ])("in %s lets others run meanwhile", async (_name, type, body) => {
    // The token is known from then on.
    await publish(good);
    const few = await turnsOf(type === "application/x-protobuf" ? publish(good) : publishJson(goodJson));
    const { turns, answer } = await turnsOf(post(type, body()));
    expect(answer).toMatchObject({ status: 200, accepted: many });
    // At two microseconds an event, on a fast machine, its slices take five milliseconds each.
    expect(turns).toBeGreaterThan(few.turns + 2);
  });

  test("is refused once its payloads come to more than its budget, and not before", async () => {
    const payload = gzipSync(filePayload({ path: "x".repeat(990_000) }));
    const packed = (count: number) =>
      publish(
        ...Array.from({ length: count }, (_, i) => ({
          ...good,
          entityId: `${i}`,
          compression: 1,
          payload: { value: payload },
        })),
      );
    expectRefusal(await packed(51), "TRB-REQ-TOO-LARGE");
    const { turns, answer } = await turnsOf(packed(50));
    expect(answer).toMatchObject({ status: 200, accepted: 50 });
    // Inflated elsewhere, one after the other.
    expect(turns).toBeGreaterThan(50);
    expect(
      storedIds()
        .map(Number)
        .sort((a, b) => a - b),
    ).toEqual(Array.from({ length: 50 }, (_, i) => i));
  });

  test("gets its results in input order, packed or not", async () => {
    const large = gzipSync(filePayload({ path: "y".repeat(100_000) }));
    const events = Array.from({ length: 40 }, (_, i) => {
      if (i % 4 === 0) return { ...good, entityId: `${i}`, compression: 1, payload: { value: large } };
      if (i % 4 === 1) return { ...good, entityId: `${i}` };
      if (i % 4 === 2) return { ...good, version: 0 };
      return { ...good, compression: 1, payload: { value: large.subarray(0, 50) } };
    });
    const alone = await publish(...events.map((_, i) => ({ ...good, entityId: `${i}` })).slice(0, 20));
    alone.results.push(
      ...(await publish(...events.map((_, i) => ({ ...good, entityId: `${i}` })).slice(20))).results,
    );
    const [one, two] = await Promise.all([publish(...events), publish(...events)]);
    for (const answer of [one, two]) {
      expect(answer.results.map(({ code }) => code ?? "")).toEqual(
        events.map((_, i) => ["", "", "TRB-EVENT-VERSION", "TRB-EVENT-COMPRESSION"][i % 4]),
      );
      for (const [i, { partition, position }] of answer.results.entries()) {
        if (i % 4 > 1) continue;
        // The entity's own, whatever other requests did while this one waited.
        expect(partition).toBe(alone.results[i]?.partition);
        const found = bus.stream.stored.find(
          (stored) => stored.partition === partition && stored.position === position,
        );
        expect(found?.bytes.equals(encodeEvent(events[i]!))).toBe(true);
      }
    }
  });
});

test("what is being stored stays counted, also when another producer gets its share beside it", async () => {
  await bus.close();
  bus = await startTestBus({ maxInFlightBytes: 200_000 });
  const body = (bytes: number) =>
    encodeRequest([encodeEvent({ ...good, attributes: { long: "x".repeat(bytes) } })]);
  const release = bus.stream.hold();
  authorization = await bus.bearer({ subject: "greedy" });
  const first = post("application/x-protobuf", body(170_000));
  while (bus.stream.appends < 1) await new Promise((resolve) => setTimeout(resolve, 1));
  authorization = await bus.bearer({ subject: "modest" });
  const second = post("application/x-protobuf", body(50_000));
  while (bus.stream.appends < 2) await new Promise((resolve) => setTimeout(resolve, 1));
  const operator = await bus.bearer({ role: "operator" });
  const reply = await bus.server.app.inject({ url: "/metrics", headers: { authorization: operator } });
  expect(Number(/in_flight_bytes (\d+)/.exec(reply.payload)?.[1])).toBeGreaterThan(250_000);
  release();
  expect([(await first).status, (await second).status]).toEqual([200, 200]);
});

test("metrics count events by code and name no tenant", async () => {
  await publish(good, { ...good, version: 0 }, { ...good, version: 0 }, { ...good, entityType: "x" });
  const operator = await bus.bearer({ role: "operator" });
  const reply = await bus.server.app.inject({ url: "/metrics", headers: { authorization: operator } });
  expect(reply.statusCode).toBe(200);
  for (const line of [
    "tributary_bus_events_accepted_total 1",
    'tributary_bus_events_rejected_total{code="TRB-EVENT-VERSION"} 2',
    'tributary_bus_events_rejected_total{code="TRB-EVENT-ENTITY-TYPE"} 1',
    'tributary_bus_append_seconds_count{stream="memory"} 1',
    'tributary_bus_request_seconds_count{status="200"} 1',
    "tributary_bus_in_flight_bytes 0",
    'tributary_bus_backlog_bytes{stream="memory"} 0',
  ]) {
    expect(reply.payload.split("\n")).toContain(line);
  }
  expect(reply.payload).not.toContain("acme");
});

test("the protobuf and the JSON answer say the same", async () => {
  const events = [good, { ...good, version: 0 }, { ...good, tenantId: "" }];
  const binary = await publish(...events);
  const json = await publishJson(goodJson, { ...goodJson, version: 0 }, { ...goodJson, tenantId: "" });
  const comparable = (answer: Answer) =>
    answer.results.map(
      ({ accepted = false, partition = "", code = "", message = "", retryable = false }) => ({
        accepted,
        partition,
        code,
        message,
        retryable,
      }),
    );
  expect(comparable(json)).toEqual(comparable(binary));
  expect([json.accepted, json.rejected]).toEqual([binary.accepted, binary.rejected]);
});

test.each([
  ["application/x-protobuf", undefined, "application/x-protobuf"],
  ["application/x-protobuf", "*/*", "application/x-protobuf"],
  ["application/x-protobuf", "application/json", "application/json; charset=utf-8"],
  ["application/x-ndjson", "*/*", "application/json; charset=utf-8"],
  ["application/x-ndjson", "application/x-protobuf", "application/x-protobuf"],
  ["application/json", "application/json;q=0.5, application/x-protobuf", "application/x-protobuf"],
  ["application/json", "text/html", "application/json; charset=utf-8"],
])("the answer to %s that accepts %s comes as %s", async (type, accept, expected) => {
  const body =
    type === "application/x-protobuf" ? encodeRequest([encodeEvent(good)]) : JSON.stringify(goodJson);
  const text = type === "application/json" ? `[${String(body)}]` : body;
  const answer = await post(type, text, accept === undefined ? {} : { accept });
  expect(answer.headers["content-type"]).toBe(expected);
  expect(answer).toMatchObject({ status: 200, accepted: 1 });
});
