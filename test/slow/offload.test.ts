import { request } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Producer } from "../../clients/producer/src/producer.js";
import { loadConfig } from "../../services/base/config.js";
import { layout } from "../../services/base/paths.js";
import { encodeEvent } from "../../services/contracts/encode-event.js";
import { uriOf } from "../../services/contracts/payload-reference.js";
import { FileStore } from "../../services/storage/file-store.js";
import {
  digestOfPath,
  MB,
  payloadOf,
  refinedDigests,
  SIZES,
  sha256,
  varint,
} from "../support/large-payloads.js";
import { peakBytes } from "../support/latency.js";
import { cli, makeToken, removeFolder, Server, temporaryFolder, until } from "../support/stack.js";

/** Payloads up to 64 MB, through everything as an operator runs it. */

const MiB = 1024 * 1024;
const {
  bus: { maxInFlightBytes },
} = loadConfig({}, { env: {} });

let data: string;
let server: Server;
let token: string;
beforeAll(async () => {
  data = await temporaryFolder();
  server = await Server.start("up", data);
  token = await makeToken(data, "producer");
});
afterAll(async () => {
  await server.kill();
  await removeFolder(data);
});

/** A PublishRequest of one event around a payload, without a copy of it: many of these share one. */
function requestAround(id: string, payload: Buffer): Buffer[] {
  const rest = encodeEvent({
    tenantId: "acme",
    entityType: "scm.v1.File",
    entityId: id,
    operation: 2,
    version: 1,
  });
  const url = Buffer.from("type.googleapis.com/scm.v1.File");
  const any = Buffer.concat([
    Buffer.from([0x0a, ...varint(url.length)]),
    url,
    Buffer.from([0x12, ...varint(payload.length)]),
  ]);
  const field = Buffer.from([0x3a, ...varint(any.length + payload.length)]);
  const length = rest.length + field.length + any.length + payload.length;
  return [Buffer.concat([Buffer.from([0x0a, ...varint(length)]), rest, field, any]), payload];
}

function post(pieces: readonly Buffer[]): Promise<number> {
  return new Promise((resolve, reject) => {
    const length = pieces.reduce((sum, piece) => sum + piece.length, 0);
    const headers = {
      authorization: `Bearer ${token}`,
      "content-type": "application/x-protobuf",
      "content-length": length,
    };
    const sent = request(`${server.url}/v1/events`, { method: "POST", headers, agent: false }, (reply) => {
      reply.resume();
      reply.on("end", () => resolve(reply.statusCode!));
    });
    sent.on("error", reject);
    for (const piece of pieces) sent.write(piece);
    sent.end();
  });
}

async function publish(id: string, payload: Buffer): Promise<void> {
  for (;;) {
    const status = await post(requestAround(id, payload));
    if (status === 200) return;
    expect([429, 503]).toContain(status);
    await sleep(200);
  }
}

const openLake = (): Promise<FileStore> => {
  const { lake, staging } = layout(data);
  return FileStore.open({ folder: lake, staging: `${staging}/test-offload` });
};

const refined = async () => refinedDigests(await openLake());

