import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import {
  CreateTableCommand,
  type DynamoDBClient,
  ScanCommand,
  TransactionCanceledException,
  TransactWriteItemsCommand,
} from "@aws-sdk/client-dynamodb";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  DYNAMO_OUTBOX_KEYS,
  DynamoOutbox,
  dynamoOutboxItems,
  lastVersion,
} from "../../clients/producer/src/dynamodb.js";
import { ProducerError } from "../../clients/producer/src/errors.js";
import { type ChangeEvent, encodeEvent } from "../../clients/producer/src/event.js";
import { FakeBus } from "../../clients/producer/test/fake-bus.js";
import { seededRandom } from "../../clients/producer/test/seeded-random.js";
import { packageRoot } from "../../services/base/paths.js";
import { startDynamoDb } from "../servers/dynamodb.js";
import { until } from "../support/stack.js";

const SEED = Number(process.env.TEST_SEED ?? Date.now() % 1_000_000);
const ROUNDS = Number(process.env.TEST_ROUNDS ?? 6);
const LIMITS = { events: 100, bytes: 1_000_000 };

let server: Awaited<ReturnType<typeof startDynamoDb>>;
let client: DynamoDBClient;
beforeAll(async () => {
  server = await startDynamoDb();
  client = server.client();
  const { partition, sort } = DYNAMO_OUTBOX_KEYS;
  const make = (TableName: string, names: readonly [string, string]) =>
    client.send(
      new CreateTableCommand({
        TableName,
        BillingMode: "PAY_PER_REQUEST",
        AttributeDefinitions: names.map((AttributeName) => ({ AttributeName, AttributeType: "S" })),
        KeySchema: names.map((AttributeName, i) => ({ AttributeName, KeyType: i === 0 ? "HASH" : "RANGE" })),
      }),
    );
  await make("outbox", [partition, sort]);
  await make("files", ["tenant", "path"]);
});
afterAll(async () => {
  client?.destroy();
  await server?.stop();
});

const eventOf = (tenantId: string, entityId: string, version: bigint, text?: string): ChangeEvent => ({
  tenantId,
  entityType: "scm.v1.File",
  entityId,
  operation: text === undefined ? "deleted" : "updated",
  version,
  occurredAt: { seconds: -1n, nanos: 5 },
  attributes: { a: "b" },
  eventId: "e",
  ...(text === undefined ? {} : { payload: Buffer.from(text) }),
});

/** The item and its event in one transaction; `poison` makes it fail as a whole. */
async function change(
  tenant: string,
  path: string,
  text: string | undefined,
  poison = false,
): Promise<ChangeEvent> {
  const Key = { tenant: { S: tenant }, path: { S: path } };
  for (;;) {
    const entity = { tenantId: tenant, entityType: "scm.v1.File", entityId: path };
    const version = (await lastVersion(client, "outbox", entity)) + 1n;
    const event = eventOf(tenant, path, version, text);
    const TransactItems = [
      text === undefined
        ? { Delete: { TableName: "files", Key } }
        : { Put: { TableName: "files", Item: { ...Key, text: { S: text }, version: { N: `${version}` } } } },
      ...dynamoOutboxItems("outbox", event),
    ];
    if (poison) {
      const Never = { tenant: { S: tenant }, path: { S: "never" } };
      const ConditionExpression = "attribute_exists(tenant)";
      TransactItems.push({
        ConditionCheck: { TableName: "files", Key: Never, ConditionExpression },
      } as never);
    }
    try {
      await client.send(new TransactWriteItemsCommand({ TransactItems }));
      return event;
    } catch (error) {
      if (!(error instanceof TransactionCanceledException) || poison) throw error;
      // Somebody else was first; the next version is another.
    }
  }
}

async function itemsOf(TableName: string, keep: (item: Record<string, { S?: string }>) => boolean) {
  const { Items = [] } = await client.send(new ScanCommand({ TableName, ConsistentRead: true }));
  return (Items as Record<string, { S?: string }>[]).filter(keep);
}
const waiting = async () => (await itemsOf("outbox", ({ part }) => /^\d$/.test(part!.S!))).length;

