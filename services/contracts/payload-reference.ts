import type { Envelope } from "./envelope.js";
import * as wire from "./wire.js";
import { WireWriter } from "./wire-writer.js";

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

/**
 * The reference of the event that `envelope` has read; undefined when it has none that holds to the contract: the uri
 * is that of the event's own tenant and the hash, and the type is the event's.
 */
export function referenceOf(envelope: Envelope): PayloadReference | undefined {
  const { bytes, referenceStart, referenceEnd } = envelope;
  if (referenceStart < 0) return undefined;
  let uri = "";
  let typeUrl = "";
  let sizeBytes = 0;
  let sha256: Buffer | undefined;
  for (let pos = referenceStart; pos < referenceEnd; ) {
    pos = wire.readTag(bytes, pos, referenceEnd);
    if (pos < 0) return undefined;
    const tag = wire.low;
    pos = wire.skipValue(bytes, pos, referenceEnd, tag & 7);
    if (pos < 0) return undefined;
    if (tag === 10) uri = bytes.toString("utf8", pos - wire.low, pos);
    else if (tag === 18) typeUrl = bytes.toString("utf8", pos - wire.low, pos);
    else if (tag === 24) sizeBytes = wire.signed64();
    else if (tag === 34) sha256 = Buffer.from(bytes.subarray(pos - wire.low, pos));
  }
  if (sha256?.length !== SHA256_BYTES || !(sizeBytes > 0)) return undefined;
  if (uri !== uriOf(envelope.tenantId(), sha256)) return undefined;
  return typeUrl.endsWith(`/${envelope.entityType()}`) ? { uri, typeUrl, sizeBytes, sha256 } : undefined;
}

/** Room for the reference's field, beside its texts. */
const ROOM = 96;

/** The event bytes[start, end) as it is, but with a reference in the place of its payload. */
export function withReference(
  bytes: Buffer,
  start: number,
  end: number,
  { uri, typeUrl, sizeBytes, sha256 }: PayloadReference,
): Buffer {
  const fields: (readonly [number, number])[] = [];
  let kept = 0;
  for (let pos = start; pos < end; ) {
    const from = pos;
    pos = wire.readTag(bytes, pos, end);
    const tag = wire.low;
    pos = wire.skipValue(bytes, pos, end, tag & 7);
    if (tag >>> 3 === 7) continue;
    fields.push([from, pos]);
    kept += pos - from;
  }
  const reference = new WireWriter(ROOM + 3 * (uri.length + typeUrl.length));
  reference.bytes(1, Buffer.from(uri)).bytes(2, Buffer.from(typeUrl)).number(3, sizeBytes).bytes(4, sha256);
  const out = new WireWriter(kept + reference.length + ROOM);
  for (const [from, to] of fields) out.raw(bytes, from, to);
  return out.bytes(8, reference.view()).copy();
}