describe("payloads", () => {
  const payloads = new Map(Object.entries(SIZES).map(([id, bytes]) => [id, payloadOf(bytes)]));

  test("of 0.9, 1.1, 9 and 60 MB round-trip byte for byte", async () => {
    for (const [id, payload] of payloads) await publish(id, payload);
    const store = await openLake();
    for (const [id, payload] of payloads) {
      const held = await store.get(uriOf("acme", sha256(payload)));
      expect(held === undefined).toBe(id === "0.9");
      if (held !== undefined) expect(held.equals(payload)).toBe(true);
    }
    const wanted = new Map([...payloads].map(([id, payload]) => [id, digestOfPath(payload)]));
    await until("all landed", async () => (await refined()).size === 4, 300);
    expect(await refined()).toEqual(wanted);
  });

  test("of the producer library go where the bus says, and land byte for byte", async () => {
    const own = new Map(Object.entries(SIZES).map(([id, bytes]) => [`own-${id}`, payloadOf(bytes)]));
    const producer = new Producer({ url: server.url, token });
    const common = { tenantId: "acme", entityType: "scm.v1.File", operation: "updated", version: 1 } as const;
    await Promise.all([...own].map(([entityId, payload]) => producer.send({ ...common, entityId, payload })));
    // Once more, though it is there already.
    await producer.send({ ...common, entityId: "own-9", version: 2, payload: own.get("own-9")! });
    expect((await producer.close()).undelivered).toEqual([]);
    const store = await openLake();
    for (const [id, payload] of own) {
      const held = await store.get(uriOf("acme", sha256(payload)));
      expect(held?.equals(payload)).toBe(id === "own-0.9" ? undefined : true);
    }
    const ids = [...own.keys()];
    let seen = new Map<string, string>();
    await until(
      "all landed",
      async () => {
        seen = await refined();
        return ids.every((id) => seen.has(id));
      },
      300,
    );
    for (const [id, payload] of own) expect(seen.get(id)).toBe(digestOfPath(payload));
  });

  test("that go missing or rot are dead letters with their reason, and well after repair and redrive", async () => {
    const store = await openLake();
    const [missing, rotten] = [payloadOf(1.5 * MB), payloadOf(1.6 * MB)];
    await server.stop();
    // On the stream, and gone before anybody lands them.
    server = await Server.start("bus", data);
    await publish("missing", missing);
    await publish("rotten", rotten);
    const bad = Buffer.from(rotten);
    bad[1000]! ^= 1;
    await store.delete([uriOf("acme", sha256(missing))]);
    await store.put(uriOf("acme", sha256(rotten)), bad);
    await server.stop();
    server = await Server.start("up", data);
    const letters = async () => {
      const { stdout } = await cli(["deadletter", "ls", "--data", data, "--json"]);
      return (JSON.parse(stdout) as { deadLetters: { entityId: string; code: string; reason: string }[] })
        .deadLetters;
    };
    await until("both are dead letters", async () => (await letters()).length === 2, 120);
    expect((await letters()).map(({ entityId, code }) => [entityId, code]).sort()).toEqual([
      ["missing", "TRB-EVENT-PAYLOAD-MISSING"],
      ["rotten", "TRB-EVENT-PAYLOAD-CORRUPT"],
    ]);
    for (const payload of [missing, rotten]) await store.put(uriOf("acme", sha256(payload)), payload);
    const redriven = await cli(["deadletter", "redrive", "--data", data, "--json"]);
    expect(JSON.parse(redriven.stdout)).toMatchObject({ applied: 2, failed: [] });
    const rows = await refined();
    expect([rows.get("missing"), rows.get("rotten")]).toEqual([digestOfPath(missing), digestOfPath(rotten)]);
  });
});

test("what nobody ever refers to goes, and nothing else", async () => {
  await server.stop();
  const seconds = 8;
  const env = {
    TRIBUTARY_OFFLOAD__KEEP_MS: `${seconds * 1000}`,
    TRIBUTARY_OFFLOAD__COLLECT_EVERY_MS: "500",
  };
  server = await Server.start("up", data, env);
  const store = await openLake();
  const sizes = async () => {
    const found = new Map<string, number>();
    for await (const { key, bytes } of store.list("offload/")) found.set(key, bytes);
    return found;
  };
  const [referred, forgotten] = [payloadOf(1.2 * MB), payloadOf(1.3 * MB)];
  const keys = [referred, forgotten].map((payload) => uriOf("acme", sha256(payload)));
  await publish("referred", referred);
  await store.put(keys[1]!, forgotten);
  await until("both lie there", async () => {
    const found = await sizes();
    return keys.every((key) => (found.get(key) ?? 0) > 0);
  });
  await until("one is gone", async () => (await sizes()).get(keys[1]!) === 0, 60);
  await sleep(2 * seconds * 1000);
  expect((await sizes()).get(keys[0]!)).toBe(referred.length);
  expect((await refined()).get("referred")).toBe(digestOfPath(referred));
  const metrics = await fetch(`${server.url}/metrics`, {
    headers: { authorization: `Bearer ${await makeToken(data, "operator")}` },
  });
  expect(await metrics.text()).toMatch(/tributary_offload_collected_total(\{[^}]*\})? [1-9]/);
});

test("100 of 60 MB at once are answered with 200 or 429, and the bus holds no more than it may", async () => {
  await server.stop();
  // Alone, so that its memory is its own.
  server = await Server.start("bus", data);
  const some = Array.from({ length: 4 }, () => payloadOf(60 * MB));
  const before = peakBytes(server.process.pid!);
  const statuses = await Promise.all(
    Array.from({ length: 100 }, (_, i) => post(requestAround(`many-${i}`, some[i % some.length]!))),
  );
  const grown = peakBytes(server.process.pid!) - before;
  const counts = { 200: 0, 429: 0 };
  for (const status of statuses) {
    expect([200, 429]).toContain(status);
    counts[status as 200 | 429]++;
  }
  console.log(`answers: ${JSON.stringify(counts)}; the bus grew by ${Math.round(grown / MiB)} MiB`);
  expect(counts[200]).toBeGreaterThan(0);
  // What has arrived counts once, and lies there twice while its pieces are joined; what is freed goes when Node looks.
  expect(grown).toBeLessThan(3 * maxInFlightBytes);
  await Promise.all(some.map((payload, i) => publish(`after-${i}`, payload)));
});
