import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { packedEvents, UNPACKED_BYTES } from "../../bench/packed-events.js";
import { loadConfig } from "../../services/base/config.js";
import { encodeRequest } from "../../services/contracts/encode-event.js";
import { publishBodies } from "../../services/main/client/publish.js";
import { Probe, peakBytes, quantile, startIdleServer } from "../support/latency.js";
import { makeToken, removeFolder, Server, temporaryFolder } from "../support/stack.js";

/**
 * One producer's events that take a kilobyte each and a megabyte unpacked, sent to everything as an operator runs it.
 * They cost those who ask for them, and nobody else.
 */
const EVENTS = 2_500;
const MiB = 1024 * 1024;
const { maxDecodedBytes, maxInFlightBytes } = loadConfig({}, { env: {} }).bus;
const perRequest = Math.floor(maxDecodedBytes / UNPACKED_BYTES) - 1;

let data: string;
let server: Server;
let token: string;
let atStart: number;
let idle: Awaited<ReturnType<typeof startIdleServer>>;
beforeAll(async () => {
  data = await temporaryFolder();
  server = await Server.start("up", data);
  token = await makeToken(data, "producer");
  idle = await startIdleServer();
  atStart = peakBytes(server.process.pid!);
});
afterAll(async () => {
  idle.process.kill();
  await server.kill();
  await removeFolder(data);
});

describe(`${EVENTS} packed payloads of a megabyte`, () => {
  const events = [...packedEvents(EVENTS, "packed")];

  test("in one request are more than it may ask for", async () => {
    const answer = await fetch(`${server.url}/v1/events`, {
      method: "POST",
      headers: { authorization: `Bearer ${token}`, "content-type": "application/x-protobuf" },
      body: new Uint8Array(encodeRequest(events)),
    });
    expect(answer.status).toBe(413);
    expect(await answer.json()).toMatchObject({ error: { code: "TRB-REQ-TOO-LARGE" } });
  });

  test("in several are all answered, while the bus answers others and stays within its memory", async () => {
    const health = new Probe(`${server.url}/healthz`);
    const control = new Probe(idle.url);
    const bodies = [];
    for (let at = 0; at < EVENTS; at += perRequest) {
      bodies.push({ bytes: encodeRequest(events.slice(at, at + perRequest)) });
    }
    const summary = await publishBodies({ url: server.url, token, bodies });
    const [latencies, machine] = [await health.stop(), await control.stop()];
    expect(summary).toMatchObject({ accepted: EVENTS, rejected: 0 });
    expect(latencies.length).toBeGreaterThan(100);
    // What a server that does nothing takes is the machine's own, which others may be using.
    const [p99, own] = [quantile(latencies, 0.99), quantile(machine, 0.99)];
    const grown = peakBytes(server.process.pid!) - atStart;
    console.log(
      `${EVENTS} events in ${Math.round(summary.elapsedMs)} ms; /healthz p99 ${p99.toFixed(1)} ms of ${latencies.length}, ` +
        `an idle server's ${own.toFixed(1)} ms; memory of the bus grew by ${Math.round(grown / MiB)} MiB`,
    );
    expect(p99).toBeLessThan(100 + own);
    expect(grown).toBeLessThan(maxInFlightBytes);
  });
});
