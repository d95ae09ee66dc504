import { existsSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, expect, it } from "vitest";
import { stringify } from "yaml";
import { KafkaCluster } from "../servers/kafka.js";
import { credentials, startS3 } from "../servers/s3.js";
import { onKafka } from "../support/kafka.js";
import { newBucket, onS3 } from "../support/s3-lake.js";
import {
  cli,
  makeToken,
  removeFolder,
  Server,
  temporaryFolder,
  until,
  untilLanded,
} from "../support/stack.js";

/** From the small to the large, while producers and analysts go on. */

let s3: Awaited<ReturnType<typeof startS3>>;
let folder: string;
beforeAll(async () => {
  s3 = await startS3();
  folder = await temporaryFolder();
}, 900_000);
afterAll(async () => {
  await s3?.stop();
  await removeFolder(folder);
});

/** Sends versions of twenty issues, one after the other, each until it is accepted, wherever the bus is just now. */
class Producer {
  url = "";
  /** Key → greatest version that was accepted. */
  readonly accepted = new Map<string, number>();
  private running = true;
  private readonly done: Promise<void>;

  constructor(private readonly token: string) {
    this.done = this.run();
  }

  private async run(): Promise<void> {
    for (let n = 1; this.running; n++) {
      const key = `MOVE-${n % 20}`;
      while (!(await this.send(key, n))) await sleep(20);
      this.accepted.set(key, n);
      await sleep(5);
    }
  }

  private async send(key: string, version: number): Promise<boolean> {
    const payload = { "@type": "type.googleapis.com/tracker.v1.Issue", key, summary: `summary ${version}` };
    const event = {
      tenantId: "acme",
      entityType: "tracker.v1.Issue",
      entityId: key,
      operation: "OPERATION_UPDATED",
      version: String(version),
      payload,
    };
    try {
      const answer = await fetch(`${this.url}/v1/events`, {
        method: "POST",
        headers: { authorization: `Bearer ${this.token}`, "content-type": "application/json" },
        body: JSON.stringify([event]),
      });
      return answer.status === 200 && ((await answer.json()) as { accepted: number }).accepted === 1;
    } catch {
      return false;
    }
  }

  async stop(): Promise<void> {
    this.running = false;
    await this.done;
  }
}

it("a lake moves from files to S3: it loses no event, doubles none, and is never without an answer", async () => {
  const data = join(folder, "data");
  const bucket = await newBucket(s3.endpoint);
  const place = { bucket, prefix: "lake", endpoint: s3.endpoint, forcePathStyle: true };
  const config = join(folder, "tributary-s3.yaml");
  await writeFile(config, stringify({ data, storage: { kind: "s3", s3: place } }));
  const copy = async (...args: string[]) => {
    const result = await cli(
      ["lake", "copy", "--data", data, "--to", config, "--json", ...args],
      credentials,
    );
    expect(result.code, result.stderr).toBe(0);
    return JSON.parse(result.stdout) as { closed: boolean; tables: { root: string; verified: number }[] };
  };
  const analyst = await makeToken(data, "analyst", "acme");
  const ask = async (server: Server, sql: string) => {
    const answer = await cli(["sql", sql, "--url", server.url, "--token", analyst, "--json"]);
    expect(answer.code, answer.stderr).toBe(0);
    return (JSON.parse(answer.stdout) as { rows: string[][] }).rows;
  };

  let server = await Server.start("up", data);
  const producer = new Producer(await makeToken(data, "producer", "acme"));
  try {
    producer.url = server.url;
    await until("some to land", async () => (await ask(server, "select key from issues")).length === 20);
    expect(await copy()).toMatchObject({ closed: false });
    const before = producer.accepted.get("MOVE-1")!;
    const closed = await copy("--close");
    expect(closed.closed).toBe(true);
    expect(closed.tables.map(({ root }) => root).sort()).toEqual([
      "dead_letters",
      "raw/tracker.v1.Issue",
      "refined/tracker/issues",
    ]);
    // The old lake answers still, and its bus takes what the new one will land.
    await until("more to be accepted", async () => producer.accepted.get("MOVE-1")! > before);
    expect(await ask(server, "select key from issues")).toHaveLength(20);
    await server.stop();

    const env = onS3(place);
    server = await Server.start("up", data, env);
    producer.url = server.url;
    await until("more to be accepted", async () => producer.accepted.get("MOVE-1")! > before + 40);
    await producer.stop();
    await untilLanded(data, 120, env);
    const rows = await ask(server, "select key, summary from issues order by key");
    const expected = [...producer.accepted].map(([key, version]) => [key, `summary ${version}`]);
    expect(rows).toEqual(expected.sort(([a], [b]) => (a! < b! ? -1 : 1)));
    // Positions of raw without a gap or a double, and all files as they should be.
    const verified = await cli(["table", "verify", "--data", data, "--json"], env);
    expect(JSON.parse(verified.stdout)).toMatchObject({ ok: true, problems: [] });
    expect(existsSync(join(data, "lake", "closed.json"))).toBe(true);
  } finally {
    await producer.stop();
    await server.stop();
  }
});

