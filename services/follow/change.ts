import { fromBinary, type JsonValue, toJson } from "@bufbuild/protobuf";
import type { Code } from "../base/codes.js";
import { contentHash } from "../contracts/content-hash.js";
import { COMPRESSION_NONE, Envelope, OPERATION_DELETED } from "../contracts/envelope.js";
import { referenceOf } from "../contracts/payload-reference.js";
import type { ProtoRegistry } from "../contracts/registry.js";
import { type PayloadFault, type PayloadSource, payloadAt, unpacked } from "../offload/payload-of.js";

const OPERATIONS = { 1: "CREATED", 2: "UPDATED", 3: "DELETED" } as const;

/** One change event as an object, for those who look at events one by one. */
export interface Change {
  readonly tenantId: string;
  readonly entityType: string;
  readonly entityId: string;
  readonly operation: (typeof OPERATIONS)[keyof typeof OPERATIONS];
  readonly version: bigint;
  /** RFC 3339, microseconds; undefined when the event has none. */
  readonly occurredAt: string | undefined;
  /** The payload in proto3 JSON, as its descriptor has it now; undefined without one. */
  readonly payload: JsonValue | undefined;
  /** The payload's bytes, unpacked, for generated code; undefined without one. */
  readonly payloadBytes: Buffer | undefined;
  /**
   * Why a payload that did not travel with its event is not to be had, such as TRB-EVENT-PAYLOAD-MISSING; undefined when
   * nothing is wrong. Tables do not have such a change either, until it is redriven.
   */
  readonly payloadFault: PayloadFault | undefined;
  /** The producer's own. */
  readonly attributes: ReadonlyMap<string, string>;
  readonly eventId: string | undefined;
  /**
   * Last write wins: of two changes of one entity the one with the greater text stands, whatever order they came in. A
   * consumer that keeps it with what it derives, deletes included, ends where the lake does.
   */
  readonly order: string;
  readonly partition: string;
  readonly position: string;
  /** When the bus took it, in ms since the epoch. */
  readonly receivedAt: number;
}

/** Where an event stood in the stream. */
export type Place = Pick<Change, "partition" | "position" | "receivedAt">;

/** Who the event is about, before anything is built from it. */
export type About = Pick<Change, "tenantId" | "entityType">;

/** Reads events as changes. */
export class Changes {
  private readonly envelope = new Envelope();

  constructor(
    private readonly registry: ProtoRegistry,
    private readonly payloads: PayloadSource,
    /** 0 for events that may come of a bootstrap. */
    private readonly leastVersion: 0 | 1 = 1,
  ) {}

  /**
   * bytes[start, end) as a change, undefined when `wanted` says no; the code where the bytes are no event, or hold
   * a payload that no descriptor reads. A promise where the payload is elsewhere. Errors: TRB-STORE-FAILED.
   */
  read(
    bytes: Buffer,
    start: number,
    end: number,
    place: Place,
    wanted: (about: About) => boolean,
  ): Change | Code | undefined | Promise<Change | Code> {
    const { envelope } = this;
    const code = envelope.read(bytes, start, end, this.leastVersion);
    if (code !== undefined) return code;
    const about = { tenantId: envelope.tenantId(), entityType: envelope.entityType() };
    if (!wanted(about)) return undefined;
    if (envelope.referenceStart >= 0) return this.fetched(bytes, start, end, about, place);
    const packed = envelope.payload();
    const plain =
      packed === undefined || envelope.compression === COMPRESSION_NONE
        ? packed
        : unpacked(envelope.compression, packed);
    // A copy: the slices belong to the stream's buffers, which a consumer that keeps changes would keep alive.
    return this.change(envelope, about, place, Buffer.isBuffer(plain) ? Buffer.from(plain) : plain);
  }

  private async fetched(
    bytes: Buffer,
    start: number,
    end: number,
    about: About,
    place: Place,
  ): Promise<Change | Code> {
    // Others are read with ours meanwhile.
    const envelope = new Envelope();
    envelope.read(bytes, start, end, this.leastVersion);
    const payload = await payloadAt(referenceOf(envelope), envelope.compression, this.payloads);
    return this.change(envelope, about, place, payload);
  }

  private change(
    envelope: Envelope,
    about: About,
    place: Place,
    found: Buffer | PayloadFault | undefined,
  ): Change | Code {
    const payloadBytes = Buffer.isBuffer(found) ? found : undefined;
    const payloadFault = Buffer.isBuffer(found) ? undefined : found;
    const payload = this.decode(about.entityType, payloadBytes);
    if (payload instanceof Undecoded || payloadFault?.code === "TRB-EVENT-PAYLOAD-DECODE") {
      return "TRB-EVENT-PAYLOAD-DECODE";
    }
    return {
      ...about,
      entityId: envelope.entityId(),
      operation: OPERATIONS[envelope.operation as keyof typeof OPERATIONS],
      version: envelope.version(),
      occurredAt: occurredAt(envelope),
      payload,
      payloadBytes,
      payloadFault,
      attributes: envelope.attributeMap(),
      eventId: envelope.eventIdEnd > envelope.eventIdStart ? envelope.eventId() : undefined,
      order: orderOf(envelope, payloadBytes),
      ...place,
    };
  }

  private decode(entityType: string, bytes: Buffer | undefined): JsonValue | undefined | Undecoded {
    if (bytes === undefined) return undefined;
    const type = this.registry.entityType(entityType);
    if (type === undefined) return new Undecoded();
    try {
      return toJson(type, fromBinary(type, bytes), { registry: this.registry.types });
    } catch {
      return new Undecoded();
    }
  }
}

class Undecoded {}

function occurredAt({ occurredSeconds, occurredNanos }: Envelope): string | undefined {
  if (Number.isNaN(occurredSeconds)) return undefined;
  const whole = new Date(occurredSeconds * 1000).toISOString().slice(0, 19);
  const micros = Math.floor(occurredNanos / 1000);
  return `${whole}.${String(micros).padStart(6, "0")}Z`;
}

const hex = (value: bigint): string => BigInt.asUintN(64, value).toString(16).padStart(16, "0");

/** The tuple of last-write-wins (docs/architecture.md) in digits: greater means later, compared as text. */
function orderOf(envelope: Envelope, payload: Buffer | undefined): string {
  const { bytes, operation, typeUrlStart, typeUrlEnd } = envelope;
  const nothing = Buffer.alloc(0);
  const { referenceStart, referenceEnd } = envelope;
  const hash =
    payload !== undefined
      ? contentHash(bytes, typeUrlStart, typeUrlEnd, payload, 0, payload.length)
      : referenceStart >= 0
        ? // What is there of it stands for it, as in tables.
          contentHash(bytes, typeUrlStart, typeUrlEnd, bytes, referenceStart, referenceEnd)
        : contentHash(nothing, 0, 0, nothing, 0, 0);
  const deleted = operation === OPERATION_DELETED ? 1 : 0;
  return `${hex(envelope.version())}${deleted}${hex(hash)}${hex(occurredOrder(envelope))}${operation}`;
}

/** Microseconds, shifted so that they order unsigned; 0 when absent. */
function occurredOrder({ occurredSeconds, occurredNanos }: Envelope): bigint {
  if (Number.isNaN(occurredSeconds)) return 0n;
  return BigInt(occurredSeconds) * 1_000_000n + BigInt(Math.floor(occurredNanos / 1000)) + (1n << 63n);
}
