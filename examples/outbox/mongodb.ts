/**
 * An outbox in MongoDB: a recipe to copy. Three collections of a replica set, with the index that `prepare` makes:
 * `outbox` holds what waits, `outbox_versions` the last version of each entity, which outlives its deletion, and
 * `outbox_leases` who reads. A relay of `@tributary/producer` publishes what it lends.
 */
import { randomUUID } from "node:crypto";
import type { ChangeEvent, LendLimits, Outbox, Settlement } from "@tributary/producer";
import { Binary, type ClientSession, type Db, Long, MongoServerError } from "mongodb";

/** `entity` and `version` say where an event stands; the rest is the event. */
interface Waiting extends Omit<ChangeEvent, "version" | "payload" | "occurredAt"> {
  readonly entity: string;
  readonly version: Long;
  readonly occurredAt: Date;
  readonly payload?: Binary;
  readonly rejected?: { readonly code: string; readonly message: string };
}

interface Lease {
  readonly _id: "relay";
  readonly holder: string;
  readonly until: Date;
}

export const prepare = (db: Db) => db.collection<Waiting>("outbox").createIndex({ entity: 1, version: 1 });

/**
 * Writes an event in the transaction of the change it tells of:
 *
 *   await client.withSession((session) =>
 *     session.withTransaction(async () => {
 *       await writeEvent(db, session, { tenantId, entityType, entityId, operation: "updated", payload });
 *       await db.collection("issues").updateOne({ key }, { $set: { … } }, { session });
 *     }, { readConcern: { level: "snapshot" }, writeConcern: { w: "majority" } }));
 *
 * Of two transactions that change an entity at a time, one fails at its version and is run again by withTransaction, so
 * that versions follow the order of commits.
 */
export async function writeEvent(
  db: Db,
  session: ClientSession,
  event: Omit<ChangeEvent, "version" | "occurredAt">,
): Promise<void> {
  const entity = JSON.stringify([event.tenantId, event.entityType, event.entityId]);
  const counted = await db
    .collection<{ _id: string; version: Long }>("outbox_versions")
    .findOneAndUpdate(
      { _id: entity },
      { $inc: { version: Long.ONE } },
      { session, upsert: true, returnDocument: "after", promoteLongs: false },
    );
  const { payload, ...fields } = event;
  await db.collection<Waiting>("outbox").insertOne(
    {
      ...fields,
      entity,
      version: counted!.version,
      occurredAt: new Date(),
      ...(payload === undefined ? {} : { payload: new Binary(payload) }),
    },
    { session },
  );
}

/** One relay reads at a time; others stand by until its lease runs out. */
export class MongoOutbox implements Outbox {
  private readonly db: Db;
  private readonly leaseMs: number;
  private readonly holder = randomUUID();
  private lending = false;
  /** The entity that reading goes on from, so that one whose events are kept holds up no other. */
  private place = "";

  constructor(db: Db, leaseMs = 120_000) {
    this.db = db;
    this.leaseMs = leaseMs;
  }

  async lend(
    limits: LendLimits,
    publish: (events: readonly ChangeEvent[]) => Promise<readonly Settlement[]>,
  ): Promise<number> {
    if (this.lending) return 0;
    this.lending = true;
    try {
      if (!(await this.acquire())) return 0;
      const waiting = await this.read(limits);
      if (waiting.length > 0) await this.settle(waiting, await publish(waiting.map(eventOf)));
      return waiting.length;
    } finally {
      this.lending = false;
    }
  }

  private async acquire(): Promise<boolean> {
    const now = new Date();
    try {
      await this.db.collection<Lease>("outbox_leases").updateOne(
        { _id: "relay", $or: [{ holder: this.holder }, { until: { $lt: now } }] },
        { $set: { holder: this.holder, until: new Date(now.getTime() + this.leaseMs) } },
        // Where somebody else holds it nothing matches, and the insert meets their document.
        { upsert: true },
      );
      return true;
    } catch (error) {
      if (error instanceof MongoServerError && error.code === 11000) return false;
      throw error;
    }
  }

  private async read({ events, bytes }: LendLimits) {
    const from = this.place;
    const found = await this.db
      .collection<Waiting>("outbox", { readConcern: { level: "majority" }, readPreference: "primary" })
      .find(
        { entity: { $gte: from }, rejected: { $exists: false } },
        { promoteLongs: false, promoteBuffers: false },
      )
      .sort({ entity: 1, version: 1 })
      .limit(events)
      .toArray();
    this.place = "";
    let size = 0;
    return found.filter(({ payload }, i) => {
      size += payload?.length() ?? 0;
      return i === 0 || size <= bytes;
    });
  }

  private async settle(
    waiting: Awaited<ReturnType<MongoOutbox["read"]>>,
    settlements: readonly Settlement[],
  ) {
    const outbox = this.db.collection<Waiting>("outbox", { writeConcern: { w: "majority" } });
    const delivered = waiting.filter((_, i) => settlements[i] === "delivered").map(({ _id }) => _id);
    if (delivered.length > 0) await outbox.deleteMany({ _id: { $in: delivered } });
    for (const [i, { _id }] of waiting.entries()) {
      const settlement = settlements[i];
      if (typeof settlement !== "object") continue;
      const { code, message } = settlement;
      await outbox.updateOne({ _id }, { $set: { rejected: { code, message } } });
    }
    const [first, last] = [waiting[0]!.entity, waiting.at(-1)!.entity];
    // An entity is begun at its oldest version; one that alone was lent, and kept, is passed over until the next round.
    const stuck = first === last && settlements.every((each) => each === "kept");
    this.place = stuck ? `${last}\u0000` : last;
  }
}

function eventOf({
  tenantId,
  entityType,
  entityId,
  operation,
  version,
  occurredAt,
  payload,
  ...rest
}: Waiting): ChangeEvent {
  const { compression, attributes, eventId } = rest;
  return {
    tenantId,
    entityType,
    entityId,
    operation,
    version: version.toBigInt(),
    occurredAt,
    ...(payload === undefined ? {} : { payload: payload.value() }),
    ...(compression === undefined ? {} : { compression }),
    ...(attributes === undefined ? {} : { attributes }),
    ...(eventId === undefined ? {} : { eventId }),
  };
}
