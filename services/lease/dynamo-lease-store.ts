import { randomUUID } from "node:crypto";
import {
  type AttributeValue,
  ConditionalCheckFailedException,
  CreateTableCommand,
  DeleteItemCommand,
  DescribeTableCommand,
  type DynamoDBClient,
  PutItemCommand,
  ResourceInUseException,
  ResourceNotFoundException,
  ScanCommand,
  waitUntilTableExists,
} from "@aws-sdk/client-dynamodb";
import { TributaryError } from "../base/errors.js";
import type { Lease, LeaseChange, LeaseResult, LeaseStore } from "./lease-store.js";

/** How long a table may take to come into being. */
const CREATE_SECONDS = 120;

type Item = Record<string, AttributeValue>;

/**
 * Leases as items of one DynamoDB table, in the fields that operators know of the KCL: leaseKey, leaseOwner,
 * leaseCounter, checkpoint, parentShardId. Reads are strongly consistent scans: the table is for leases alone.
 */
export class DynamoLeaseStore implements LeaseStore {
  private constructor(
    private readonly client: DynamoDBClient,
    private readonly table: string,
    private readonly group: string,
  ) {}

  /**
   * Makes the table where it is missing, billed by request. Leases of several groups share a table.
   * Errors: TRB-STORE-FAILED.
   */
  static async open(options: {
    readonly client: DynamoDBClient;
    readonly table: string;
    readonly group: string;
  }): Promise<DynamoLeaseStore> {
    const { client, table, group } = options;
    await asked(() => ensureTable(client, table));
    return new DynamoLeaseStore(client, table, group);
  }

  async list(): Promise<readonly Lease[]> {
    const prefix = `${this.group}/`;
    const leases: Lease[] = [];
    let from: Item | undefined;
    do {
      const page = await asked(() =>
        this.client.send(
          new ScanCommand({
            TableName: this.table,
            ConsistentRead: true,
            FilterExpression: "begins_with(leaseKey, :prefix)",
            ExpressionAttributeValues: { ":prefix": { S: prefix } },
            ExclusiveStartKey: from,
          }),
        ),
      );
      for (const item of page.Items ?? []) leases.push(toLease(item, prefix));
      from = page.LastEvaluatedKey;
    } while (from !== undefined);
    return leases;
  }

  async change(changes: readonly LeaseChange[]): Promise<readonly LeaseResult[]> {
    const results = await Promise.allSettled(changes.map((change) => this.changeOne(change)));
    return results.map((result) => {
      if (result.status === "rejected") throw result.reason;
      return result.value;
    });
  }

  private async changeOne({ from, to }: LeaseChange): Promise<LeaseResult> {
    const key = `${this.group}/${(from === undefined ? to : from).name}`;
    const request = {
      TableName: this.table,
      ...unchanged(from),
      ReturnValuesOnConditionCheckFailure: "ALL_OLD",
    } as const;
    const change = randomUUID();
    const lease = to === undefined ? undefined : { ...to, counter: (from?.counter ?? 0) + 1 };
    try {
      await asked<unknown>(() =>
        lease === undefined
          ? this.client.send(new DeleteItemCommand({ ...request, Key: { leaseKey: { S: key } } }))
          : this.client.send(new PutItemCommand({ ...request, Item: toItem(lease, key, change) })),
      );
      return lease ?? "removed";
    } catch (error) {
      if (!(error instanceof ConditionalCheckFailedException)) throw error;
      // The SDK tries again when an answer is lost: what stands there may be our own first try.
      return error.Item?.change?.S === change ? lease : undefined;
    }
  }
}

/** The condition that nobody has changed the lease since. */
function unchanged(from: Lease | undefined) {
  if (from === undefined) return { ConditionExpression: "attribute_not_exists(leaseKey)" };
  const owner = from.owner === undefined ? "attribute_not_exists(leaseOwner)" : "leaseOwner = :owner";
  return {
    ConditionExpression: `leaseCounter = :counter AND ${owner}`,
    ExpressionAttributeValues: {
      ":counter": { N: String(from.counter) },
      ...(from.owner === undefined ? {} : { ":owner": { S: from.owner } }),
    },
  };
}

function toItem(lease: Lease, key: string, change: string): Item {
  const { owner, heir, after } = lease;
  return {
    leaseKey: { S: key },
    leaseCounter: { N: String(lease.counter) },
    checkpoint: { S: lease.checkpoint },
    finished: { BOOL: lease.finished },
    change: { S: change },
    ...(owner === undefined ? {} : { leaseOwner: { S: owner } }),
    ...(heir === undefined ? {} : { leaseHeir: { S: heir } }),
    ...(after.length === 0 ? {} : { parentShardId: { SS: [...after] } }),
  };
}

const toLease = (item: Item, prefix: string): Lease => ({
  name: item.leaseKey!.S!.slice(prefix.length),
  owner: item.leaseOwner?.S,
  heir: item.leaseHeir?.S,
  counter: Number(item.leaseCounter?.N ?? 0),
  checkpoint: item.checkpoint?.S ?? "",
  finished: item.finished?.BOOL ?? false,
  after: [...(item.parentShardId?.SS ?? [])].sort(),
});

async function ensureTable(client: DynamoDBClient, table: string): Promise<void> {
  try {
    const { Table } = await client.send(new DescribeTableCommand({ TableName: table }));
    if (Table?.TableStatus === "ACTIVE") return;
  } catch (error) {
    if (!(error instanceof ResourceNotFoundException)) throw error;
    await client
      .send(
        new CreateTableCommand({
          TableName: table,
          BillingMode: "PAY_PER_REQUEST",
          AttributeDefinitions: [{ AttributeName: "leaseKey", AttributeType: "S" }],
          KeySchema: [{ AttributeName: "leaseKey", KeyType: "HASH" }],
        }),
      )
      .catch((failure: unknown) => {
        // Another worker makes it at this moment.
        if (!(failure instanceof ResourceInUseException)) throw failure;
      });
  }
  await waitUntilTableExists({ client, maxWaitTime: CREATE_SECONDS, minDelay: 1 }, { TableName: table });
}

async function asked<T>(request: () => Promise<T>): Promise<T> {
  try {
    return await request();
  } catch (cause) {
    if (cause instanceof ConditionalCheckFailedException) throw cause;
    const name = cause instanceof Error ? cause.name : "unknown";
    throw new TributaryError("TRB-STORE-FAILED", `the lease table does not answer as it should: ${name}`, {
      cause,
    });
  }
}
