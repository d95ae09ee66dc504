import { gunzip, gunzipSync } from "node:zlib";
import type { Code } from "../base/codes.js";
import { errno } from "../base/errors.js";
import { COMPRESSION_GZIP, COMPRESSION_NONE, COMPRESSION_ZSTD } from "./envelope.js";
import { unzstd } from "./zstd.js";

/** Inflating so much takes less time than handing it to another thread. */
const AT_ONCE_BYTES = 32 * 1024;

/**
 * The payload's bytes unpacked, at most `limit` of them; a code when that cannot be: TRB-EVENT-COMPRESSION for bytes
 * not packed that way, TRB-EVENT-PAYLOAD-SIZE when there would be more. Never unpacks beyond the limit.
 */
export function unpackPayload(compression: number, bytes: Uint8Array, limit: number): Uint8Array | Code {
  if (compression === COMPRESSION_NONE) return bytes.length > limit ? "TRB-EVENT-PAYLOAD-SIZE" : bytes;
  if (compression === COMPRESSION_ZSTD) return unzstd(bytes, limit);
  if (compression !== COMPRESSION_GZIP) return "TRB-EVENT-COMPRESSION";
  try {
    return gunzipSync(bytes, gzipOptions(bytes, limit));
  } catch (error) {
    return gzipFailure(error);
  }
}

/**
 * The same where it is short work: a few milliseconds per megabyte of `limit` at most. Undefined for gzip of more than
 * some kilobytes, which is for `unpackAside`.
 */
export function unpackAtOnce(
  compression: number,
  bytes: Uint8Array,
  limit: number,
): Uint8Array | Code | undefined {
  if (compression !== COMPRESSION_GZIP) return unpackPayload(compression, bytes, limit);
  if (announcedBytes(bytes) > AT_ONCE_BYTES) return undefined;
  const most = Math.min(limit, AT_ONCE_BYTES);
  const unpacked = unpackPayload(compression, bytes, most);
  return unpacked === "TRB-EVENT-PAYLOAD-SIZE" && most < limit ? undefined : unpacked;
}

/** Gzip unpacked on another thread, to the same results. */
export function unpackAside(bytes: Uint8Array, limit: number): Promise<Uint8Array | Code> {
  return new Promise((resolve) => {
    gunzip(bytes, gzipOptions(bytes, limit), (error, result) => resolve(error ? gzipFailure(error) : result));
  });
}

/** One piece of output where the trailer tells the truth: each piece costs a turn of the event loop. */
const gzipOptions = (bytes: Uint8Array, limit: number) => ({
  maxOutputLength: limit,
  chunkSize: Math.max(64, Math.min(announcedBytes(bytes), limit) + 1),
});

/** What gzip's last four bytes say of its size: whatever the sender likes. */
const announcedBytes = (bytes: Uint8Array): number =>
  bytes.length < 4
    ? 0
    : new DataView(bytes.buffer, bytes.byteOffset, bytes.length).getUint32(bytes.length - 4, true);

const gzipFailure = (error: unknown): Code =>
  errno(error) === "ERR_BUFFER_TOO_LARGE" ? "TRB-EVENT-PAYLOAD-SIZE" : "TRB-EVENT-COMPRESSION";
