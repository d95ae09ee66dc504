import type { PayloadReference } from "../contracts/payload-reference.js";
import { unpackPayload } from "../contracts/unpack.js";
import type { Offloaded, Unusable } from "./offloaded.js";

/** Payloads of more bytes, unpacked, are a fault of their event. */
export const MAX_UNPACKED_BYTES = 64 * 1024 * 1024;

/** Why there is no payload for an event: a fault that is its own. */
export interface PayloadFault {
  readonly code: "TRB-EVENT-PAYLOAD-DECODE" | "TRB-EVENT-PAYLOAD-MISSING" | "TRB-EVENT-PAYLOAD-CORRUPT";
  readonly reason: string;
}

export const UNDECODABLE: PayloadFault = {
  code: "TRB-EVENT-PAYLOAD-DECODE",
  reason: "the payload does not decode",
};
const FAULTS: Readonly<Record<Unusable, PayloadFault>> = {
  missing: { code: "TRB-EVENT-PAYLOAD-MISSING", reason: "the object store does not hold the payload" },
  corrupt: {
    code: "TRB-EVENT-PAYLOAD-CORRUPT",
    reason: "the object that holds the payload has another size or SHA-256 than the event says",
  },
};
/** A producer past the bus may have written anything. */
const NO_REFERENCE: PayloadFault = {
  code: "TRB-EVENT-PAYLOAD-MISSING",
  reason: "payload_reference names no payload of the event's own tenant and type",
};

/** Where payloads are that do not travel with their events. */
export type PayloadSource = Pick<Offloaded, "fetch">;

/**
 * The payload of an event that refers to one, verified and unpacked. `reference`: as `referenceOf` tells it; one that it
 * does not take is the event's fault. Errors: TRB-STORE-FAILED.
 */
export async function payloadAt(
  reference: PayloadReference | undefined,
  compression: number,
  source: PayloadSource,
): Promise<Buffer | PayloadFault> {
  if (reference === undefined) return NO_REFERENCE;
  if (reference.sizeBytes > MAX_UNPACKED_BYTES) return UNDECODABLE;
  const payload = await source.fetch(reference);
  if (typeof payload === "string") return FAULTS[payload];
  return compression === 0 ? payload : unpacked(compression, payload);
}

/** What a packed payload holds. */
export function unpacked(compression: number, packed: Buffer): Buffer | PayloadFault {
  const plain = unpackPayload(compression, packed, MAX_UNPACKED_BYTES);
  if (typeof plain === "string") return UNDECODABLE;
  return Buffer.from(plain.buffer, plain.byteOffset, plain.byteLength);
}
