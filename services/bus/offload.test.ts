import { createHash, randomBytes } from "node:crypto";
import { utimesSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { startTestBus, type TestBus, testRegistry } from "../../test/support/bus-server.js";
import { CountingStore } from "../../test/support/counting-store.js";
import { overriding } from "../../test/support/faulty-store.js";
import { TributaryError } from "../base/errors.js";
import { type EventInit, encodeEvent, encodeRequest } from "../contracts/encode-event.js";
import { Envelope } from "../contracts/envelope.js";
import { type PayloadReference, referenceOf, uriOf } from "../contracts/payload-reference.js";
import { Offloaded } from "../offload/offloaded.js";
import { markClosed } from "../table/closing.js";
import { leastReferred } from "./event-gate.js";

/** Payloads that are too large for a stream. */

const PublishResponse = testRegistry.codec("tributary.v1.PublishResponse");
const File = testRegistry.codec("scm.v1.File");
const payloadOf = (bytes: number): Buffer =>
  Buffer.from(File.encode(File.create({ path: randomBytes(bytes).toString("hex") })).finish());
const sha256 = (bytes: Uint8Array): Buffer => createHash("sha256").update(bytes).digest();
const eventOf = (value: Buffer, more: Partial<EventInit> = {}): EventInit => ({
  tenantId: "acme",
  entityType: "scm.v1.File",
  entityId: "large",
  operation: 2,
  version: 7,
  occurredAt: { seconds: 5 },
  payload: { value },
  attributes: { producer: "test" },
  eventId: "e-1",
  ...more,
});
const referring = (payload: Uint8Array, more: Partial<EventInit> = {}): EventInit => {
  const { payload: _, ...event } = eventOf(Buffer.alloc(0), more);
  const reference = {
    uri: uriOf(event.tenantId!, sha256(payload)),
    typeUrl: "type.googleapis.com/scm.v1.File",
    sizeBytes: payload.length,
    sha256: sha256(payload),
  };
  return { reference, ...event };
};

let bus: TestBus;
let authorization: string;
let failing: boolean;
/** Called when a payload was put, before that is answered. */
let whenPut: () => Promise<void>;
let counting: CountingStore;
beforeEach(async () => {
  failing = false;
  whenPut = async () => undefined;
  bus = await startTestBus(
    { maxPayloadBytes: 1000, maxOffloadBytes: 20_000, maxDecodedBytes: 100_000 },
    {
      store: (inner) => {
        counting = new CountingStore(inner);
        return overriding(counting.store, {
          putIfAbsent: async (key, bytes) => {
            if (failing) throw new TributaryError("TRB-STORE-FAILED");
            const done = await counting.store.putIfAbsent(key, bytes);
            if (key.startsWith("offload/")) await whenPut();
            return done;
          },
        });
      },
    },
  );
  authorization = await bus.bearer();
});
afterEach(() => bus.close());

async function publish(...events: EventInit[]) {
  const reply = await bus.server.app.inject({
    method: "POST",
    url: "/v1/events",
    headers: { authorization, "content-type": "application/x-protobuf" },
    payload: encodeRequest(events.map(encodeEvent)),
  });
  if (reply.statusCode !== 200)
    return { status: reply.statusCode, results: [], error: reply.json() as unknown };
  const { results } = PublishResponse.toObject(PublishResponse.decode(reply.rawPayload)) as {
    results: { accepted?: boolean; code?: string; message?: string; retryable?: boolean }[];
  };
  return { status: 200, results, error: undefined };
}
const codes = async (...events: EventInit[]) => (await publish(...events)).results.map(({ code }) => code);

/** As ingest gets it. */
async function fetched(payload: Buffer): Promise<Buffer | undefined> {
  const { reference } = referring(payload);
  const got = await new Offloaded(bus.store, 2 * 3600_000).fetch(reference as PayloadReference);
  return typeof got === "string" ? undefined : got;
}

function storedEvents() {
  return bus.stream.stored.map(({ bytes }) => {
    const envelope = new Envelope();
    expect(envelope.read(bytes, 0, bytes.length)).toBeUndefined();
    return { envelope, reference: referenceOf(envelope) };
  });
}

test("a large payload lies in the store before its event, which refers to it, is on the stream", async () => {
  const release = bus.stream.hold();
  const large = payloadOf(4000);
  const answer = publish(
    eventOf(payloadOf(10), { entityId: "before" }),
    eventOf(large),
    eventOf(payloadOf(10)),
  );
  while (bus.stream.appends === 0) await new Promise((resolve) => setTimeout(resolve, 1));
  const key = uriOf("acme", sha256(large));
  expect((await bus.store.get(key))?.equals(large)).toBe(true);
  release();
  expect((await answer).results.map(({ accepted }) => accepted)).toEqual([true, true, true]);
  const [found, ...others] = storedEvents().filter(({ reference }) => reference !== undefined);
  expect(others).toEqual([]);
  const { envelope, reference } = found!;
  expect(reference).toEqual({
    uri: key,
    typeUrl: "type.googleapis.com/scm.v1.File",
    sizeBytes: large.length,
    sha256: sha256(large),
  });
  // All else is as it was published.
  expect([envelope.entityId(), envelope.version(), envelope.eventId(), envelope.occurredSeconds]).toEqual([
    "large",
    7n,
    "e-1",
    5,
  ]);
  expect(envelope.attributeMap()).toEqual(new Map([["producer", "test"]]));
});

test("the limits: what is not over the one stays inline, what is over the other is refused", async () => {
  const framed = (bytes: number) => payloadOf(bytes / 2 - 10);
  expect(
    await codes(
      eventOf(framed(900)),
      eventOf(framed(1100)),
      eventOf(framed(19_000)),
      eventOf(framed(21_000)),
    ),
  ).toEqual([undefined, undefined, undefined, "TRB-EVENT-PAYLOAD-SIZE"]);
  expect(storedEvents().filter(({ reference }) => reference !== undefined).length).toBe(2);
});

test("what an event has beside its payload is limited wherever that lies", async () => {
  // One that takes such requests.
  await bus.close();
  bus = await startTestBus({ maxPayloadBytes: 1000, maxOffloadBytes: 20_000 });
  authorization = await bus.bearer();
  const payload = payloadOf(3000);
  await bus.store.put(uriOf("acme", sha256(payload)), payload);
  const attributes = { long: "x".repeat(270_000) };
  const large = eventOf(Buffer.alloc(2000), { attributes });
  const { results } = await publish(referring(payload, { attributes }), large);
  expect(results.map(({ code }) => code)).toEqual(["TRB-EVENT-PAYLOAD-SIZE", "TRB-EVENT-PAYLOAD-SIZE"]);
  expect(bus.stream.stored).toEqual([]);
});

test("a packed payload is offloaded as it is", async () => {
  const packed = gzipSync(payloadOf(4000));
  expect(await codes(eventOf(packed, { compression: 1 }))).toEqual([undefined]);
  const [stored] = storedEvents();
  expect(stored?.envelope.compression).toBe(1);
  expect((await bus.store.get(stored!.reference!.uri))?.equals(packed)).toBe(true);
});

test("the same payload twice is one object; a damaged one is mended by it", async () => {
  const large = payloadOf(2000);
  await publish(eventOf(large), eventOf(large, { entityId: "other" }));
  const key = uriOf("acme", sha256(large));
  await bus.store.put(key, large.subarray(5));
  await publish(eventOf(large));
  expect((await fetched(large))?.equals(large)).toBe(true);
});

test("while the store fails, its events alone may be sent again", async () => {
  failing = true;
  const { results } = await publish(eventOf(payloadOf(10)), eventOf(payloadOf(4000)));
  expect(results.map(({ code, retryable }) => [code, retryable])).toEqual([
    [undefined, undefined],
    ["TRB-STORE-FAILED", true],
  ]);
  expect((await publish(eventOf(payloadOf(4000)))).status).toBe(503);
  failing = false;
  expect(await codes(eventOf(payloadOf(4000)))).toEqual([undefined]);
});

test("from the closing on, a lake that moves takes no payloads, not even one that is being put; others go on", async () => {
  const there = payloadOf(3000);
  await publish(eventOf(there));
  const ask = () =>
    bus.server.app.inject({
      method: "POST",
      url: "/v1/uploads",
      headers: { authorization },
      payload: { tenant: "acme", sha256: sha256(payloadOf(9)).toString("hex"), sizeBytes: 3000 },
    });
  expect((await ask()).statusCode).toBe(200);
  whenPut = () => markClosed(bus.store);
  const { results } = await publish(eventOf(payloadOf(3000)), eventOf(payloadOf(10)), referring(there));
  expect(results.map(({ code, retryable }) => [code, retryable])).toEqual([
    ["TRB-LAKE-CLOSED", true],
    [undefined, undefined],
    ["TRB-LAKE-CLOSED", true],
  ]);
  const closed = { error: { code: "TRB-LAKE-CLOSED" } };
  expect(await publish(eventOf(payloadOf(3000)))).toMatchObject({ status: 503, error: closed });
  const asked = await ask();
  expect([asked.statusCode, asked.json()]).toMatchObject([503, closed]);
});

test("a bus that was frozen since it looked for payloads promises nothing", async () => {
  for (const event of [eventOf(payloadOf(4000)), referring(payloadOf(4000))]) {
    if (event.reference !== undefined) {
      const payload = payloadOf(4000);
      await bus.store.put(uriOf("acme", sha256(payload)), payload);
      Object.assign(event, referring(payload));
    }
    const release = bus.stream.hold();
    const before = bus.stream.appends;
    const answer = publish(event);
    while (bus.stream.appends === before) await new Promise((resolve) => setTimeout(resolve, 1));
    // A quarter of what payloads are kept, and a little.
    vi.useFakeTimers({ now: Date.now() + 31 * 60_000, toFake: ["Date"] });
    try {
      release();
      expect(await answer).toMatchObject({ status: 503, error: { error: { code: "TRB-STORE-FAILED" } } });
    } finally {
      vi.useRealTimers();
    }
    expect((await publish(event)).status).toBe(200);
  }
});

describe.each(["application/json", "application/x-ndjson"])("in %s", (type) => {
  const post = async (event: object) => {
    const reply = await bus.server.app.inject({
      method: "POST",
      url: "/v1/events",
      headers: { authorization, "content-type": type },
      payload: type === "application/json" ? JSON.stringify([event]) : JSON.stringify(event),
    });
    return (reply.json() as { results: { accepted?: boolean; code?: string; message?: string }[] })
      .results[0]!;
  };
  const common = {
    tenantId: "acme",
    entityType: "scm.v1.File",
    entityId: "a",
    operation: "OPERATION_UPDATED",
    version: "1",
  };

  test("a payload over the limit is moved", async () => {
    const withPath = (bytes: number) => ({
      ...common,
      payload: { "@type": "type.googleapis.com/scm.v1.File", path: "p".repeat(bytes) },
    });
    expect(await post(withPath(5_000))).toMatchObject({ accepted: true });
    expect(storedEvents()[0]!.reference?.sizeBytes).toBe(5_003);
  });

  test("a payload that its producer has put is referred to", async () => {
    const payload = payloadOf(5000);
    const uri = uriOf("acme", sha256(payload));
    const payloadReference = {
      uri,
      typeUrl: "type.googleapis.com/scm.v1.File",
      sizeBytes: String(payload.length),
      sha256: sha256(payload).toString("base64"),
    };
    expect(await post({ ...common, payloadReference })).toMatchObject({ code: "TRB-EVENT-PAYLOAD-MISSING" });
    await bus.store.put(uri, payload);
    expect(await post({ ...common, payloadReference })).toMatchObject({ accepted: true });
    expect(storedEvents()[0]!.reference).toMatchObject({ uri, sizeBytes: payload.length });
  });
});

describe("a reference that a producer makes", () => {
  test("is accepted once its payload is there", async () => {
    const payload = payloadOf(5000);
    expect(await codes(referring(payload))).toEqual(["TRB-EVENT-PAYLOAD-MISSING"]);
    await bus.store.put(uriOf("acme", sha256(payload)), payload.subarray(1));
    expect(await codes(referring(payload))).toEqual(["TRB-EVENT-PAYLOAD-MISSING"]);
    await bus.store.put(uriOf("acme", sha256(payload)), payload);
    expect(await codes(referring(payload))).toEqual([undefined]);
    expect(bus.stream.stored[0]?.bytes.equals(encodeEvent(referring(payload)))).toBe(true);
  });

  test("names its own tenant's payloads only; of others it learns nothing", async () => {
    const payload = payloadOf(5000);
    await bus.store.put(uriOf("umbrella", sha256(payload)), payload);
    authorization = await bus.bearer({ tenants: ["acme"] });
    const foreign = referring(payload);
    const own = { ...foreign.reference!, uri: uriOf("umbrella", sha256(payload)) };
    const [there, missing] = [payload, payloadOf(5000)].map((bytes) => referring(bytes));
    // By its own name for it: the same answer whether the other tenant has it or nobody does.
    expect(await codes(there!)).toEqual(await codes(missing!));
    expect(await codes({ ...foreign, reference: own })).toEqual(["TRB-EVENT-REFERENCE"]);
  });

  test.each<readonly [string, Partial<NonNullable<EventInit["reference"]>>, string]>([
    ["another hash", { sha256: Buffer.alloc(32) }, "TRB-EVENT-REFERENCE"],
    ["no hash", { sha256: Buffer.alloc(0) }, "TRB-EVENT-REFERENCE"],
    ["a path", { uri: "offload/acme/../umbrella/x" }, "TRB-EVENT-REFERENCE"],
    ["another type", { typeUrl: "type.googleapis.com/scm.v1.Commit" }, "TRB-EVENT-REFERENCE"],
    ["no size", { sizeBytes: 0 }, "TRB-EVENT-REFERENCE"],
    ["a negative size", { sizeBytes: -1 }, "TRB-EVENT-REFERENCE"],
    ["too large a size", { sizeBytes: 20_001 }, "TRB-EVENT-PAYLOAD-SIZE"],
  ])("with %s is refused", async (_what, change, code) => {
    const good = referring(payloadOf(3000));
    expect(await codes({ ...good, reference: { ...good.reference!, ...change } })).toEqual([code]);
  });

  test("costs what it refers to: a request may ask for so much alone", async () => {
    const payload = payloadOf(9000);
    await bus.store.put(uriOf("acme", sha256(payload)), payload);
    const many = Array.from({ length: 7 }, (_, i) => referring(payload, { entityId: `e${i}` }));
    expect(await publish(...many)).toMatchObject({ status: 413 });
    expect((await publish(...many.slice(0, 4))).status).toBe(200);
  });

  test("costs, packed, the most that it may unpack to", async () => {
    const packed = gzipSync(Buffer.alloc(2_000_000));
    expect(packed.length).toBeLessThan(5000);
    await bus.store.put(uriOf("acme", sha256(packed)), packed);
    const many = Array.from({ length: 5 }, (_, i) =>
      referring(packed, { entityId: `e${i}`, compression: 1 }),
    );
    expect(await publish(...many)).toMatchObject({ status: 413 });
    expect((await publish(...many.slice(0, 4))).results.map(({ accepted }) => accepted)).toEqual(
      Array.from({ length: 4 }, () => true),
    );
  });

  test("is refused where the payload is small enough to travel", async () => {
    const payload = Buffer.alloc(1000);
    await bus.store.put(uriOf("acme", sha256(payload)), payload);
    const { results } = await publish(referring(payload), eventOf(payloadOf(10)));
    expect(results).toMatchObject([
      {
        code: "TRB-EVENT-REFERENCE",
        message:
          "payload_reference.size_bytes: expected at least 1001; smaller payloads travel in their event",
      },
      { accepted: true },
    ]);
    expect([leastReferred(1000), leastReferred(1_000_000)]).toEqual([1001, 65_536]);
  });

  test("to an old payload puts it anew beside the old one, which a collector may have an eye on", async () => {
    const payload = payloadOf(3000);
    const key = uriOf("acme", sha256(payload));
    await bus.store.put(key, payload);
    const lying = async () => {
      const found: string[] = [];
      for await (const { key: at } of bus.store.list(key)) found.push(at);
      return found;
    };
    const age = async (at: string) => {
      const old = new Date(Date.now() - 2 * 3600_000);
      await bus.store.withLocal([at], async ([path]) => utimesSync(path!, old, old));
    };
    await age(key);
    expect(await codes(referring(payload))).toEqual([undefined]);
    const [first, second, ...more] = await lying();
    expect([first, more]).toEqual([key, []]);
    // Once is enough.
    expect(await codes(referring(payload), eventOf(payload))).toEqual([undefined, undefined]);
    expect(await lying()).toEqual([key, second]);
    await bus.store.put(key, Buffer.alloc(0));
    expect((await fetched(payload))?.equals(payload)).toBe(true);
    await age(second!);
    expect(await codes(eventOf(payload))).toEqual([undefined]);
    expect(await lying()).toHaveLength(3);
  });

  test("to an old payload that rows have been made of relies on that", async () => {
    const payload = payloadOf(3000);
    const key = uriOf("acme", sha256(payload));
    await bus.store.put(key, payload);
    const old = new Date(Date.now() - 2 * 3600_000);
    await bus.store.withLocal([key], async ([path]) => utimesSync(path!, old, old));
    await new Offloaded(bus.store, 2 * 3600_000).keepForGood([key]);
    expect(await codes(referring(payload), eventOf(payload))).toEqual([undefined, undefined]);
    const found: string[] = [];
    for await (const { key: at } of bus.store.list("offload/")) found.push(at);
    expect(found).toEqual([key]);
  });

  test("is checked by two cheap requests", async () => {
    const payload = payloadOf(3000);
    await bus.store.put(uriOf("acme", sha256(payload)), payload);
    counting.requests.length = 0;
    expect(await codes(referring(payload), referring(payloadOf(3000)))).toEqual([
      undefined,
      "TRB-EVENT-PAYLOAD-MISSING",
    ]);
    expect(counting.requests.map(({ operation }) => operation)).toEqual(["stat", "get", "stat", "get"]);
  });
});

describe("an upload by the producer itself", () => {
  const ask = async (payload: Uint8Array, more: Record<string, unknown> = {}) => {
    const reply = await bus.server.app.inject({
      method: "POST",
      url: "/v1/uploads",
      headers: { authorization },
      payload: {
        tenant: "acme",
        sha256: sha256(payload).toString("hex"),
        sizeBytes: payload.length,
        ...more,
      },
    });
    return { status: reply.statusCode, ...(reply.json() as Record<string, unknown>) } as {
      status: number;
      uri?: string;
      uploaded?: boolean;
      url?: string;
      error?: { code: string };
    };
  };
  const put = async (url: string, payload: Buffer, headers: Record<string, string> = {}) => {
    const reply = await bus.server.app.inject({ method: "PUT", url, payload, headers });
    return { status: reply.statusCode, code: (reply.json() as { error?: { code: string } }).error?.code };
  };

  test("is put where the bus says, then referred to; what is there already need not be put again", async () => {
    const payload = payloadOf(8000);
    const asked = await ask(payload);
    expect(asked).toMatchObject({ status: 200, uploaded: false, uri: uriOf("acme", sha256(payload)) });
    expect(await codes(referring(payload))).toEqual(["TRB-EVENT-PAYLOAD-MISSING"]);
    expect(await put(asked.url!, payload)).toEqual({ status: 200, code: undefined });
    expect((await bus.store.get(asked.uri!))?.equals(payload)).toBe(true);
    expect(await codes(referring(payload))).toEqual([undefined]);
    expect(await ask(payload)).toMatchObject({ status: 200, uploaded: true });
  });

  test("takes those bytes and no others, packed on the way or not", async () => {
    const payload = payloadOf(3000);
    const { url, uri } = await ask(payload);
    const other = Buffer.from(payload);
    other[7]! ^= 1;
    expect(await put(url!, other)).toEqual({ status: 400, code: "TRB-UPLOAD-MISMATCH" });
    expect(await put(url!, payload.subarray(1))).toEqual({ status: 400, code: "TRB-UPLOAD-MISMATCH" });
    expect(await put(url!, Buffer.concat([payload, payload]))).toEqual({
      status: 413,
      code: "TRB-REQ-TOO-LARGE",
    });
    expect(await bus.store.get(uri!)).toBeUndefined();
    expect((await put(url!, gzipSync(payload), { "content-encoding": "gzip" })).status).toBe(200);
  });

  test("asks for a tenant that the token grants, a hash and a size within the limit", async () => {
    authorization = await bus.bearer({ tenants: ["acme"] });
    const payload = payloadOf(3000);
    expect(await ask(payload, { tenant: "umbrella" })).toMatchObject({
      status: 403,
      error: { code: "TRB-AUTH-TENANT" },
    });
    for (const wrong of [
      { sha256: "x" },
      { sizeBytes: 0 },
      { sizeBytes: 20_001 },
      { tenant: 5 },
      { more: 1 },
    ])
      expect((await ask(payload, wrong)).status).toBe("more" in wrong ? 200 : "tenant" in wrong ? 403 : 400);
    authorization = await bus.bearer({ role: "analyst" });
    expect((await ask(payload)).status).toBe(403);
  });

  test("a URL that is handed on names none of the token's other tenants", async () => {
    authorization = await bus.bearer({ tenants: ["acme", "umbrella"] });
    const { url } = await ask(payloadOf(3000));
    const claims = Buffer.from(url!.split(".")[1]!, "base64url").toString();
    expect(claims).toContain("acme");
    expect(claims).not.toContain("umbrella");
  });

  test("is not for a payload that travels in its event", async () => {
    expect(await ask(Buffer.alloc(1000))).toMatchObject({
      status: 400,
      error: { code: "TRB-REQ-INVALID", message: expect.stringMatching(/sizeBytes.*1001/) as string },
    });
  });

  test("a ticket is no token, a token no ticket, and neither lasts", async () => {
    const payload = payloadOf(3000);
    const { url } = await ask(payload);
    const ticket = new URLSearchParams(url!.split("?")[1]).get("ticket")!;
    const token = authorization.slice("Bearer ".length);
    expect(await put(`/v1/uploads?ticket=${token}`, payload)).toEqual({
      status: 401,
      code: "TRB-AUTH-INVALID",
    });
    expect((await put("/v1/uploads", payload)).status).toBe(400);
    authorization = `Bearer ${ticket}`;
    expect((await publish(eventOf(payloadOf(1)))).status).toBe(401);
    vi.useFakeTimers({ now: Date.now() + 16 * 60_000, toFake: ["Date"] });
    try {
      expect(await put(url!, payload)).toEqual({ status: 401, code: "TRB-AUTH-EXPIRED" });
    } finally {
      vi.useRealTimers();
    }
  });
});
