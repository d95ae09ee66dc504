import { randomUUID } from "node:crypto";
import { DescribeTableCommand, ScanCommand } from "@aws-sdk/client-dynamodb";
import { afterAll, beforeAll, expect, test } from "vitest";
import { DynamoLeaseStore } from "../../services/lease/dynamo-lease-store.js";
import { newLease } from "../../services/lease/lease-store.js";
import { leaseStoreContract } from "../contract/lease-store.js";
import { startDynamoDb } from "../servers/dynamodb.js";

let server: Awaited<ReturnType<typeof startDynamoDb>>;
beforeAll(async () => {
  server = await startDynamoDb();
});
afterAll(() => server?.stop());

leaseStoreContract(async () => {
  const group = randomUUID();
  return {
    open: () => DynamoLeaseStore.open({ client: server.client(), table: "leases", group }),
    races: 100,
  };
});

test("the table is made by whoever comes first, billed by request; several at once do no harm", async () => {
  const table = `leases-${randomUUID()}`;
  const open = () => DynamoLeaseStore.open({ client: server.client(), table, group: "g" });
  const stores = await Promise.all(Array.from({ length: 5 }, open));
  await stores[0]!.change([{ from: undefined, to: newLease("a") }]);
  expect(await (await open()).list()).toHaveLength(1);
  const { Table } = await server.client().send(new DescribeTableCommand({ TableName: table }));
  expect(Table?.BillingModeSummary?.BillingMode).toBe("PAY_PER_REQUEST");
});

test("items have the names that operators know; groups share a table without seeing each other", async () => {
  const table = `leases-${randomUUID()}`;
  const open = (group: string) => DynamoLeaseStore.open({ client: server.client(), table, group });
  const store = await open("orders");
  await store.change([
    { from: undefined, to: { ...newLease("ingest/shardId-2", ["ingest/shardId-1"], "9"), owner: "me" } },
  ]);
  expect(await (await open("order")).list()).toEqual([]);
  const { Items } = await server.client().send(new ScanCommand({ TableName: table }));
  expect(Items).toMatchObject([
    {
      leaseKey: { S: "orders/ingest/shardId-2" },
      leaseOwner: { S: "me" },
      leaseCounter: { N: "1" },
      checkpoint: { S: "9" },
      parentShardId: { SS: ["ingest/shardId-1"] },
    },
  ]);
});

test("a change whose answer was lost and that the SDK sends again is ours", async () => {
  const client = server.client();
  let lose = false;
  client.middlewareStack.add(
    (next) => async (args) => {
      const result = await next(args);
      if (!lose) return result;
      lose = false;
      throw Object.assign(new Error("socket hang up"), { code: "ECONNRESET", name: "TimeoutError" });
    },
    { step: "deserialize", name: "loseAnswer" },
  );
  const store = await DynamoLeaseStore.open({ client, table: "leases", group: randomUUID() });
  lose = true;
  const [lease] = await store.change([{ from: undefined, to: newLease("a") }]);
  expect(lose).toBe(false);
  expect(lease).toMatchObject({ name: "a", counter: 1 });
});
