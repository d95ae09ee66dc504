import { randomUUID } from "node:crypto";
import type { JsonValue } from "@bufbuild/protobuf";
import type { DuckDBConnection } from "@duckdb/node-api";
import { type Duck, literal, rowsOf } from "../base/duckdb.js";
import { TributaryError } from "../base/errors.js";
import { Envelope, isTenantId } from "../contracts/envelope.js";
import { writtenReference } from "../contracts/payload-reference.js";
import type { ProtoRegistry } from "../contracts/registry.js";
import { type Change, Changes } from "../follow/change.js";
import { ENTITY_TYPE, OPERATIONS } from "../ingest/event-batch.js";
import { rawRoot } from "../ingest/raw-table.js";
import { type WholeEvent, wholeEvents } from "../ingest/replay.js";
import type { PayloadSource } from "../offload/payload-of.js";
import { audit } from "../operate/audit-log.js";
import type { ObjectStore } from "../storage/object-store.js";
import { DeltaTable } from "../table/delta-table.js";
import { mayHoldTenant, portionsOf, withFilesScan } from "../table/scan.js";

export interface Entity {
  readonly tenant: string;
  readonly entityType: string;
  readonly entityId: string;
}

/** One event of an entity as raw has it. */
export interface PastEvent {
  readonly stream: string;
  readonly partition: string;
  readonly position: string;
  /** ISO 8601. */
  readonly receivedAt: string;
  /** ISO 8601, as the producer says. */
  readonly occurredAt?: string;
  readonly operation: string;
  readonly version: string;
  readonly eventId?: string;
  readonly attributes: Readonly<Record<string, string>>;
  /** Proto3 JSON. */
  readonly payload?: JsonValue;
  /** Where the payload is that did not travel with its event. */
  readonly payloadReference?: { readonly uri: string; readonly sizeBytes: string; readonly sha256: string };
  /** Why no table has it. */
  readonly fault?: { readonly code: string; readonly reason?: string };
  /** It is what tables say of the entity. */
  readonly wins: boolean;
}

export interface History {
  /** All that raw has. */
  readonly events: number;
  /** The newest of them as they were received, the oldest first. */
  readonly shown: readonly PastEvent[];
}

export interface HistoryParts {
  readonly store: ObjectStore;
  readonly duck: Duck;
  readonly registry: ProtoRegistry;
  readonly payloads: PayloadSource;
}

export interface HistoryOptions {
  /** Who looks, as audit-log.ts has it. */
  readonly by: string;
  readonly limit: number;
  /** Fetches payloads that did not travel with their events, too. */
  readonly resolve: boolean;
}

interface Row {
  readonly id: number;
  readonly version: bigint;
}

/** Events that are in memory at once: of a megabyte each at most. */
const PAGE = 32;
const OPEN = { checkpointEvery: Number.MAX_SAFE_INTEGER };

/**
 * What raw has of one entity, from one snapshot, reading nothing but the files that can hold rows of its tenant. Which
 * event wins does not hang on how many are shown. The audit log has it before anything is read. Errors:
 * TRB-EVENT-TENANT, TRB-EVENT-ENTITY-TYPE, for what can be neither; TRB-TABLE-NOT-FOUND; TRB-STORE-FAILED;
 * TRB-TABLE-CORRUPT.
 */
export async function entityHistory(
  parts: HistoryParts,
  entity: Entity,
  options: HistoryOptions,
): Promise<History> {
  const { store, duck } = parts;
  if (!isTenantId(entity.tenant)) throw new TributaryError("TRB-EVENT-TENANT");
  if (!ENTITY_TYPE.test(entity.entityType)) throw new TributaryError("TRB-EVENT-ENTITY-TYPE");
  await audit(store, { at: new Date().toISOString(), by: options.by, action: "raw show", ...entity });
  const raw = await DeltaTable.open(store, rawRoot(entity.entityType), duck, OPEN);
  if (raw === undefined)
    throw new TributaryError("TRB-TABLE-NOT-FOUND", `no events of type "${entity.entityType}" have landed`);
  return duck.with(async (connection) => {
    const name = `history_${randomUUID().replaceAll("-", "")}`;
    await copyRows(raw, connection, entity, name);
    return new Reading(parts, entity, connection, name).read(options);
  });
}

async function copyRows(
  raw: DeltaTable,
  connection: DuckDBConnection,
  { tenant, entityId }: Entity,
  name: string,
): Promise<void> {
  const { snapshot } = raw;
  const where = `tenant_id = ${textOf(tenant)} AND entity_id = ${textOf(entityId)}`;
  const files = snapshot.files.filter((file) => mayHoldTenant(file, tenant));
  await withFilesScan(raw, snapshot, [], { where }, (sql) =>
    connection.run(`CREATE TEMP TABLE ${name} AS ${sql}`),
  );
  for (const portion of portionsOf(raw, files)) {
    await withFilesScan(raw, snapshot, portion, { where }, (sql) =>
      connection.run(`INSERT INTO ${name} ${sql}`),
    );
  }
}

