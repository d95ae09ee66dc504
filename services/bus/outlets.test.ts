import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { startTestBus, type TestBus } from "../../test/support/bus-server.js";
import { MemoryStream } from "../../test/support/memory-stream.js";
import { domainOf } from "../stream/domains.js";

/** Streams by domain: what one of them costs, and whom. */

interface Event {
  readonly entityType: string;
  readonly entityId: string;
}
const scm = (entityId: string): Event => ({ entityType: "scm.v1.File", entityId });
const tracker = (id: string): Event => ({ ...scm(id), entityType: "tracker.v1.Issue" });

let bus: TestBus;
let streams: Map<string, MemoryStream>;
let authorization: string;

beforeEach(async () => {
  streams = new Map([
    ["scm", new MemoryStream()],
    ["tracker", new MemoryStream()],
  ]);
  bus = await startTestBus(
    { maxLagBytes: 10_000, maxInFlightBytes: 400_000 },
    { streams: { nameOf: domainOf, stream: (name) => streams.get(name) } },
  );
  authorization = await bus.bearer();
});
afterEach(() => bus.close());

interface Result {
  readonly accepted: boolean;
  readonly partition?: string;
  readonly position?: string;
  readonly code?: string;
  readonly retryable?: boolean;
}
interface Answer {
  readonly results: Result[];
  readonly accepted: number;
  readonly rejected: number;
  readonly error?: { readonly code: string; readonly message: string };
}

async function publish(events: readonly Event[], token = authorization) {
  const lines = events.map(({ entityType, entityId }) =>
    JSON.stringify({
      tenantId: "acme",
      entityType,
      entityId,
      operation: "OPERATION_UPDATED",
      version: "1",
      payload: { "@type": `type.googleapis.com/${entityType}` },
    }),
  );
  const reply = await bus.server.app.inject({
    method: "POST",
    url: "/v1/events",
    headers: { authorization: token, "content-type": "application/x-ndjson" },
    payload: lines.join("\n"),
  });
  return { status: reply.statusCode, ...(reply.json() as Answer) };
}

const stored = (name: string) => streams.get(name)!.stored.length;
const MIXED = [scm("1"), tracker("1"), scm("2"), tracker("2"), scm("3")];

test("each event goes by the stream of its domain, and its answer says where it lies there", async () => {
  const { status, results } = await publish(MIXED);
  expect(status).toBe(200);
  for (const [i, { partition, position }] of results.entries()) {
    const name = domainOf(MIXED[i]!.entityType);
    const found = streams
      .get(name)!
      .stored.find((one) => one.partition === partition && one.position === position);
    expect(found?.bytes.includes(MIXED[i]!.entityType)).toBe(true);
  }
  expect([stored("scm"), stored("tracker")]).toEqual([3, 2]);
});

describe("a domain that cannot take events costs its own alone, which may be sent again", () => {
  const outcome = ({ accepted, code, retryable }: Result) => (accepted ? "accepted" : `${code} ${retryable}`);

  test.each<readonly [string, string, () => unknown]>([
    ["is down", "TRB-BUS-STREAM-DOWN true", () => Object.assign(streams.get("scm")!, { down: true })],
    [
      "is at its capacity",
      "TRB-BUS-BUSY true",
      () => Object.assign(streams.get("scm")!, { refuses: () => true }),
    ],
    ["is behind", "TRB-BUS-BUSY true", () => Object.assign(streams.get("scm")!, { backlog: 10_001 })],
    ["was never there", "TRB-BUS-STREAM-DOWN true", () => streams.delete("scm")],
  ])("one that %s", async (_what, code, fail) => {
    fail();
    const answer = await publish(MIXED);
    expect(answer).toMatchObject({ status: 200, accepted: 2, rejected: 3 });
    expect(answer.results.map(outcome)).toEqual([code, "accepted", code, "accepted", code]);
    expect(stored("tracker")).toBe(2);
    // Alone it is the whole request's failure.
    const alone = await publish([scm("4")]);
    expect(alone.status).toBe(code.includes("BUSY") ? 429 : 503);
    expect(alone.error?.code).toBe(code.split(" ", 1)[0]);
  });

  test("some events refused by one, all failed by the other: the answer says what holds for each", async () => {
    Object.assign(streams.get("scm")!, { refuses: (i: number) => i === 1 });
    Object.assign(streams.get("tracker")!, { down: true });
    const { results } = await publish(MIXED);
    const down = "TRB-BUS-STREAM-DOWN true";
    expect(results.map(outcome)).toEqual(["accepted", down, "TRB-BUS-BUSY true", down, "accepted"]);
  });

  test("an event too large for its stream is rejected for good, and costs no other", async () => {
    Object.assign(streams.get("scm")!, { mostBytes: 300 });
    const large = { ...scm("large"), entityId: "x".repeat(1000) };
    const answer = await publish([...MIXED, large]);
    expect(answer).toMatchObject({ status: 200, accepted: 5, rejected: 1 });
    expect(outcome(answer.results[5]!)).toBe("TRB-EVENT-STREAM-SIZE false");
    // Alone as well: a refusal of the whole request would have it sent again and again.
    Object.assign(streams.get("scm")!, { refuses: (i: number) => i === 0 });
    const both = await publish([scm("7"), large]);
    expect(both).toMatchObject({ status: 200, accepted: 0, rejected: 2 });
    expect(both.results.map(outcome)).toEqual(["TRB-BUS-BUSY true", "TRB-EVENT-STREAM-SIZE false"]);
  });

  test("nothing accepted, and one of them may have stored: 503, for 429 would promise that nothing was", async () => {
    Object.assign(streams.get("scm")!, { refuses: () => true });
    Object.assign(streams.get("tracker")!, { down: true });
    const answer = await publish(MIXED);
    expect(answer).toMatchObject({ status: 503, error: { code: "TRB-BUS-STREAM-DOWN" } });
  });
});

