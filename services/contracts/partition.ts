import type { Envelope } from "./envelope.js";

/**
 * The partition of an event's entity, from 0 to count - 1. It never changes for a given count: all events of one
 * entity must meet in one order, today's with those of last year.
 *
 * The hash is FNV-1a (32 bits) over tenant_id, entity_type and entity_id, each preceded by its length in bytes as a
 * little-endian uint32 so that no two entities are framed alike, finished with MurmurHash3's 32-bit mixer. The
 * partition is floor(hash * count / 2^32).
 */
export function partitionOf(envelope: Envelope, count: number): number {
  const { bytes } = envelope;
  let hash = 0x811c9dc5;
  hash = framed(hash, bytes, envelope.tenantStart, envelope.tenantEnd);
  hash = framed(hash, bytes, envelope.typeStart, envelope.typeEnd);
  hash = framed(hash, bytes, envelope.idStart, envelope.idEnd);
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
  hash = (hash ^ (hash >>> 16)) >>> 0;
  return Math.floor((hash * count) / 0x1_0000_0000);
}

const PRIME = 0x01000193;

function framed(seed: number, bytes: Uint8Array, start: number, end: number): number {
  const length = end - start;
  let hash = Math.imul(seed ^ (length & 0xff), PRIME);
  hash = Math.imul(hash ^ ((length >>> 8) & 0xff), PRIME);
  hash = Math.imul(hash ^ ((length >>> 16) & 0xff), PRIME);
  hash = Math.imul(hash ^ (length >>> 24), PRIME);
  for (let i = start; i < end; i++) hash = Math.imul(hash ^ bytes[i]!, PRIME);
  return hash;
}
