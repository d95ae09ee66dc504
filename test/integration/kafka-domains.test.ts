import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import { KafkaCluster, START_MS } from "../servers/kafka.js";
import { onKafka } from "../support/kafka.js";
import { cli, makeToken, removeFolder, Server, temporaryFolder, until } from "../support/stack.js";

/** One product domain's topic is away; what is the other's business with it? */

let cluster: KafkaCluster;
let data: string;
let server: Server | undefined;
let tokens: { producer: string; analyst: string };
beforeAll(async () => {
  [cluster, data] = await Promise.all([KafkaCluster.start({ nodes: 3 }), temporaryFolder()]);
  // Of the second broker one domain has a replica, and the other none.
  await Promise.all([make("domain-scm", "1:2"), make("domain-tracker", "1:3")]);
  server = await Server.start("up", data, env());
  const [producer, analyst] = await Promise.all([
    makeToken(data, "producer"),
    makeToken(data, "analyst", "acme"),
  ]);
  tokens = { producer, analyst };
}, START_MS);
afterAll(async () => {
  await server?.stop();
  await cluster?.stop();
  await removeFolder(data);
});

const env = () => ({
  ...onKafka(cluster),
  TRIBUTARY_STREAM__KAFKA__TOPIC_PREFIX: "domain-",
});

const bodies = {
  "scm.v1.File": (id: string) => ({ path: id }),
  "tracker.v1.Issue": (id: string) => ({ key: id }),
};
type Type = keyof typeof bodies;

async function publish(type: Type, id: string): Promise<number> {
  const event = {
    tenantId: "acme",
    entityType: type,
    entityId: id,
    operation: "OPERATION_CREATED",
    version: "1",
    payload: { "@type": `type.googleapis.com/${type}`, ...bodies[type](id) },
  };
  const answer = await fetch(`${server!.url}/v1/events`, {
    method: "POST",
    headers: { authorization: `Bearer ${tokens.producer}`, "content-type": "application/x-ndjson" },
    body: JSON.stringify(event),
  });
  await answer.body?.cancel();
  return answer.status;
}

async function count(table: "files" | "issues"): Promise<number> {
  const answer = await fetch(`${server!.url}/v1/query`, {
    method: "POST",
    headers: { authorization: `Bearer ${tokens.analyst}`, "content-type": "application/json" },
    body: JSON.stringify({ sql: `select count(*) from ${table}` }),
  });
  if (!answer.ok) return -1;
  return Number(((await answer.json()) as { rows: string[][] }).rows[0]![0]);
}

let issues = 0;
/** Publishes one issue; resolves to the ms until it was accepted, and until a query has it. */
async function issueLands(): Promise<{ accepted: number; landed: number }> {
  const began = performance.now();
  expect(await publish("tracker.v1.Issue", `PAY-${++issues}`)).toBe(200);
  const accepted = performance.now() - began;
  await until("the issue to land", async () => (await count("issues")) === issues, 60);
  return { accepted, landed: performance.now() - began };
}
const ROUNDS = 12;
async function times() {
  const all = [];
  for (let i = 0; i < ROUNDS; i++) all.push(await issueLands());
  const middle = (values: number[]) => values.sort((a, b) => a - b)[ROUNDS >> 1]!;
  return {
    accepted: middle(all.map(({ accepted }) => accepted)),
    landed: middle(all.map(({ landed }) => landed)),
  };
}

/** Keeps requests of the other domain's on their way, whatever becomes of them; resolves to their statuses. */
function knocking(): () => Promise<number[]> {
  const statuses: number[] = [];
  let on = true;
  const all = Promise.all(
    Array.from({ length: 4 }, async (_, i) => {
      for (let n = 0; on; n++) {
        statuses.push(await publish("scm.v1.File", `file-${i}-${n}`));
        await sleep(50);
      }
    }),
  );
  return async () => {
    on = false;
    await all;
    return statuses;
  };
}

const topics = (...args: string[]) =>
  cluster.tool("org.apache.kafka.tools.TopicCommand", "--bootstrap-server", cluster.brokers[0]!, ...args);
/** Four partitions with two replicas each, that want both. */
const make = (topic: string, replicas: string) =>
  topics(
    ...`--create --topic ${topic} --replica-assignment ${Array(4).fill(replicas).join(",")}`.split(" "),
    ..."--config min.insync.replicas=2 --config max.message.bytes=4194304".split(" "),
  );

test("a topic that takes nothing, then is gone, delays the other domain by nothing, and who reads that one alone neither", async () => {
  expect(await publish("scm.v1.File", "first")).toBe(200);
  await until("the first file", async () => (await count("files")) === 1);
  await issueLands();
  const calm = await times();

  await cluster.signal(1, "SIGKILL");
  const stop = knocking();
  // Until what the broker did for all of them is another's: groups, the cluster's own records.
  await sleep(15_000);
  await issueLands();
  const refused = await times();
  const statuses = await stop();
  // Each is tried for a while before it is refused.
  expect(statuses.slice(-4)).toEqual([503, 503, 503, 503]);
  await cluster.startNode(1);
  await until("the other domain to be back", async () => (await publish("scm.v1.File", "second")) === 200);
  await until("the second file", async () => (await count("files")) >= 2);

  await topics("--delete", "--topic", "domain-scm");
  const stopAgain = knocking();
  await sleep(3_000);
  const gone = await times();
  expect((await stopAgain()).filter((status) => status === 200)).toEqual([]);

  console.info(JSON.stringify({ calm, refused, gone }));
  // A wait for the other domain would be of seconds: its batches are tried that long.
  for (const { accepted, landed } of [refused, gone]) {
    expect(accepted).toBeLessThan(calm.accepted * 5 + 200);
    expect(landed).toBeLessThan(calm.landed * 3 + 500);
  }

  const { stdout } = await cli(
    ["tail", "--domain", "tracker", "--from", "oldest", "--no-follow", "--json"],
    env(),
  );
  const read = stdout.trim().split("\n");
  expect(read).toHaveLength(issues);
  expect(read.every((line) => line.includes('"tracker.v1.Issue"'))).toBe(true);
});
