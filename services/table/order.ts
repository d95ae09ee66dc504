/**
 * Entity records: key and place in the order of last-write-wins (design 3.1), as 12 uint32 words, so that batch and
 * index hold millions of them in one typed array and compare them without allocating.
 */
export const WORDS = 12;

/** The entity's slot (base/slots.ts), 64 bits of its id's seeded hash, the tenant's ordinal: together the key. */
export const SLOT = 0;
export const HASH1 = 1;
export const HASH2 = 2;
export const TENANT = 3;
/** int64 halves. */
export const VERSION_LO = 4;
export const VERSION_HI = 5;
/** Content hash (xxh64) halves, compared unsigned. */
export const CONTENT_LO = 6;
export const CONTENT_HI = 7;
/** Microseconds since the epoch, shifted by 2^63 so that they compare unsigned; 0 when absent. */
export const OCCURRED_LO = 8;
export const OCCURRED_HI = 9;
/** Bits 0–1 operation, bit 2 "the row is a tombstone", the rest: ordinal of the file (index only). */
export const FLAGS = 10;
/** Row within the file (index), ordinal within the batch (batch). */
export const ROW = 11;

export const OPERATION_DELETED = 3;
export const OPERATION_MASK = 3;
export const TOMBSTONE_BIT = 4;
export const FILE_SHIFT = 3;
export const MAX_FILES = 2 ** (32 - FILE_SHIFT);

/**
 * Below, equal or above zero as record a loses to, equals or beats record b of the same entity: greater version;
 * then a delete; then the greater content hash; then the later occurred_at; then the greater operation number.
 */
export function compareOrder(a: Uint32Array, at: number, b: Uint32Array, bt: number): number {
  let delta = a[at + VERSION_HI]! - b[bt + VERSION_HI]! || a[at + VERSION_LO]! - b[bt + VERSION_LO]!;
  if (delta !== 0) return delta;
  const aOperation = a[at + FLAGS]! & OPERATION_MASK;
  const bOperation = b[bt + FLAGS]! & OPERATION_MASK;
  delta = Number(aOperation === OPERATION_DELETED) - Number(bOperation === OPERATION_DELETED);
  if (delta !== 0) return delta;
  return (
    a[at + CONTENT_HI]! - b[bt + CONTENT_HI]! ||
    a[at + CONTENT_LO]! - b[bt + CONTENT_LO]! ||
    a[at + OCCURRED_HI]! - b[bt + OCCURRED_HI]! ||
    a[at + OCCURRED_LO]! - b[bt + OCCURRED_LO]! ||
    aOperation - bOperation
  );
}

/**
 * Whether a record that counts, as `flags` say what it is, stands instead of another one of its entity: as the greater
 * one, or as its equal that is a row. A tombstone stays where it is when a row is put in again that is its equal, and
 * would hide from whoever replaces the row that there is one.
 */
export function outranks(
  record: Uint32Array,
  at: number,
  flags: number,
  other: Uint32Array,
  start: number,
): boolean {
  const order = compareOrder(record, at, other, start);
  return order > 0 || (order === 0 && (flags & TOMBSTONE_BIT) === 0);
}

/** Whether a record is a row at the same place in the order as another one of its entity. */
export const isLevelRow = (record: Uint32Array, at: number, other: Uint32Array, start: number): boolean =>
  (record[at + FLAGS]! & TOMBSTONE_BIT) === 0 && compareOrder(record, at, other, start) === 0;

export const sameKey = (a: Uint32Array, at: number, b: Uint32Array, bt: number): boolean =>
  a[at] === b[bt] && a[at + 1] === b[bt + 1] && a[at + 2] === b[bt + 2] && a[at + 3] === b[bt + 3];
