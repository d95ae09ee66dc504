import { request } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { Producer } from "../../clients/producer/src/producer.js";
import { uriOf } from "../../services/contracts/payload-reference.js";
import { Collector } from "../../services/offload/collector.js";
import { Offloaded } from "../../services/offload/offloaded.js";
import type { PresignedPut } from "../../services/storage/object-store.js";
import type { S3Store } from "../../services/storage/s3-store.js";
import { KafkaCluster, START_MS } from "../servers/kafka.js";
import { credentials, startS3 } from "../servers/s3.js";
import { onKafka } from "../support/kafka.js";
import { digestOfPath, payloadOf, refinedDigests, SIZES, sha256 } from "../support/large-payloads.js";
import { newBucket, S3Fixture } from "../support/s3-lake.js";
import { makeToken, removeFolder, Server, temporaryFolder, until } from "../support/stack.js";

/** A PUT as a producer sends it; resolves to the status. */
function put(
  { url, headers }: PresignedPut,
  bytes: Buffer,
  more: Record<string, string | undefined> = {},
): Promise<number> {
  const all = { ...headers, "content-length": `${bytes.length}`, ...more };
  const sent = Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined));
  return new Promise((resolve, reject) => {
    const out = request(url, { method: "PUT", headers: sent, agent: false }, (reply) => {
      reply.resume();
      reply.on("end", () => resolve(reply.statusCode!));
    });
    out.on("error", reject);
    out.end(bytes);
  });
}

describe.each(["versitygw", "minio"] as const)("a presigned put on %s", (kind) => {
  let server: Awaited<ReturnType<typeof startS3>>;
  let fixture: S3Fixture;
  let store: S3Store;
  beforeAll(async () => {
    server = await startS3(kind);
  }, 900_000);
  afterAll(() => server?.stop());
  beforeEach(async () => {
    fixture = new S3Fixture(server.endpoint, await newBucket(server.endpoint));
    store = await fixture.open({ prefix: "lakes/one" });
  });
  afterEach(() => fixture.dispose());

  const payload = payloadOf(1_100_000);
  const uri = uriOf("acme", sha256(payload));
  const content = { bytes: payload.length, sha256: sha256(payload) };
  const held = async (key = uri) => (await store.get(key))?.equals(payload);
  const refused = (status: number) => expect([400, 403, 411, 412, 501]).toContain(status);

  test("takes the bytes that it was made for, once", async () => {
    const signed = await store.presignPut(uri, content, 60_000);
    expect(await put(signed, payload)).toBe(200);
    expect(await held()).toBe(true);
    const [, replaced] = [await store.put(uri, Buffer.from("other")), await put(signed, payload)];
    expect(replaced).toBe(412);
    expect((await store.get(uri))?.toString()).toBe("other");
  });

  test("refuses another length, other bytes, and what is not sent as it was signed", async () => {
    const signed = await store.presignPut(uri, content, 60_000);
    const other = Buffer.from(payload);
    other[77]! ^= 1;
    refused(await put(signed, payload.subarray(1)));
    refused(await put(signed, Buffer.concat([payload, Buffer.from("x")])));
    refused(await put(signed, other));
    refused(await put(signed, other, { "x-amz-checksum-sha256": sha256(other).toString("base64") }));
    refused(await put(signed, other, { "x-amz-checksum-sha256": undefined }));
    await store.put(`${uri}-there`, Buffer.from("other"));
    const there = await store.presignPut(`${uri}-there`, content, 60_000);
    refused(await put(there, payload, { "if-none-match": undefined }));
    refused(await put(there, payload, { "if-none-match": '"none"' }));
    expect((await store.get(`${uri}-there`))?.toString()).toBe("other");
    expect(await store.get(uri)).toBeUndefined();
    expect(await put(signed, payload)).toBe(200);
  });

  test("is good for no other tenant's key, and not for long", async () => {
    const signed = await store.presignPut(uri, content, 2_000);
    const elsewhere = signed.url.replace("/acme/", "/umbrella/");
    expect(elsewhere).not.toBe(signed.url);
    expect(await put({ ...signed, url: elsewhere }, payload)).toBe(403);
    const longer = signed.url.replace("X-Amz-Expires=2&", "X-Amz-Expires=2000&");
    expect(longer).not.toBe(signed.url);
    expect(await put({ ...signed, url: longer }, payload)).toBe(403);
    await sleep(3_100);
    expect(await put(signed, payload)).toBe(403);
    for (const tenant of ["acme", "umbrella"])
      expect(await store.stat(uriOf(tenant, content.sha256))).toBeUndefined();
  });

  test("goes beside what is damaged, and is found there", async () => {
    await store.put(uri, payload.subarray(1));
    const offloaded = new Offloaded(store, 3600_000);
    const reference = { uri, typeUrl: "", sizeBytes: content.bytes, sha256: content.sha256 };
    const offer = await offloaded.offer(reference, 60_000);
    expect(await put(offer as PresignedPut, payload)).toBe(200);
    expect(await offloaded.offer(reference, 60_000)).toBe("held");
    const got = await offloaded.fetch(reference);
    expect(Buffer.isBuffer(got) && got.equals(payload)).toBe(true);
  });
});

