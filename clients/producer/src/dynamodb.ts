import { createHash, randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import {
  type AttributeValue,
  BatchWriteItemCommand,
  ConditionalCheckFailedException,
  type DynamoDBClient,
  GetItemCommand,
  QueryCommand,
  type TransactWriteItem,
  TransactWriteItemsCommand,
  UpdateItemCommand,
  type WriteRequest,
} from "@aws-sdk/client-dynamodb";
import type { ChangeEvent, Operation } from "./event.js";
import type { LendLimits, Outbox, Settlement } from "./outbox.js";
import { pauseMs } from "./pause.js";

/**
 * The keys of the outbox's table, both text. `part` is "0" to "7" for what waits, "version/<entity>" for the last
 * version of an entity, "lease/<part>" for who reads a part, "rejected" for what was refused for good; `entity` is the
 * entity's hash, of what waits with the version behind it, so that a part is sorted by entity and version.
 */
export const DYNAMO_OUTBOX_KEYS = { partition: "part", sort: "entity" } as const;

const PARTS = 8;
const VERSION_DIGITS = 19;
/** After the versions of an entity, before the next one: behind "#" and every digit. */
const BEYOND = "~";
const DELETES_A_REQUEST = 25;

type Item = Record<string, AttributeValue>;

/** What names an entity. */
export type Entity = Pick<ChangeEvent, "tenantId" | "entityType" | "entityId">;

/**
 * What to add to the transaction that makes a change, so that its event waits in the outbox if and only if the change
 * was made. Fails (TransactionCanceledException) unless the version is greater than the entity's last, which is kept
 * beyond deletions. `occurredAt` is now where it is left out. An item holds 400 KB.
 */
export function dynamoOutboxItems(table: string, event: ChangeEvent): TransactWriteItem[] {
  const hash = hashOf(event);
  const version = String(event.version);
  return [
    {
      Update: {
        TableName: table,
        Key: { part: { S: `version/${hash}` }, entity: { S: "version" } },
        UpdateExpression: "SET version = :version",
        ConditionExpression: "attribute_not_exists(version) OR version < :version",
        ExpressionAttributeValues: { ":version": { N: version } },
      },
    },
    { Put: { TableName: table, Item: itemOf(event, hash, version) } },
  ];
}

/** The entity's last version, 0n where it has none: where the changed item does not say it, as after a deletion. */
export async function lastVersion(client: DynamoDBClient, table: string, entity: Entity): Promise<bigint> {
  const Key = { part: { S: `version/${hashOf(entity)}` }, entity: { S: "version" } };
  const { Item } = await client.send(new GetItemCommand({ TableName: table, Key, ConsistentRead: true }));
  return BigInt(Item?.version?.N ?? 0);
}

export interface DynamoOutboxOptions {
  readonly client: DynamoDBClient;
  readonly table: string;
  /** How long a loan may take before somebody else may read the same part, in ms; 120,000 by default. */
  readonly leaseMs?: number;
}

/**
 * An outbox in a table of DynamoDB. What waits lies in 8 parts, each read by one relay at a time as long as clocks agree
 * (a lease); what is delivered is deleted, and reading goes round and round, so that nothing is passed over for ever.
 */
export class DynamoOutbox implements Outbox {
  private readonly client: DynamoDBClient;
  private readonly table: string;
  private readonly leaseMs: number;
  private readonly owner = randomUUID();
  /** Parts that this object reads at this moment. */
  private readonly reading = new Set<number>();
  /** Where reading a part goes on: an entity's hash. */
  private readonly places = new Map<number, string>();
  private next = Math.floor(Math.random() * PARTS);

  constructor({ client, table, leaseMs = 120_000 }: DynamoOutboxOptions) {
    this.client = client;
    this.table = table;
    this.leaseMs = leaseMs;
  }

  async lend(
    limits: LendLimits,
    publish: (events: readonly ChangeEvent[]) => Promise<readonly Settlement[]>,
  ): Promise<number> {
    for (let tried = 0; tried < PARTS; tried++) {
      const part = this.next;
      this.next = (part + 1) % PARTS;
      if (this.reading.has(part)) continue;
      this.reading.add(part);
      try {
        // A lease costs a write; an idle part only a read.
        if ((await this.read(part, 1)).length === 0 || !(await this.acquire(part))) continue;
        const items = await this.read(part, limits.events);
        const settlements = await publish(items.map(eventOf));
        await this.settle(part, items, settlements);
        await this.release(part);
        if (items.length > 0) return items.length;
      } finally {
        this.reading.delete(part);
      }
    }
    return 0;
  }

  /** What waits from the part's place on, or from its beginning where nothing does. A page holds 1 MB. */
  private async read(part: number, limit: number): Promise<readonly Item[]> {
    for (;;) {
      const place = this.places.get(part);
      const { Items = [] } = await this.client.send(
        new QueryCommand({
          TableName: this.table,
          ConsistentRead: true,
          KeyConditionExpression: "part = :part AND entity >= :place",
          ExpressionAttributeValues: { ":part": { S: String(part) }, ":place": { S: place ?? " " } },
          Limit: limit,
        }),
      );
      if (Items.length > 0 || place === undefined) return Items;
      this.places.delete(part);
    }
  }

  private async acquire(part: number): Promise<boolean> {
    const now = Date.now();
    try {
      await this.client.send(
        new UpdateItemCommand({
          TableName: this.table,
          Key: { part: { S: `lease/${part}` }, entity: { S: "lease" } },
          UpdateExpression: "SET holder = :me, heldUntil = :until",
          ConditionExpression: "attribute_not_exists(holder) OR heldUntil < :now",
          ExpressionAttributeValues: {
            ":me": { S: this.owner },
            ":until": { N: String(now + this.leaseMs) },
            ":now": { N: String(now) },
          },
        }),
      );
      return true;
    } catch (error) {
      if (error instanceof ConditionalCheckFailedException) return false;
      throw error;
    }
  }

  private async release(part: number): Promise<void> {
    try {
      await this.client.send(
        new UpdateItemCommand({
          TableName: this.table,
          Key: { part: { S: `lease/${part}` }, entity: { S: "lease" } },
          UpdateExpression: "REMOVE holder, heldUntil",
          ConditionExpression: "holder = :me",
          ExpressionAttributeValues: { ":me": { S: this.owner } },
        }),
      );
    } catch (error) {
      // It took longer than the lease, and somebody else has it now.
      if (!(error instanceof ConditionalCheckFailedException)) throw error;
    }
  }

  private async settle(
    part: number,
    items: readonly Item[],
    settlements: readonly Settlement[],
  ): Promise<void> {
    const delivered: Item[] = [];
    let moved = 0;
    for (const [i, item] of items.entries()) {
      const settlement = settlements[i];
      if (settlement === "delivered") delivered.push(item);
      else if (typeof settlement === "object") {
        await this.reject(item, settlement);
        moved++;
      }
    }
    for (let at = 0; at < delivered.length; at += DELETES_A_REQUEST) {
      await this.remove(delivered.slice(at, at + DELETES_A_REQUEST));
    }
    const hashes = items.map(({ entity }) => entity!.S!.slice(0, entity!.S!.indexOf("#")));
    const last = hashes.at(-1);
    if (last === undefined) return;
    // An entity is begun at its oldest version, and passed over for now where it alone was lent and nothing settled.
    const stuck = hashes[0] === last && delivered.length + moved === 0;
    this.places.set(part, stuck ? last + BEYOND : last);
  }

  private async remove(items: readonly Item[]): Promise<void> {
    let left: WriteRequest[] = items.map((item) => ({ DeleteRequest: { Key: keyOf(item) } }));
    for (let attempt = 1; left.length > 0; attempt++) {
      const command = new BatchWriteItemCommand({ RequestItems: { [this.table]: left } });
      const { UnprocessedItems } = await this.client.send(command);
      left = UnprocessedItems?.[this.table] ?? [];
      if (left.length > 0) await sleep(pauseMs(attempt));
    }
  }

  private async reject(item: Item, { code, message }: { code: string; message: string }): Promise<void> {
    const refusal = {
      code: { S: code },
      message: { S: message },
      rejectedAt: { S: new Date().toISOString() },
    };
    const Item = { ...item, part: { S: "rejected" }, ...refusal };
    await this.client.send(
      new TransactWriteItemsCommand({
        TransactItems: [
          { Put: { TableName: this.table, Item } },
          { Delete: { TableName: this.table, Key: keyOf(item) } },
        ],
      }),
    );
  }
}

const hashOf = ({ tenantId, entityType, entityId }: Entity): string =>
  createHash("sha256").update(`${tenantId}\0${entityType}\0${entityId}`).digest("hex");

const keyOf = ({ part, entity }: Item): Item => ({ part: part!, entity: entity! });

function itemOf(event: ChangeEvent, hash: string, version: string): Item {
  const { occurredAt = new Date(), payload, compression, attributes, eventId } = event;
  const instant =
    occurredAt instanceof Date
      ? {
          seconds: Math.floor(occurredAt.getTime() / 1000),
          nanos: (((occurredAt.getTime() % 1000) + 1000) % 1000) * 1e6,
        }
      : occurredAt;
  return {
    part: { S: String(Number.parseInt(hash.slice(0, 4), 16) % PARTS) },
    entity: { S: `${hash}#${version.padStart(VERSION_DIGITS, "0")}` },
    tenantId: { S: event.tenantId },
    entityType: { S: event.entityType },
    entityId: { S: event.entityId },
    operation: { S: event.operation },
    version: { N: version },
    seconds: { N: String(instant.seconds) },
    nanos: { N: String(instant.nanos) },
    ...(payload === undefined ? {} : { payload: { B: payload } }),
    ...(compression === undefined ? {} : { compression: { S: compression } }),
    ...(eventId === undefined ? {} : { eventId: { S: eventId } }),
    ...(attributes === undefined
      ? {}
      : { attributes: { M: Object.fromEntries(Object.entries(attributes).map(([k, v]) => [k, { S: v }])) } }),
  };
}

function eventOf(item: Item): ChangeEvent {
  const { payload, compression, eventId, attributes } = item;
  return {
    tenantId: item.tenantId!.S!,
    entityType: item.entityType!.S!,
    entityId: item.entityId!.S!,
    operation: item.operation!.S as Operation,
    version: item.version!.N!,
    occurredAt: { seconds: BigInt(item.seconds!.N!), nanos: Number(item.nanos!.N) },
    ...(payload?.B === undefined ? {} : { payload: payload.B }),
    ...(compression?.S === undefined ? {} : { compression: compression.S as "gzip" | "zstd" }),
    ...(eventId?.S === undefined ? {} : { eventId: eventId.S }),
    ...(attributes?.M === undefined
      ? {}
      : { attributes: Object.fromEntries(Object.entries(attributes.M).map(([k, v]) => [k, v.S!])) }),
  };
}