it("a lake goes on by another stream, from the embedded log to Kafka, without losing or doubling an event", async () => {
  const data = join(folder, "streams");
  const kafka = await KafkaCluster.start({ nodes: 1 });
  const topic = {
    ...onKafka(kafka),
    TRIBUTARY_STREAM__KAFKA__TOPIC: "changes",
    TRIBUTARY_STREAM__KAFKA__REPLICATION_FACTOR: "1",
    TRIBUTARY_STREAM__KAFKA__MIN_INSYNC_REPLICAS: "1",
  };
  const analyst = await makeToken(data, "analyst", "acme");
  const producer = new Producer(await makeToken(data, "producer", "acme"));
  const servers: Server[] = [];
  const start = async (command: "up" | "bus" | "ingest", env: NodeJS.ProcessEnv = {}) => {
    const server = await Server.start(command, data, env);
    servers.push(server);
    return server;
  };
  const rowsOf = async (server: Server) => {
    const sql = "select key, summary from issues order by key";
    const answer = await cli(["sql", sql, "--url", server.url, "--token", analyst, "--json"]);
    return answer.code === 0 ? (JSON.parse(answer.stdout) as { rows: string[][] }).rows : [];
  };
  try {
    const old = await start("up");
    producer.url = old.url;
    await until("some to land", async () => (await rowsOf(old)).length === 20);
    const bus = await start("bus", topic);
    producer.url = bus.url;
    await old.stop();
    // All that is left to do for the old log: to be landed, and to take nothing more.
    const last = await start("ingest");
    const moved = await cli(["stream", "move", "--data", data, "--json"]);
    expect(moved.code, moved.stderr).toBe(0);
    expect(JSON.parse(moved.stdout)).toMatchObject({ closed: true });
    await last.stop();
    await expect(Server.start("bus", data)).rejects.toThrow("TRB-STREAM-CLOSED");
    const up = await start("up", topic);
    const before = producer.accepted.get("MOVE-1")!;
    await until("more to be accepted", async () => producer.accepted.get("MOVE-1")! > before + 40);
    await producer.stop();
    const expected = [...producer.accepted].map(([key, version]) => [key, `summary ${version}`]);
    expected.sort(([a], [b]) => (a! < b! ? -1 : 1));
    await until(
      "all to land",
      async () => JSON.stringify(await rowsOf(up)) === JSON.stringify(expected),
      120,
    );
    const verified = await cli(["table", "verify", "--data", data, "--json"], topic);
    expect(JSON.parse(verified.stdout)).toMatchObject({ ok: true, problems: [] });
  } finally {
    await producer.stop();
    for (const server of servers) await server.stop();
    await kafka.stop();
  }
});