/** SQL for a text that may hold any character. */
const textOf = (text: string): string =>
  text.includes("\0") ? `decode(unhex('${Buffer.from(text).toString("hex")}'))` : literal(text);

class Reading {
  private readonly changes: Changes;

  constructor(
    parts: HistoryParts,
    private readonly entity: Entity,
    private readonly connection: DuckDBConnection,
    /** Of the table with the entity's rows. */
    private readonly name: string,
  ) {
    this.changes = new Changes(parts.registry, parts.payloads, 0);
  }

  async read({ limit, resolve }: HistoryOptions): Promise<History> {
    const found = await rowsOf(
      this.connection,
      `SELECT rowid, version FROM ${this.name} ORDER BY received_at, stream, partition, position`,
    );
    const rows = found.map(([id, version]): Row => ({ id: Number(id), version: version as bigint }));
    const winner = await this.winner(rows);
    const shown: PastEvent[] = [];
    const newest = rows.slice(Math.max(0, rows.length - limit));
    for await (const { row, whole } of this.pages(newest))
      shown.push(await this.past(whole, row.id === winner, resolve));
    return { events: rows.length, shown };
  }

  /** Of the greatest version that any table can have, the one that beats the others. */
  private async winner(rows: readonly Row[]): Promise<number | undefined> {
    const byVersion = new Map<bigint, Row[]>();
    for (const row of rows) {
      const same = byVersion.get(row.version);
      if (same === undefined) byVersion.set(row.version, [row]);
      else same.push(row);
    }
    for (const version of [...byVersion.keys()].sort((a, b) => (a > b ? -1 : 1))) {
      let best: { readonly id: number; readonly order: string } | undefined;
      for await (const { row, whole } of this.pages(byVersion.get(version)!)) {
        const change = await this.change(whole);
        if (typeof change === "string" || change.payloadFault !== undefined) continue;
        // Of equals the one that came first.
        if (best === undefined || change.order > best.order) best = { id: row.id, order: change.order };
      }
      if (best !== undefined) return best.id;
    }
    return undefined;
  }

  private async *pages(rows: readonly Row[]): AsyncGenerator<{ row: Row; whole: WholeEvent }> {
    const { connection, entity, name } = this;
    for (let at = 0; at < rows.length; at += PAGE) {
      const page = rows.slice(at, at + PAGE);
      const ids = `[${page.map(({ id }) => id).join(", ")}]`;
      const sql = `SELECT * FROM ${name} WHERE rowid IN (SELECT unnest(${ids})) ORDER BY list_position(${ids}, rowid)`;
      let next = 0;
      for await (const whole of wholeEvents({ connection, entityType: entity.entityType }, sql))
        yield { row: page[next++]!, whole };
    }
  }

  private async change({ event, ...place }: WholeEvent): Promise<Change | string> {
    const change = await this.changes.read(event, 0, event.length, place, () => true);
    if (change === undefined) throw new TributaryError("TRB-INTERNAL");
    return change;
  }

  private async past(whole: WholeEvent, wins: boolean, resolve: boolean): Promise<PastEvent> {
    const envelope = new Envelope();
    envelope.read(whole.event, 0, whole.event.length, 0);
    const told = envelope.referenceStart >= 0 ? writtenReference(envelope) : undefined;
    // A winner's has been looked at.
    const change = told === undefined || resolve ? await this.change(whole) : undefined;
    return {
      stream: whole.stream,
      partition: whole.partition,
      position: whole.position,
      receivedAt: new Date(whole.receivedAt).toISOString(),
      ...occurred(envelope),
      operation: OPERATIONS[envelope.operation as 1 | 2 | 3],
      version: String(envelope.version()),
      ...(envelope.eventIdEnd > envelope.eventIdStart ? { eventId: envelope.eventId() } : {}),
      attributes: Object.fromEntries(envelope.attributeMap()),
      ...(told === undefined
        ? {}
        : {
            payloadReference: {
              uri: told.uri,
              sizeBytes: String((BigInt(told.sizeHi) << 32n) | BigInt(told.sizeLo)),
              sha256: told.sha256.toString("hex"),
            },
          }),
      ...payloadOf(change),
      wins,
    };
  }
}

function occurred({ occurredSeconds: seconds, occurredNanos }: Envelope): Pick<PastEvent, "occurredAt"> {
  if (Number.isNaN(seconds)) return {};
  const fraction = String(Math.floor(occurredNanos / 1000)).padStart(6, "0");
  return { occurredAt: `${new Date(seconds * 1000).toISOString().slice(0, -5)}.${fraction}Z` };
}

function payloadOf(change: Change | string | undefined): Pick<PastEvent, "payload" | "fault"> {
  if (change === undefined) return {};
  if (typeof change === "string") return { fault: { code: change } };
  return {
    ...(change.payload === undefined ? {} : { payload: change.payload }),
    ...(change.payloadFault === undefined ? {} : { fault: change.payloadFault }),
  };
}
