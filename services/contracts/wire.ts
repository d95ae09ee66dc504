/**
 * Protobuf's wire format read in place: no objects, no copies, every read within [pos, end).
 *
 * Readers return the position after what they read, or -1 when the bytes are not well-formed; what they read is in
 * the `low`/`high` bindings until the next read. They are stricter than most decoders: varints over 64 bits and field
 * number 0 are refused, and so are groups except where `skipGroup` is used.
 */

/** Low 32 bits of the last varint, unsigned. */
export let low = 0;
/** High 32 bits of the last varint, unsigned. */
export let high = 0;

export const VARINT = 0;
export const FIXED64 = 1;
export const LENGTH_DELIMITED = 2;
export const GROUP = 3;
export const END_GROUP = 4;
export const FIXED32 = 5;

/** Reads a varint of up to 64 bits into `low` and `high`. */
export function readVarint(bytes: Uint8Array, pos: number, end: number): number {
  if (pos >= end) return -1;
  let byte = bytes[pos++]!;
  if (byte < 0x80) {
    low = byte;
    high = 0;
    return pos;
  }
  let lo = byte & 0x7f;
  for (let shift = 7; shift < 28; shift += 7) {
    if (pos >= end) return -1;
    byte = bytes[pos++]!;
    lo |= (byte & 0x7f) << shift;
    if (byte < 0x80) {
      low = lo;
      high = 0;
      return pos;
    }
  }
  if (pos >= end) return -1;
  byte = bytes[pos++]!;
  low = (lo | (byte << 28)) >>> 0;
  let hi = (byte & 0x7f) >>> 4;
  for (let shift = 3; byte >= 0x80; shift += 7) {
    // The tenth byte has room for one bit: shift is 31 there.
    if (pos >= end || shift > 31) return -1;
    byte = bytes[pos++]!;
    if (shift === 31 && byte > 1) return -1;
    hi |= (byte & 0x7f) << shift;
  }
  high = hi >>> 0;
  return pos;
}

/** The last varint as a signed 64-bit integer; beyond 2^53 it is rounded. */
export function signed64(): number {
  return (high | 0) * 0x1_0000_0000 + low;
}

/** 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z, in seconds since the epoch. */
const MIN_SECONDS = -62_135_596_800;
const MAX_SECONDS = 253_402_300_799;

/** What google.protobuf.Timestamp allows: years 1 to 9999. */
export function isInstant(seconds: number, nanos: number): boolean {
  return seconds >= MIN_SECONDS && seconds <= MAX_SECONDS && nanos >= 0 && nanos <= 999_999_999;
}

/** Reads a tag into `low`; the field number is low >>> 3, at least 1, and the wire type low & 7. */
export function readTag(bytes: Uint8Array, pos: number, end: number): number {
  const next = readVarint(bytes, pos, end);
  return next < 0 || high !== 0 || low < 8 ? -1 : next;
}

/** Reads a length into `low` and checks that so many bytes follow. */
export function readLength(bytes: Uint8Array, pos: number, end: number): number {
  const next = readVarint(bytes, pos, end);
  return next < 0 || high !== 0 || low > end - next ? -1 : next;
}

/** Steps over the value of a field of the given wire type. */
export function skipValue(bytes: Uint8Array, pos: number, end: number, wireType: number): number {
  switch (wireType) {
    case VARINT:
      return readVarint(bytes, pos, end);
    case FIXED64:
      return end - pos < 8 ? -1 : pos + 8;
    case LENGTH_DELIMITED: {
      const next = readLength(bytes, pos, end);
      return next < 0 ? -1 : next + low;
    }
    case FIXED32:
      return end - pos < 4 ? -1 : pos + 4;
    default:
      return -1;
  }
}

/** Deeper nesting of messages is refused, as most decoders do. */
export const MAX_DEPTH = 100;

/** Where the inside of the last group ends that `skipGroup` stepped over. */
export let groupEnd = 0;

/** Steps over a group's fields and its end tag, `pos` being behind its start tag; `depth` counts what it lies in. */
export function skipGroup(bytes: Uint8Array, pos: number, end: number, field: number, depth: number): number {
  if (depth >= MAX_DEPTH) return -1;
  let at = pos;
  while (at < end) {
    const tagAt = at;
    at = readTag(bytes, at, end);
    if (at < 0) return -1;
    const wireType = low & 7;
    const number = low >>> 3;
    if (wireType === END_GROUP) {
      groupEnd = tagAt;
      return number === field ? at : -1;
    }
    at =
      wireType === GROUP ? skipGroup(bytes, at, end, number, depth + 1) : skipValue(bytes, at, end, wireType);
    if (at < 0) return -1;
  }
  return -1;
}

/** Whether bytes[start, end) are UTF-8: shortest forms only, no surrogates, nothing above U+10FFFF. */
export function isUtf8(bytes: Uint8Array, start: number, end: number): boolean {
  let i = start;
  for (; i + 4 <= end; i += 4) {
    if ((bytes[i]! | bytes[i + 1]! | bytes[i + 2]! | bytes[i + 3]!) & 0x80) break;
  }
  while (i < end) {
    const lead = bytes[i++]!;
    if (lead < 0x80) continue;
    let more: number;
    let least = 0x80;
    let most = 0xbf;
    if (lead < 0xc2) return false;
    if (lead < 0xe0) more = 1;
    else if (lead < 0xf0) {
      more = 2;
      if (lead === 0xe0) least = 0xa0;
      else if (lead === 0xed) most = 0x9f;
    } else if (lead < 0xf5) {
      more = 3;
      if (lead === 0xf0) least = 0x90;
      else if (lead === 0xf4) most = 0x8f;
    } else return false;
    if (end - i < more) return false;
    const second = bytes[i]!;
    if (second < least || second > most) return false;
    for (let k = 1; k < more; k++) {
      if ((bytes[i + k]! & 0xc0) !== 0x80) return false;
    }
    i += more;
  }
  return true;
}