describe.each(["versitygw", "minio"] as const)("the collector on %s", (kind) => {
  let server: Awaited<ReturnType<typeof startS3>>;
  let fixture: S3Fixture;
  beforeAll(async () => {
    server = await startS3(kind);
    fixture = new S3Fixture(server.endpoint, await newBucket(server.endpoint));
  }, 900_000);
  afterAll(async () => {
    fixture?.dispose();
    await server?.stop();
  });

  test("takes away what nothing names, by whatever names its listings come in order", async () => {
    const requests: string[] = [];
    const store = await fixture.open({ onRequest: (operation) => requests.push(operation) });
    // Ages are told in seconds.
    const keepMs = 4_000;
    const offloaded = new Offloaded(store, keepMs);
    const tenants = ["acme", "acme-2", "Acme", "a.b", "z:1"];
    const put = async (tenant: string, text: string) =>
      (await offloaded.put(tenant, "t/t.v1.T", Buffer.from(`${tenant} ${text}`))).uri;
    const named: string[] = [];
    const unnamed: string[] = [];
    for (const tenant of tenants) {
      named.push(await put(tenant, "named"));
      unnamed.push(await put(tenant, "unnamed"));
    }
    await offloaded.keepForGood(named);
    await sleep(keepMs + 1_500);
    const young = await put("acme", "young");
    const collector = new Collector({ store, keepMs, waiting: async function* () {} });
    requests.length = 0;
    expect(await collector.run()).toMatchObject({ objects: named.length + 1, removed: unnamed.length });
    // Two listings; for each that goes a last look and what is left of it.
    expect(
      [...new Set(requests)].map((each) => [each, requests.filter((one) => one === each).length]),
    ).toEqual([
      ["list", 2],
      ["head", unnamed.length],
      ["put", unnamed.length],
    ]);
    for (const uri of unnamed) expect((await store.stat(uri))?.bytes).toBe(0);
    for (const uri of [...named, young]) expect((await store.stat(uri))!.bytes).toBeGreaterThan(0);
    // One of them comes again, to another key.
    expect(await put("acme", "unnamed")).toBe(unnamed[0]);
    const payload = Buffer.from("acme unnamed");
    const reference = { uri: unnamed[0]!, typeUrl: "", sizeBytes: payload.length, sha256: sha256(payload) };
    expect(await offloaded.fetch(reference)).toEqual(payload);
  });
});

describe("bus and ingest without a shared disk, on Kafka and S3", () => {
  const folders: string[] = [];
  const servers: Server[] = [];
  let s3: Awaited<ReturnType<typeof startS3>>;
  let cluster: KafkaCluster;
  let fixture: S3Fixture;
  let bucket: string;
  beforeAll(async () => {
    [s3, cluster] = await Promise.all([startS3(), KafkaCluster.start()]);
    bucket = await newBucket(s3.endpoint);
    fixture = new S3Fixture(s3.endpoint, bucket);
    for (let i = 0; i < 3; i++) folders.push(await temporaryFolder());
  }, 900_000 + START_MS);
  afterAll(async () => {
    for (const server of servers) await server.stop();
    fixture?.dispose();
    await Promise.all([s3?.stop(), cluster?.stop()]);
    for (const folder of folders) await removeFolder(folder);
  });

  const env = (presign: boolean): NodeJS.ProcessEnv => ({
    ...credentials,
    ...onKafka(cluster),
    TRIBUTARY_STORAGE__KIND: "s3",
    TRIBUTARY_STORAGE__S3__BUCKET: bucket,
    TRIBUTARY_STORAGE__S3__ENDPOINT: s3.endpoint,
    TRIBUTARY_STORAGE__S3__FORCE_PATH_STYLE: "true",
    TRIBUTARY_OFFLOAD__PRESIGN: `${presign}`,
  });
  async function start(command: "bus" | "ingest", folder: string, presign = true): Promise<Server> {
    const server = await Server.start(command, folder, env(presign));
    servers.push(server);
    return server;
  }

  test("payloads of 0.9, 1.1, 9 and 60 MB land byte for byte, put by presigned URLs, by tickets and by the bus", async () => {
    const [at, byTicket] = [await start("bus", folders[0]!), await start("bus", folders[1]!, false)];
    await start("ingest", folders[2]!);
    const ways = [
      { name: "presigned", server: at, folder: folders[0]!, uploadAboveBytes: 1_000_000 },
      { name: "ticket", server: byTicket, folder: folders[1]!, uploadAboveBytes: 1_000_000 },
      { name: "inline", server: at, folder: folders[0]!, uploadAboveBytes: 100_000_000 },
    ];
    const cache = { folder: `${fixture.folder}/reader`, user: "reader", bytes: 2 ** 30 };
    const store = await fixture.open({ cache });
    const wanted = new Map<string, string>();
    for (const { name, server, folder, uploadAboveBytes } of ways) {
      const token = await makeToken(folder, "producer");
      const asked = await fetch(`${server.url}/v1/uploads`, {
        method: "POST",
        headers: { authorization: `Bearer ${token}`, "content-type": "application/json" },
        body: JSON.stringify({ tenant: "acme", sha256: "0".repeat(64), sizeBytes: 9_000_000 }),
      });
      const { url } = (await asked.json()) as { url: string };
      expect(url.startsWith(s3.endpoint)).toBe(name !== "ticket");
      const producer = new Producer({ url: server.url, token, uploadAboveBytes });
      const sent = Object.entries(SIZES).map(async ([size, bytes]) => {
        const payload = payloadOf(bytes);
        const entityId = `${name}-${size}`;
        wanted.set(entityId, digestOfPath(payload));
        const event = { tenantId: "acme", entityType: "scm.v1.File", operation: "created" } as const;
        await producer.send({ ...event, entityId, version: 1, payload });
        const info = await store.stat(uriOf("acme", sha256(payload)));
        expect(info?.bytes).toBe(size === "0.9" ? undefined : payload.length);
      });
      await Promise.all(sent);
      expect((await producer.close()).undelivered).toEqual([]);
    }
    let seen = new Map<string, string>();
    const all = async () => {
      seen = await refinedDigests(store);
      return seen.size === wanted.size;
    };
    await until("all landed", all, 300);
    expect(new Map([...seen].sort())).toEqual(new Map([...wanted].sort()));
  });
});
