import { request as httpRequest } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { startTestBus, type TestBus } from "../../test/support/bus-server.js";
import { type EventInit, encodeEvent, encodeRequest } from "../contracts/encode-event.js";
import { Envelope } from "../contracts/envelope.js";

const MiB = 1024 * 1024;
const good: EventInit = {
  tenantId: "acme",
  entityType: "scm.v1.File",
  entityId: "a",
  operation: 3,
  version: 7,
};

let bus: TestBus;
let authorization: string;
beforeEach(async () => {
  bus = await startTestBus();
  authorization = await bus.bearer();
});
afterEach(() => bus.close());

function storedIds(): string[] {
  const envelope = new Envelope();
  return bus.stream.stored.map(({ bytes }) => {
    expect(envelope.read(bytes, 0, bytes.length)).toBeUndefined();
    return envelope.entityId();
  });
}

describe("over a real connection", () => {
  const listen = async (): Promise<URL> => new URL(await bus.server.listen("127.0.0.1", 0));

  test("a client that goes away in the middle of its body leaves nothing behind", async () => {
    const url = await listen();
    await new Promise<void>((resolve) => {
      const outgoing = httpRequest(new URL("/v1/events", url), {
        method: "POST",
        headers: { authorization, "content-type": "application/x-protobuf", "content-length": "100000" },
      });
      outgoing.on("error", () => resolve());
      outgoing.write(Buffer.alloc(500));
      setTimeout(() => outgoing.destroy(), 30);
      outgoing.on("close", () => resolve());
    });
    const metrics = await scrape(url);
    expect(metrics).toMatch(/^tributary_bus_in_flight_bytes 0$/m);
    expect(bus.stream.stored).toEqual([]);
  });

  const scrape = async (url: URL): Promise<string> => {
    const operator = await bus.bearer({ role: "operator" });
    for (let tries = 0; ; tries++) {
      const reply = await fetch(new URL("/metrics", url), { headers: { authorization: operator } });
      const text = await reply.text();
      if (/in_flight_bytes 0$/m.test(text) || tries === 100) return text;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  };

  test("draining lets requests in flight end, refuses new ones, and then closes", async () => {
    const url = await listen();
    const release = bus.stream.hold();
    const send = (id: string) =>
      fetch(new URL("/v1/events", url), {
        method: "POST",
        headers: { authorization, "content-type": "application/x-protobuf" },
        body: new Uint8Array(encodeRequest([encodeEvent({ ...good, entityId: id })])),
      });
    const first = send("in flight");
    while (bus.stream.appends === 0) await new Promise((resolve) => setTimeout(resolve, 1));
    const drained = bus.server.drain();
    expect(bus.server.draining).toBe(true);
    const refused = await bus.server.app
      .inject({ method: "POST", url: "/v1/events", headers: { authorization } })
      .catch(() => undefined);
    expect(refused === undefined || refused.statusCode === 503).toBe(true);
    release();
    expect((await first).status).toBe(200);
    await drained;
    await expect(send("too late")).rejects.toThrow();
    expect(storedIds()).toEqual(["in flight"]);
  });

  test("draining cuts a client that never ends its request", async () => {
    const url = await listen();
    const outgoing = httpRequest(new URL("/v1/events", url), {
      method: "POST",
      headers: { authorization, "content-type": "application/x-protobuf", "content-length": "1000" },
    });
    const gone = new Promise<void>((resolve) => {
      outgoing.on("error", () => undefined);
      outgoing.on("close", () => resolve());
    });
    const connected = new Promise<void>((resolve) => bus.server.app.server.once("request", () => resolve()));
    outgoing.write("x");
    await connected;
    await bus.server.drain(50);
    await gone;
    expect(bus.stream.appends).toBe(0);
  });

  test("a refused client may send on, and does not hold up the end", async () => {
    const url = await listen();
    bus.stream.backlog = 1e12;
    const body = new Uint8Array(20 * MiB);
    const headers = { authorization, "content-type": "application/x-protobuf" };
    const answer = await fetch(new URL("/v1/events", url), { method: "POST", headers, body });
    expect(answer.status).toBe(429);
    await bus.server.drain();
  });

  test("what is not HTTP is answered with the error body", async () => {
    const url = await listen();
    const answer = await new Promise<string>((resolve) => {
      const socket = connect((bus.server.app.server.address() as AddressInfo).port, url.hostname, () =>
        socket.write("nonsense\r\n\r\n"),
      );
      let received = "";
      socket.on("data", (chunk) => {
        received += String(chunk);
      });
      socket.on("close", () => resolve(received));
    });
    expect(answer).toMatch(/^HTTP\/1\.1 400 /);
    expect(answer).toContain('"code":"TRB-REQ-UNREADABLE"');
  });
});
