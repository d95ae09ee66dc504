import { encodeEvent } from "./encode-event.js";
import type { Envelope } from "./envelope.js";
import * as wire from "./wire.js";

/** Where a payload lies that does not travel with its event. */
export interface PayloadReference {
  /** offload/<tenant_id>/<sha256 hex>. */
  readonly uri: string;
  readonly typeUrl: string;
  readonly sizeBytes: number;
  readonly sha256: Buffer;
}

const SHA256_BYTES = 32;

/** The one place that a payload of this tenant can lie at. Tenant ids are safe in keys as they are. */
export const uriOf = (tenant: string, sha256: Buffer): string =>
  `offload/${tenant}/${sha256.toString("hex")}`;

/** A reference as it stands in its event, whatever it says. */
export interface WrittenReference extends Pick<PayloadReference, "uri" | "sha256"> {
  /** The halves of size_bytes. */
  readonly sizeLo: number;
  readonly sizeHi: number;
}

/** That of the event that `envelope` has read, which has one. */
export function writtenReference({ bytes, referenceStart, referenceEnd }: Envelope): WrittenReference {
  let uri = "";
  let sizeLo = 0;
  let sizeHi = 0;
  let sha256 = Buffer.alloc(0);
  for (let pos = referenceStart; pos < referenceEnd; ) {
    pos = wire.readTag(bytes, pos, referenceEnd);
    const tag = wire.low;
    pos = wire.skipValue(bytes, pos, referenceEnd, tag & 7);
    if (tag === 10) uri = bytes.toString("utf8", pos - wire.low, pos);
    else if (tag === 24) [sizeLo, sizeHi] = [wire.low, wire.high];
    else if (tag === 34) sha256 = Buffer.from(bytes.subarray(pos - wire.low, pos));
  }
  return { uri, sizeLo, sizeHi, sha256 };
}

/**
 * The reference of the event that `envelope` has read; undefined when it has none that holds to the contract: the uri
 * is that of the event's own tenant and the hash, and the type is the event's.
 */
export function referenceOf(envelope: Envelope): PayloadReference | undefined {
  if (envelope.referenceStart < 0) return undefined;
  const { uri, sizeLo, sizeHi, sha256 } = writtenReference(envelope);
  const typeUrl = envelope.typeUrl();
  const sizeBytes = sizeHi < 2 ** 20 ? sizeHi * 2 ** 32 + sizeLo : 0;
  if (sha256.length !== SHA256_BYTES || sizeBytes === 0) return undefined;
  if (uri !== uriOf(envelope.tenantId(), sha256)) return undefined;
  return typeUrl.endsWith(`/${envelope.entityType()}`) ? { uri, typeUrl, sizeBytes, sha256 } : undefined;
}

/** The event bytes[start, end) as it is, but with a reference in the place of its payload. */
export function withReference(
  bytes: Buffer,
  start: number,
  end: number,
  reference: PayloadReference,
): Buffer {
  const kept: Buffer[] = [];
  for (let pos = start; pos < end; ) {
    const from = pos;
    pos = wire.readTag(bytes, pos, end);
    const field = wire.low >>> 3;
    pos = wire.skipValue(bytes, pos, end, wire.low & 7);
    if (field !== 7) kept.push(bytes.subarray(from, pos));
  }
  return Buffer.concat([...kept, encodeEvent({ reference })]);
}
