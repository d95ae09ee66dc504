import { request as httpRequest } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { startTestBus, type TestBus, testRegistry } from "../../test/support/bus-server.js";
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

  /** What the bus holds of bodies and answers, in bytes. */
  const inFlight = async () => {
    const operator = { authorization: await bus.bearer({ role: "operator" }) };
    const reply = await bus.server.app.inject({ url: "/metrics", headers: operator });
    return Number(/in_flight_bytes (\d+)/.exec(reply.payload)?.[1]);
  };
  const holds = async (bytes: number) => {
    while ((await inFlight()) < bytes) await new Promise((resolve) => setTimeout(resolve, 5));
  };

  /** A connection that has sent the head of a request and `body`, and what it has received. */
  const half = async (url: URL, header: string, announced: string, body = "x") => {
    const socket = connect(Number(url.port), url.hostname);
    const received = { text: "", closed: false };
    socket.on("error", () => undefined);
    socket.on("data", (chunk) => {
      received.text += String(chunk);
    });
    socket.on("close", () => {
      received.closed = true;
    });
    await new Promise<void>((resolve) => socket.once("connect", () => resolve()));
    socket.write(
      `POST /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: ${header}\r\ncontent-type: application/x-protobuf\r\n${announced}\r\n\r\n${body}`,
    );
    return { socket, received };
  };
  const publish = (url: URL, header: string, id: string) =>
    fetch(new URL("/v1/events", url), {
      method: "POST",
      headers: { authorization: header, "content-type": "application/x-protobuf" },
      body: new Uint8Array(encodeRequest([encodeEvent({ ...good, entityId: id })])),
    });
  const until = async (what: () => boolean) => {
    while (!what()) await new Promise((resolve) => setTimeout(resolve, 5));
  };

  test("sockets that announce 64 MB and send a byte hold up nobody", async () => {
    const url = await listen();
    const other = await bus.bearer({ subject: "other" });
    const idle = await Promise.all(
      Array.from({ length: 8 }, () => half(url, authorization, `content-length: ${64 * MiB}`)),
    );
    await until(() => bus.server.app.server.listening);
    for (const header of [authorization, other]) expect((await publish(url, header, "a")).status).toBe(200);
    expect(idle.map(({ received }) => received.text).join("")).toBe("");
    for (const { socket } of idle) socket.destroy();
  });

  test("a body that announces more than one may have is refused before it comes", async () => {
    const { socket, received } = await half(await listen(), authorization, `content-length: ${65 * MiB}`);
    await until(() => received.text !== "");
    expect(received.text).toMatch(/^HTTP\/1\.1 413 .*TRB-REQ-TOO-LARGE/s);
    socket.destroy();
  });

  test("answers count until they have left, and one that is not read is given up for another's share", async () => {
    await bus.close();
    bus = await startTestBus({ maxInFlightBytes: 2 * MiB, maxEventsPerRequest: 150_000 });
    authorization = await bus.bearer({ subject: "silent" });
    const url = await listen();
    // A byte or two each, and a hundred times as much to say about it: more than the system's buffers take.
    const body = `[${"1,".repeat(149_999)}1]`;
    const socket = connect(Number(url.port), url.hostname);
    socket.on("error", () => undefined);
    socket.pause();
    socket.write(
      `POST /v1/events HTTP/1.1\r\nhost: x\r\nauthorization: ${authorization}\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
    );
    await holds(20 * MiB);
    expect((await publish(url, authorization, "own")).status).toBe(429);
    // It is given a second, from when it was made.
    const modest = await bus.bearer({ subject: "modest" });
    let tries = 0;
    while ((await inFlight()) > 0) {
      expect((await publish(url, modest, `other ${tries++}`)).status).toBe(200);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
    expect(storedIds()).toEqual(Array.from({ length: tries }, (_, i) => `other ${i}`));
    expect(tries).toBeGreaterThan(5);
    socket.destroy();
  });

  test("the room for an answer is asked for before anything is accepted", async () => {
    await bus.close();
    bus = await startTestBus({ maxInFlightBytes: MiB });
    authorization = await bus.bearer();
    const url = await listen();
    // A request alone may always pass.
    const { socket } = await half(url, authorization, "content-length: 100000");
    await holds(1);
    const event = encodeEvent(good);
    for (const [type, body] of [
      ["application/x-protobuf", encodeRequest([event, ...Array<Buffer>(5_000).fill(Buffer.alloc(0))])],
      ["application/x-ndjson", Buffer.from("1\n".repeat(5_000))],
    ] as const) {
      const headers = { authorization, "content-type": type };
      const init = { method: "POST", headers, body: new Uint8Array(body) };
      expect((await fetch(new URL("/v1/events", url), init)).status, type).toBe(429);
    }
    expect(storedIds()).toEqual([]);
    socket.destroy();
  });

  test("a long answer is told whole, and is no longer held then", async () => {
    const url = await listen();
    const answer = await fetch(new URL("/v1/events", url), {
      method: "POST",
      headers: { authorization, "content-type": "application/x-ndjson" },
      body: "1\n".repeat(5_000),
    });
    const { results, accepted, rejected } = (await answer.json()) as { [key: string]: unknown[] };
    expect([results?.length, accepted, rejected]).toEqual([5_000, 0, 5_000]);
    expect(await scrape(url)).toMatch(/^tributary_bus_in_flight_bytes 0$/m);
    const events = Array.from({ length: 3_000 }, (_, i) => encodeEvent({ ...good, entityId: `e${i}` }));
    const packed = await fetch(new URL("/v1/events", url), {
      method: "POST",
      headers: { authorization, "content-type": "application/x-protobuf" },
      body: new Uint8Array(encodeRequest(events)),
    });
    const bytes = Buffer.from(await packed.arrayBuffer());
    expect(bytes.length).toBe(Number(packed.headers.get("content-length")));
    const codec = testRegistry.codec("tributary.v1.PublishResponse");
    expect(codec.toObject(codec.decode(bytes))).toMatchObject({ accepted: 3_000 });
  });

  test("what one producer has sent of its bodies is given up for another's share", async () => {
    await bus.close();
    bus = await startTestBus({ maxInFlightBytes: MiB });
    authorization = await bus.bearer({ subject: "greedy" });
    const url = await listen();
    const bodies = await Promise.all(
      Array.from({ length: 3 }, () =>
        half(url, authorization, `content-length: ${MiB}`, "x".repeat(320 * 1024)),
      ),
    );
    await holds(3 * 320 * 1024);
    // Their own producer has no share left; another has.
    expect((await publish(url, authorization, "own")).status).toBe(429);
    expect((await publish(url, await bus.bearer({ subject: "modest" }), "other")).status).toBe(200);
    await until(() => bodies.some(({ received }) => received.text !== ""));
    const answers = bodies.map(({ received }) => received.text).filter((text) => text !== "");
    expect(answers).toHaveLength(1);
    expect(answers[0]).toMatch(/^HTTP\/1\.1 429 .*TRB-BUS-BUSY/s);
    expect(storedIds()).toEqual(["other"]);
    for (const { socket } of bodies) socket.destroy();
  });

  test("connections beyond the limit are closed at once, and those within it are served", async () => {
    await bus.close();
    bus = await startTestBus({}, { http: { maxConnections: 3 } });
    authorization = await bus.bearer();
    const url = await listen();
    const open: Awaited<ReturnType<typeof half>>[] = [];
    for (let i = 0; i < 3; i++) open.push(await half(url, authorization, "content-length: 100"));
    const { received } = await half(url, authorization, "content-length: 100");
    await until(() => received.closed);
    expect([received.text, open.some((each) => each.received.closed)]).toEqual(["", false]);
    for (const { socket } of open) socket.destroy();
    await until(() => open.every((each) => each.received.closed));
    expect((await publish(url, authorization, "a")).status).toBe(200);
  });

  describe("that is slow", () => {
    beforeEach(async () => {
      await bus.close();
      bus = await startTestBus({}, { http: { minBodyBytesPerSecond: 10_000, bodyGraceMs: 200 } });
      authorization = await bus.bearer();
    });

    test.each([
      ["announced", "content-length: 1000000", "x"],
      ["in chunks", "transfer-encoding: chunked", "1\r\nx\r\n"],
      ["packed", "content-encoding: gzip\r\ncontent-length: 1000000", "\x1f"],
    ])("a body %s that stops coming is answered with 408, and closed", async (_name, announced, body) => {
      const { received } = await half(await listen(), authorization, announced, body);
      await until(() => received.closed);
      expect(received.text).toMatch(/^HTTP\/1\.1 408 .*connection: close.*TRB-REQ-TOO-SLOW/s);
      expect(bus.stream.appends).toBe(0);
    });

    test("a body is cut that drips, but not one that keeps the pace however long it takes", async () => {
      const url = await listen();
      const body = encodeRequest([encodeEvent({ ...good, attributes: { long: "x".repeat(20_000) } })]);
      const drip = async (bytes: number, everyMs: number) => {
        const { socket, received } = await half(url, authorization, `content-length: ${body.length}`, "");
        for (let at = 0; at < body.length && !received.closed; at += bytes) {
          socket.write(body.subarray(at, at + bytes));
          await new Promise((resolve) => setTimeout(resolve, everyMs));
        }
        await until(() => received.text !== "");
        socket.destroy();
        return received.text.slice(9, 12);
      };
      expect(await drip(50, 20)).toBe("408");
      // A second in all, five times the grace.
      expect(await drip(1000, 50)).toBe("200");
    });

    test("a head that does not end is answered with 408, as is a connection that says nothing", async () => {
      const url = await listen();
      for (const sent of ["", "POST /v1/events HTTP/1.1\r\nx-a: "]) {
        const socket = connect(Number(url.port), url.hostname, () => socket.write(sent));
        let received = "";
        socket.on("data", (chunk) => {
          received += String(chunk);
        });
        await new Promise<void>((resolve) => socket.once("close", () => resolve()));
        expect(received).toMatch(/^HTTP\/1\.1 408 .*TRB-REQ-TOO-SLOW/s);
      }
    });

    test("a refused body that does not end is cut as well", async () => {
      const { received } = await half(await listen(), "Bearer x", "content-length: 1000000");
      await until(() => received.closed);
      expect(received.text).toMatch(/^HTTP\/1\.1 401 /);
    });

    test("a sender whose body is waited for by nobody here is not to blame", async () => {
      const release = bus.stream.hold();
      const answer = publish(await listen(), authorization, "a");
      await new Promise((resolve) => setTimeout(resolve, 600));
      release();
      expect((await answer).status).toBe(200);
    });
  });

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

  test("a refused client that wants its connection closed may send on until it has heard why", async () => {
    const url = await listen();
    bus.stream.backlog = 1e12;
    const announced = `connection: close\r\ncontent-length: ${20 * MiB}`;
    const { socket, received } = await half(url, authorization, announced);
    await new Promise((resolve) => setTimeout(resolve, 100));
    expect(received.closed).toBe(false);
    socket.write(Buffer.alloc(20 * MiB - 1));
    await until(() => received.closed);
    expect(received.text).toMatch(/^HTTP\/1\.1 429 .*TRB-BUS-BUSY/s);
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