test("who may publish only what is behind is refused before the body is read", async () => {
  await publish(MIXED);
  Object.assign(streams.get("scm")!, { backlog: 10_001 });
  const only = await bus.bearer({ entityTypes: ["scm.v1.File"] });
  const reply = await bus.server.app.inject({
    method: "POST",
    url: "/v1/events",
    headers: { authorization: only, "content-type": "application/x-ndjson" },
    payload: "not even an event",
  });
  expect(reply.statusCode).toBe(429);
  expect(await publish([tracker("3")])).toMatchObject({ status: 200 });
});

test("a stream that hangs delays its own events, and takes half of the memory at most", async () => {
  await publish(MIXED);
  const release = streams.get("scm")!.hold();
  const large = { ...scm("large"), entityId: "x".repeat(1000) };
  const hanging = Array.from({ length: 20 }, () => publish(Array.from({ length: 20 }, () => large)));
  // What is beyond its half is refused although everything before still hangs.
  const first = await Promise.race(hanging);
  expect(first).toMatchObject({ status: 429, error: { code: "TRB-BUS-BUSY" } });
  expect(await publish([tracker("9")])).toMatchObject({ status: 200, accepted: 1 });
  release();
  const statuses = (await Promise.all(hanging)).map(({ status }) => status);
  expect(statuses.filter((status) => status === 200).length).toBeGreaterThan(2);
});

test.each([
  ["its part of the memory", 5, {}],
  ["what the stream itself takes at once", 2, { maxInFlightBytes: 100_000 }],
])("who floods a stream that is slow leaves others some of %s", async (_what, most, limit) => {
  Object.assign(streams.get("scm")!, limit);
  const release = streams.get("scm")!.hold();
  const events = Array.from({ length: 20 }, () => ({ ...scm("large"), entityId: "x".repeat(1000) }));
  let refused = 0;
  const flood = Array.from({ length: 10 }, async () => {
    const { status } = await publish(events);
    if (status === 429) refused++;
  });
  await expect.poll(() => refused).toBe(10 - most);
  const others = publish(events, await bus.bearer({ subject: "other" }));
  await expect.poll(() => streams.get("scm")!.appends).toBe(most + 1);
  release();
  expect(await others).toMatchObject({ status: 200, accepted: 20 });
  await Promise.all(flood);
});

test("metrics tell of each stream", async () => {
  await publish(MIXED);
  Object.assign(streams.get("tracker")!, { backlog: 7 });
  const operator = await bus.bearer({ role: "operator" });
  const { payload } = await bus.server.app.inject({ url: "/metrics", headers: { authorization: operator } });
  expect(payload).toContain('tributary_bus_backlog_bytes{stream="tracker"} 7');
  expect(payload).toContain('tributary_bus_append_seconds_count{stream="scm"} 1');
});
