import { createServer, type IncomingMessage, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, expect, test } from "vitest";
import { startTestBus } from "../../../test/support/bus-server.js";
import { Lake, THING } from "../../../test/support/lake.js";
import { loadConfig } from "../../base/config.js";
import type { Traces } from "../../base/traces.js";
import { encodeEvent, encodeRequest } from "../../contracts/encode-event.js";
import { EventBatch } from "../../ingest/event-batch.js";
import { openTraces } from "./runtime.js";

/** From a producer's traceparent to the commit, as a collector of OpenTelemetry hears of it. */

interface Span {
  readonly name: string;
  readonly traceId: string;
  readonly parentSpanId: string;
  readonly startTimeUnixNano: string;
  readonly endTimeUnixNano: string;
  readonly attributes: readonly { readonly key: string; readonly value: { readonly stringValue?: string } }[];
}
interface Export {
  readonly resourceSpans: readonly { readonly scopeSpans: readonly { readonly spans: readonly Span[] }[] }[];
}

let collector: Server;
let endpoint: string;
let spans: Span[];
beforeAll(async () => {
  spans = [];
  collector = createServer((request, response) => {
    void bodyOf(request).then((body) => {
      const { resourceSpans } = JSON.parse(body) as Export;
      spans.push(...resourceSpans.flatMap(({ scopeSpans }) => scopeSpans.flatMap((scope) => scope.spans)));
      response.setHeader("content-type", "application/json").end("{}");
    });
  });
  await new Promise<void>((resolve) => collector.listen(0, "127.0.0.1", resolve));
  endpoint = `http://127.0.0.1:${(collector.address() as AddressInfo).port}/v1/traces`;
});
afterAll(() => void collector.close());

async function bodyOf(request: IncomingMessage): Promise<string> {
  const pieces: Buffer[] = [];
  for await (const piece of request) pieces.push(piece as Buffer);
  return Buffer.concat(pieces).toString("utf8");
}

const TRACE = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT = "00f067aa0ba902b7";
const SAMPLED = `00-${TRACE}-${PARENT}-01`;
const tracesTo = (to: string | undefined): Promise<Traces> =>
  openTraces(loadConfig(to === undefined ? {} : { tracing: { endpoint: to } }, { env: {} }), "test");

const event = (id: string, traceparent: string | undefined, entityType: string, value: Buffer) =>
  encodeEvent({
    tenantId: "acme",
    entityType,
    entityId: id,
    operation: 1,
    version: 1,
    payload: { value },
    ...(traceparent === undefined ? {} : { attributes: { producer: "p", traceparent } }),
  });
const events = (entityType: string): Buffer[] =>
  [SAMPLED, undefined, SAMPLED.replace(/01$/, "00"), "00-no-trace-01"].map((traceparent, i) =>
    event(`e${i}`, traceparent, entityType, Buffer.alloc(0)),
  );

test("a sampled event is told of at each step, with its producer's span as parent; no other event is", async () => {
  const traces = await tracesTo(endpoint);
  const bus = await startTestBus({}, { traces });
  const lake = await Lake.create();
  try {
    const reply = await bus.server.app.inject({
      method: "POST",
      url: "/v1/events",
      headers: {
        authorization: await bus.bearer(),
        "content-type": "application/x-protobuf",
        traceparent: SAMPLED,
      },
      // One that is refused leaves no trace of an append.
      payload: encodeRequest([
        event("bad", SAMPLED, "no.such.Type", Buffer.alloc(0)),
        ...events("scm.v1.File"),
      ]),
    });
    expect(reply.statusCode).toBe(200);
    lake.context = { ...lake.context, traces };
    // A model that catches up from raw sees no attributes, so it is to be in step.
    await lake.settled();
    const batch = new EventBatch(THING, "test");
    const receivedAt = Date.now() - 1000;
    for (const [i, bytes] of events(THING).entries())
      batch.add(bytes, 0, bytes.length, "0", String(i + 1).padStart(12, "0"), receivedAt);
    await lake.land(batch);
    await lake.settled();
    await traces.close();
    expect(spans.map(({ name, traceId, parentSpanId }) => [name, traceId, parentSpanId]).sort()).toEqual(
      ["append", "land", "refine", "request"].map((step) => [`tributary.${step}`, TRACE, PARENT]),
    );
    const landed = spans.find(({ name }) => name === "tributary.land")!;
    expect(Math.round(Number(landed.startTimeUnixNano) / 1e6)).toBe(receivedAt);
    expect(Number(landed.endTimeUnixNano)).toBeGreaterThan(Number(landed.startTimeUnixNano));
    // Nothing of a tenant, nor of an event's content, leaves by this way.
    expect(landed.attributes.map(({ key }) => key).sort()).toEqual(["partition", "position", "table"]);
    expect(JSON.stringify(spans)).not.toContain("acme");
  } finally {
    await bus.close();
    await lake.close();
  }
});

test("without an endpoint nothing is looked for; a collector that is gone harms nobody", async () => {
  expect((await tracesTo(undefined)).on).toBe(false);
  const traces = await tracesTo("http://127.0.0.1:9/v1/traces");
  traces.step("tributary.land", SAMPLED, Date.now() - 5, Date.now(), {});
  await traces.close();
});