describe("a loan", () => {
  const names = (events: readonly ChangeEvent[]) =>
    events.map(({ entityId, version }) => `${entityId}@${version}`);
  const open = () => new DynamoOutbox({ client, table: "outbox" });

  it("gives an entity's events in order, as they were written, to one borrower at a time", async () => {
    const written: ChangeEvent[] = [];
    for (const text of ["1", "2", undefined]) written.push(await change("loan", "a", text));
    expect(names(written)).toEqual(["a@1", "a@2", "a@3"]);
    const lent = await open().lend(LIMITS, async (events) => {
      expect(events.map((event) => Buffer.from(encodeEvent(event)))).toEqual(
        written.map((event) => Buffer.from(encodeEvent(event))),
      );
      expect(await open().lend(LIMITS, async () => [])).toBe(0);
      return ["delivered", "kept", "kept"];
    });
    expect(lent).toBe(3);
    const outbox = open();
    for (const name of ["a@2", "a@3"]) {
      await outbox.lend({ events: 1, bytes: 1 }, async (events) => {
        expect(names(events)).toEqual([name]);
        return ["delivered"];
      });
    }
    expect(await waiting()).toBe(0);
    // Beyond the deletion it goes on.
    expect((await change("loan", "a", "back")).version).toBe(4n);
    await outbox.lend(LIMITS, async () => ["delivered"]);
  });

  it("puts what is refused for good aside, and passes over what is kept alone for now", async () => {
    const outbox = open();
    const paths = Array.from({ length: 30 }, (_, i) => `p${i}`);
    for (const path of paths) await change("refused", path, "x");
    const seen: string[] = [];
    for (let turn = 0; turn < 200 && (await waiting()) > 1; turn++) {
      await outbox.lend({ events: 1, bytes: 1 }, async ([event]) => {
        seen.push(event!.entityId);
        if (event!.entityId === "p7") return ["kept"];
        return [event!.entityId === "p8" ? new ProducerError("TRB-EVENT-TENANT", "why") : "delivered"];
      });
    }
    expect(new Set(seen)).toEqual(new Set(paths));
    const rejected = await itemsOf("outbox", ({ part }) => part!.S === "rejected");
    expect(rejected).toMatchObject([{ entityId: { S: "p8" }, code: { S: "TRB-EVENT-TENANT" } }]);
    while ((await outbox.lend(LIMITS, async () => ["delivered"])) > 0);
    expect(await waiting()).toBe(0);
  });

  it("is somebody else's when the lease has run out", async () => {
    await change("lease", "a", "x");
    const outbox = () => new DynamoOutbox({ client, table: "outbox", leaseMs: 100 });
    await outbox().lend(LIMITS, async () => {
      await sleep(300);
      expect(await outbox().lend(LIMITS, async () => ["delivered"])).toBe(1);
      return ["delivered"];
    });
    expect(await waiting()).toBe(0);
  });
});

describe(`kill -9 of relays, and a bus that misbehaves (${ROUNDS} rounds, seed ${SEED})`, () => {
  it("loses no event, invents none, and keeps each entity's order", async () => {
    const bus = await FakeBus.start();
    const relays: ChildProcess[] = [];
    let said = "";
    const start = (i: number) => {
      const script = join(packageRoot, "test", "support", "outbox-relay.mjs");
      const args = ["--no-warnings", script, bus.url, "t", "dynamodb", server.endpoint];
      const relay = spawn(process.execPath, args, { stdio: ["ignore", "ignore", "pipe"] });
      relay.stderr.on("data", (bytes: Buffer) => (said += bytes.toString()));
      relays[i] = relay;
    };
    const kill = async (i: number) => {
      const relay = relays[i]!;
      const ended = once(relay, "exit");
      if (relay.exitCode === null && relay.kill("SIGKILL")) await ended;
    };
    const committed: ChangeEvent[] = [];
    try {
      for (const i of [0, 1]) start(i);
      for (let round = 0; round < ROUNDS; round++) {
        const random = seededRandom(SEED + round);
        bus.behave = () => {
          const draw = random();
          if (draw < 0.1) return { kind: "status", status: 503, code: "TRB-BUS-STREAM-DOWN" };
          if (draw < 0.2) return { kind: "cut", when: draw < 0.15 ? "before" : "after" };
          const refusal = { code: "TRB-BUS-BUSY", retryable: true };
          return { kind: "take", refuse: () => (random() < 0.2 ? refusal : undefined) };
        };
        const stop = new AbortController();
        const writers = [1, 2, 3].map(async (n) => {
          const own = seededRandom(SEED + round + n * 1e6);
          while (!stop.signal.aborted) {
            const path = `p${Math.floor(own() * 25)}`;
            const text = own() < 0.2 ? undefined : `${own()}`;
            if (own() < 0.2) {
              const failed = change(`round-${round}`, path, `never ${text}`, true);
              await expect(failed).rejects.toBeInstanceOf(TransactionCanceledException);
            } else committed.push(await change(`round-${round}`, path, text));
          }
        });
        for (let faults = 0; faults < 2; faults++) {
          await sleep(300 + random() * 700);
          const which = Math.floor(random() * 2);
          await kill(which);
          start(which);
        }
        stop.abort();
        await Promise.all(writers);
      }
      await until("the outbox to be empty", async () => (await waiting()) === 0, 120);
      for (const relay of relays) {
        const ended = once(relay, "exit");
        relay.kill("SIGTERM");
        expect(await ended).toEqual([0, null]);
      }
    } finally {
      for (const i of [0, 1]) await kill(i);
      await bus.stop();
    }
    expect(said).toBe("");

    const name = ({
      tenantId,
      entityId,
      version,
    }: {
      tenantId: string;
      entityId: string;
      version: number | bigint | string;
    }) => `${tenantId}/${entityId}@${version}`;
    const told = new Map(committed.map((event) => [name(event), event]));
    expect(told.size).toBeGreaterThan(ROUNDS * 10);
    const found = new Set<string>();
    const last = new Map<string, number>();
    for (const event of bus.taken) {
      const known = told.get(name(event));
      expect(known, `${name(event)} was never committed (seed ${SEED})`).toBeDefined();
      expect(Buffer.from(event.bytes)).toEqual(Buffer.from(encodeEvent(known!)));
      if (found.has(name(event))) continue;
      found.add(name(event));
      const entity = `${event.tenantId}/${event.entityId}`;
      expect(event.version, `${entity} skipped one (seed ${SEED})`).toBe((last.get(entity) ?? 0) + 1);
      last.set(entity, event.version);
    }
    expect([...told.keys()].filter((each) => !found.has(each))).toEqual([]);
  });
});
