import { afterAll, beforeAll, expect, test } from "vitest";
import { KafkaCluster, START_MS } from "../servers/kafka.js";
import { onKafka } from "../support/kafka.js";
import { makeToken, removeFolder, Server, temporaryFolder } from "../support/stack.js";

let cluster: KafkaCluster;
let data: string;
let server: Server | undefined;
beforeAll(async () => {
  cluster = await KafkaCluster.start();
  data = await temporaryFolder();
}, START_MS);
afterAll(async () => {
  await server?.stop();
  await cluster?.stop();
  await removeFolder(data);
});

const env = () => ({
  ...onKafka(cluster),
  TRIBUTARY_STREAM__KAFKA__TOPIC: "tributary",
});

function publish(url: string, producer: string, from: number, count: number): Promise<Response> {
  const lines = Array.from({ length: count }, (_, i) =>
    JSON.stringify({
      tenantId: "acme",
      entityType: "scm.v1.File",
      entityId: `file-${from + i}`,
      operation: "OPERATION_CREATED",
      version: "1",
      payload: { "@type": "type.googleapis.com/scm.v1.File", path: `src/file-${from + i}` },
    }),
  );
  return fetch(`${url}/v1/events`, {
    method: "POST",
    headers: { authorization: `Bearer ${producer}`, "content-type": "application/x-ndjson" },
    body: lines.join("\n"),
  });
}

async function count(url: string, analyst: string): Promise<number> {
  const answer = await fetch(`${url}/v1/query`, {
    method: "POST",
    headers: { authorization: `Bearer ${analyst}`, "content-type": "application/json" },
    body: JSON.stringify({ sql: "select count(*) from files" }),
  });
  if (!answer.ok) return -1;
  return Number(((await answer.json()) as { rows: string[][] }).rows[0]![0]);
}

test("the whole stack on Kafka: events become rows; it goes on after its own kill and a broker's", async () => {
  server = await Server.start("up", data, env());
  const [producer, analyst] = [await makeToken(data, "producer"), await makeToken(data, "analyst", "acme")];
  const first = await publish(server.url, producer, 0, 300);
  expect(await first.json()).toMatchObject({ accepted: 300, rejected: 0 });
  await expect.poll(() => count(server!.url, analyst), { timeout: 60_000 }).toBe(300);

  await publish(server.url, producer, 300, 300);
  await server.kill();
  server = await Server.start("up", data, env());
  await expect.poll(() => count(server!.url, analyst), { timeout: 60_000 }).toBe(600);

  await cluster.signal(0, "SIGKILL");
  const refused = await publish(server.url, producer, 600, 10);
  expect(refused.status).toBe(503);
  expect(await refused.json()).toMatchObject({ error: { code: "TRB-BUS-STREAM-DOWN" } });
  expect(await count(server.url, analyst)).toBe(600);
  await cluster.startNode(0);
  // It may hold some of those that were refused: they were in doubt, and are the same events.
  await expect
    .poll(async () => (await publish(server!.url, producer, 600, 10)).status, { timeout: 60_000 })
    .toBe(200);
  await expect.poll(() => count(server!.url, analyst), { timeout: 60_000 }).toBe(610);
});
