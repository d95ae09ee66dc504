import protobuf from "protobufjs";

/** A PayloadReference to be written. */
export interface ReferenceInit {
  readonly uri: string;
  readonly typeUrl: string;
  readonly sizeBytes: bigint | number | string;
  readonly sha256: Uint8Array;
}

/** A ChangeEvent to be written; int64 values as bigint, number or decimal string. Absent fields are left out. */
export interface EventInit {
  readonly tenantId?: string;
  readonly entityType?: string;
  readonly entityId?: string;
  readonly operation?: number;
  readonly version?: bigint | number | string;
  readonly occurredAt?: { readonly seconds: bigint | number | string; readonly nanos?: number };
  /** typeUrl defaults to type.googleapis.com/<entityType>. */
  readonly payload?: { readonly typeUrl?: string; readonly value: Uint8Array };
  readonly reference?: ReferenceInit;
  readonly compression?: number;
  readonly attributes?: Readonly<Record<string, string>>;
  readonly eventId?: string;
}

/** The event in the wire format; for producers, generators and tests. */
export function encodeEvent(event: EventInit): Buffer {
  const out = new protobuf.BufferWriter();
  if (event.tenantId !== undefined) out.uint32(10).string(event.tenantId);
  if (event.entityType !== undefined) out.uint32(18).string(event.entityType);
  if (event.entityId !== undefined) out.uint32(26).string(event.entityId);
  if (event.operation !== undefined) out.uint32(32).int32(event.operation);
  if (event.version !== undefined) out.uint32(40).int64(int64(event.version));
  if (event.occurredAt !== undefined) {
    out.uint32(50).fork().uint32(8).int64(int64(event.occurredAt.seconds));
    if (event.occurredAt.nanos) out.uint32(16).int32(event.occurredAt.nanos);
    out.ldelim();
  }
  if (event.payload !== undefined) {
    const typeUrl = event.payload.typeUrl ?? `type.googleapis.com/${event.entityType ?? ""}`;
    out.uint32(58).fork().uint32(10).string(typeUrl).uint32(18).bytes(event.payload.value).ldelim();
  }
  if (event.reference !== undefined) {
    out.uint32(66).bytes(encodeReference(event.reference));
  }
  if (event.compression) out.uint32(72).int32(event.compression);
  for (const [key, value] of Object.entries(event.attributes ?? {})) {
    out.uint32(82).fork().uint32(10).string(key).uint32(18).string(value).ldelim();
  }
  if (event.eventId !== undefined) out.uint32(90).string(event.eventId);
  return Buffer.from(out.finish());
}

/** The reference in the wire format, without its tag. */
export function encodeReference({ uri, typeUrl, sizeBytes, sha256 }: ReferenceInit): Buffer {
  const out = new protobuf.BufferWriter();
  out.uint32(10).string(uri).uint32(18).string(typeUrl);
  out.uint32(24).int64(int64(sizeBytes)).uint32(34).bytes(sha256);
  return Buffer.from(out.finish());
}

/** A PublishRequest of encoded events. */
export function encodeRequest(events: readonly Uint8Array[]): Buffer {
  const out = new protobuf.BufferWriter();
  for (const event of events) out.uint32(10).bytes(event);
  return Buffer.from(out.finish());
}

function int64(value: bigint | number | string): number | string {
  return typeof value === "number" && Number.isSafeInteger(value) ? value : BigInt(value).toString();
}
