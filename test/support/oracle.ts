import { join } from "node:path";
import { gunzipSync } from "node:zlib";
import { fromJsonString, toBinary } from "@bufbuild/protobuf";
import { decompress as unzstd } from "fzstd";
import { packageRoot } from "../../services/base/paths.js";
import { ProtoRegistry } from "../../services/contracts/registry.js";
import { xxh64 } from "./oracle-hash.js";
import { digestOf, entityTypeOf, expectedRow, type Row, sorted, type TableName } from "./oracle-tables.js";

const registry = ProtoRegistry.load([join(packageRoot, "proto")]);
const eventType = registry.codec("tributary.v1.ChangeEvent");
const requestType = registry.codec("tributary.v1.PublishRequest");
const DELETED = 3;

/** The winning event of an entity so far. */
interface Winner {
  readonly tenantId: string;
  readonly entityType: string;
  readonly entityId: string;
  readonly version: bigint;
  readonly operation: number;
  /** Microseconds; undefined, and so before any other, when the event has no occurred_at. */
  readonly occurredAt: bigint | undefined;
  readonly typeUrl: string;
  /** Uncompressed. */
  readonly payload: Uint8Array;
  hash?: bigint;
}

export interface Selection {
  readonly tenant?: string;
  /** What the model's WHERE says of the winner's row; dropped rows are not there, whatever lost against them. */
  readonly where?: (row: Row) => boolean;
}

/**
 * What the tables must hold after a set of events: last write wins by the letter of the contract, in a Map, with
 * protobufjs as it comes. It shares no code with the tables or with ingest, and takes accepted events only.
 */
export class Oracle {
  private readonly winners = new Map<string, Winner>();

  /** Takes in one ChangeEvent in the wire format. */
  apply(event: Uint8Array): void {
    this.take(eventType.decode(event) as unknown as Decoded);
  }

  /** Takes in a PublishRequest in the wire format. */
  applyRequest(body: Uint8Array): void {
    const { events } = requestType.decode(body) as unknown as { events: Decoded[] };
    for (const event of events) this.take(event);
  }

  /** Takes in one event as proto3 JSON. */
  applyLine(line: string): void {
    const desc = registry.types.getMessage("tributary.v1.ChangeEvent")!;
    this.apply(toBinary(desc, fromJsonString(desc, line, { registry: registry.types })));
  }

  /** Live rows as the table's model yields them, by tenant and entity id. */
  rows(table: TableName, selection: Selection = {}): Row[] {
    const entityType = entityTypeOf(table);
    const type = registry.codec(entityType);
    const rows: Row[] = [];
    for (const winner of this.winners.values()) {
      if (winner.entityType !== entityType || winner.operation === DELETED) continue;
      if (selection.tenant !== undefined && winner.tenantId !== selection.tenant) continue;
      const row = expectedRow(table, winner.tenantId, winner.entityId, type.decode(winner.payload));
      if (selection.where?.(row) !== false) rows.push(row);
    }
    return sorted(rows);
  }

  /** Live rows per tenant; tenants without any are not in it. */
  counts(table: TableName): Map<string, number> {
    const entityType = entityTypeOf(table);
    const counts = new Map<string, number>();
    for (const winner of this.winners.values()) {
      if (winner.entityType !== entityType || winner.operation === DELETED) continue;
      counts.set(winner.tenantId, (counts.get(winner.tenantId) ?? 0) + 1);
    }
    return counts;
  }

  /** To be compared with `digestOf` the rows a reader gave. */
  digest(table: TableName, selection: Selection = {}): string {
    return digestOf(this.rows(table, selection));
  }

  /** Entities that were ever heard of, deleted ones included. */
  get entityCount(): number {
    return this.winners.size;
  }

  private take(event: Decoded): void {
    const key = `${event.tenant_id}\0${event.entity_type}\0${event.entity_id}`;
    const candidate = winnerOf(event);
    const standing = this.winners.get(key);
    if (standing === undefined || beats(candidate, standing)) this.winners.set(key, candidate);
  }
}

/** Whether `a` wins over `b` of the same entity. */
function beats(a: Winner, b: Winner): boolean {
  if (a.version !== b.version) return a.version > b.version;
  const aDeletes = a.operation === DELETED;
  if (aDeletes !== (b.operation === DELETED)) return aDeletes;
  a.hash ??= hashOf(a);
  b.hash ??= hashOf(b);
  if (a.hash !== b.hash) return a.hash > b.hash;
  if (a.occurredAt !== b.occurredAt) {
    if (a.occurredAt === undefined || b.occurredAt === undefined) return b.occurredAt === undefined;
    return a.occurredAt > b.occurredAt;
  }
  return a.operation > b.operation;
}

const hashOf = ({ typeUrl, payload }: Winner): bigint =>
  xxh64(Buffer.concat([Buffer.from(typeUrl, "utf8"), payload]));

function winnerOf(event: Decoded): Winner {
  const { payload, occurred_at: at } = event;
  return {
    tenantId: event.tenant_id,
    entityType: event.entity_type,
    entityId: event.entity_id,
    version: BigInt(event.version.toString()),
    operation: event.operation,
    occurredAt: at
      ? BigInt(at.seconds.toString()) * 1_000_000n + BigInt(Math.floor(at.nanos / 1000))
      : undefined,
    typeUrl: payload?.type_url ?? "",
    payload: unpacked(event.payload_compression, payload?.value ?? new Uint8Array(0)),
  };
}

function unpacked(compression: number, bytes: Uint8Array): Uint8Array {
  if (compression === 1) return gunzipSync(bytes);
  return compression === 2 ? unzstd(bytes) : bytes;
}

/** A ChangeEvent as protobufjs decodes it, names as in the .proto file. */
interface Decoded {
  readonly tenant_id: string;
  readonly entity_type: string;
  readonly entity_id: string;
  readonly operation: number;
  readonly version: { toString(): string };
  readonly occurred_at: { readonly seconds: { toString(): string }; readonly nanos: number } | null;
  readonly payload: { readonly type_url: string; readonly value: Uint8Array } | null;
  readonly payload_compression: number;
}
