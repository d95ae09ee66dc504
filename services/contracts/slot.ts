import type { Envelope } from "./envelope.js";

const PRIME = 0x01000193;

/**
 * The slot of an event's entity (base/slots.ts). It never changes: all events of one entity must meet in one order,
 * today's with those of last year.
 *
 * FNV-1a (32 bits) over tenant_id, entity_type and entity_id, each preceded by its length in bytes as a little-endian
 * uint32 so that no two entities are framed alike, finished with MurmurHash3's 32-bit mixer.
 */
export const slotOf = ({
  bytes,
  tenantStart,
  tenantEnd,
  typeStart,
  typeEnd,
  idStart,
  idEnd,
}: Envelope): number =>
  slotIn(slotsFor(bytes, tenantStart, tenantEnd, bytes, typeStart, typeEnd), bytes, idStart, idEnd);

/** What the slots of all entities of one tenant and type have in common: the first argument of `slotIn`. */
export const slotsFor = (
  tenant: Uint8Array,
  tenantStart: number,
  tenantEnd: number,
  type: Uint8Array,
  typeStart: number,
  typeEnd: number,
): number => framed(framed(0x811c9dc5, tenant, tenantStart, tenantEnd), type, typeStart, typeEnd);

/** The slot of one of them, whose entity_id is id[start, end). */
export function slotIn(common: number, id: Uint8Array, start: number, end: number): number {
  let hash = framed(common, id, start, end);
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  return (hash ^ (hash >>> 16)) >>> 0;
}

function framed(seed: number, bytes: Uint8Array, start: number, end: number): number {
  const length = end - start;
  let hash = Math.imul(seed ^ (length & 0xff), PRIME);
  hash = Math.imul(hash ^ ((length >>> 8) & 0xff), PRIME);
  hash = Math.imul(hash ^ ((length >>> 16) & 0xff), PRIME);
  hash = Math.imul(hash ^ (length >>> 24), PRIME);
  for (let i = start; i < end; i++) hash = Math.imul(hash ^ bytes[i]!, PRIME);
  return hash;
}
