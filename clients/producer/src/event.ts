import {
  create,
  type DescMessage,
  isMessage,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import { ProducerError } from "./errors.js";

export type Operation = "created" | "updated" | "deleted";

/** A point in time: a Date, or where milliseconds are not enough, seconds since the epoch and 0 to 999,999,999 ns. */
export type Instant = Date | { readonly seconds: bigint | number; readonly nanos: number };

export interface ChangeEvent {
  readonly tenantId: string;
  /** Full name of the payload message, such as "scm.v1.File". */
  readonly entityType: string;
  readonly entityId: string;
  readonly operation: Operation;
  /** From 1 to 2^63-1; grows with each change of the entity, also beyond a deletion. The greatest wins. */
  readonly version: bigint | number | string;
  readonly occurredAt?: Instant;
  /** The message in binary protobuf; absent when deleted. */
  readonly payload?: Uint8Array;
  /** How `payload` is packed, where it is. */
  readonly compression?: "gzip" | "zstd";
  readonly attributes?: Readonly<Record<string, string>>;
  readonly eventId?: string;
}

/** Where a payload lies that was uploaded (tributary.v1.PayloadReference). */
export interface PayloadReference {
  readonly uri: string;
  readonly typeUrl: string;
  readonly sizeBytes: number;
  readonly sha256: Uint8Array;
}

/** An event with its payload as a generated message (protobuf-es), or the fields of one. */
export type TypedEvent<D extends DescMessage> = Omit<
  ChangeEvent,
  "entityType" | "payload" | "compression"
> & {
  readonly payload?: MessageInitShape<D>;
};

/** The event with its payload encoded and its type named by the schema. Errors: TRB-PRODUCER-EVENT. */
export function changeEvent<D extends DescMessage>(
  schema: D,
  { payload, ...event }: TypedEvent<D>,
): ChangeEvent {
  const entityType = schema.typeName;
  if (payload === undefined) return { ...event, entityType };
  try {
    const message: MessageShape<D> = isMessage(payload, schema) ? payload : create(schema, payload);
    return { ...event, entityType, payload: toBinary(schema, message) };
  } catch (cause) {
    throw new ProducerError("TRB-PRODUCER-EVENT", `payload: expected a ${entityType}`, { cause });
  }
}

const OPERATIONS: Readonly<Record<Operation, number>> = { created: 1, updated: 2, deleted: 3 };
const COMPRESSIONS = { gzip: 1, zstd: 2 } as const;

export const typeUrlOf = (entityType: string): string => `type.googleapis.com/${entityType}`;

/**
 * The event as tributary.v1.ChangeEvent. What the bus checks (ids, types, content) is left to it. Errors:
 * TRB-PRODUCER-EVENT where there is no encoding.
 */
export function encodeEvent(event: ChangeEvent): Uint8Array {
  const out = new BinaryWriter();
  text(out, 1, event.tenantId, "tenantId");
  text(out, 2, event.entityType, "entityType");
  text(out, 3, event.entityId, "entityId");
  const operation = OPERATIONS[event.operation];
  if (operation === undefined) throw wrong("operation", "created, updated or deleted");
  out.tag(4, WireType.Varint).int32(operation);
  out.tag(5, WireType.Varint).int64(versionOf(event.version));
  if (event.occurredAt !== undefined) {
    const { seconds, nanos } = instantOf(event.occurredAt);
    out.tag(6, WireType.LengthDelimited).fork().tag(1, WireType.Varint).int64(seconds);
    if (nanos > 0) out.tag(2, WireType.Varint).int32(nanos);
    out.join();
  }
  if (event.payload !== undefined) {
    if (!(event.payload instanceof Uint8Array)) throw wrong("payload", "bytes");
    out.tag(7, WireType.LengthDelimited).fork();
    text(out, 1, typeUrlOf(event.entityType), "entityType");
    out.tag(2, WireType.LengthDelimited).bytes(event.payload).join();
  }
  if (event.compression !== undefined) {
    const compression = COMPRESSIONS[event.compression];
    if (compression === undefined) throw wrong("compression", "gzip or zstd");
    out.tag(9, WireType.Varint).int32(compression);
  }
  for (const [key, value] of Object.entries(event.attributes ?? {})) {
    out.tag(10, WireType.LengthDelimited).fork();
    text(out, 1, key, "attributes");
    text(out, 2, value, "attributes");
    out.join();
  }
  if (event.eventId !== undefined) text(out, 11, event.eventId, "eventId");
  return out.finish();
}

/** An event that was encoded without a payload, with what refers to it. */
export function withReference(event: Uint8Array, reference: PayloadReference): Uint8Array {
  const out = new BinaryWriter().tag(8, WireType.LengthDelimited).fork();
  text(out, 1, reference.uri, "reference");
  text(out, 2, reference.typeUrl, "reference");
  out.tag(3, WireType.Varint).int64(reference.sizeBytes);
  out.tag(4, WireType.LengthDelimited).bytes(reference.sha256).join();
  // Fields may come in any order.
  return Buffer.concat([event, out.finish()]);
}

/** A PublishRequest of encoded events. */
export function encodeRequest(events: readonly Uint8Array[]): Uint8Array {
  const out = new BinaryWriter();
  for (const event of events) out.tag(1, WireType.LengthDelimited).bytes(event);
  return out.finish();
}

function text(out: BinaryWriter, field: number, value: string, name: string): void {
  // A lone surrogate would be replaced without a word, and two ids could become one.
  if (typeof value !== "string" || !value.isWellFormed())
    throw wrong(name, "text of whole Unicode characters");
  out.tag(field, WireType.LengthDelimited).string(value);
}

function versionOf(version: ChangeEvent["version"]): string {
  const value = typeof version === "string" && /^\d{1,19}$/.test(version) ? BigInt(version) : version;
  const whole = typeof value === "number" && Number.isSafeInteger(value) ? BigInt(value) : value;
  if (typeof whole === "bigint" && whole > 0n && whole < 1n << 63n) return whole.toString();
  throw wrong("version", "a whole number from 1 to 2^63-1; beyond 2^53 as a bigint or text");
}

function instantOf(instant: Instant): { seconds: string; nanos: number } {
  if (instant instanceof Date) {
    const ms = instant.getTime();
    if (Number.isNaN(ms)) throw wrong("occurredAt", "a valid Date");
    const seconds = Math.floor(ms / 1000);
    return { seconds: seconds.toString(), nanos: (ms - seconds * 1000) * 1_000_000 };
  }
  const { seconds, nanos } = instant;
  const whole = typeof seconds === "bigint" || Number.isSafeInteger(seconds);
  if (!whole || !Number.isInteger(nanos) || nanos < 0 || nanos > 999_999_999) {
    throw wrong("occurredAt", "a Date, or whole seconds and 0 to 999999999 nanos");
  }
  return { seconds: seconds.toString(), nanos };
}

const wrong = (field: string, expected: string): ProducerError =>
  new ProducerError("TRB-PRODUCER-EVENT", `${field}: expected ${expected}`);
