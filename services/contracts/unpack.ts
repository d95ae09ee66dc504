import { gunzipSync } from "node:zlib";
import { Decompress } from "fzstd";
import type { Code } from "../base/codes.js";
import { errno } from "../base/errors.js";
import { COMPRESSION_GZIP, COMPRESSION_NONE, COMPRESSION_ZSTD } from "./envelope.js";

/** The largest block of a Zstandard frame, and the largest window that every decoder must take. */
const ZSTD_BLOCK = 128 * 1024;
const ZSTD_WINDOW = 8 * 1024 * 1024;

/**
 * The payload's bytes unpacked, at most `limit` of them; a code when that cannot be: TRB-EVENT-COMPRESSION for bytes
 * not packed that way, TRB-EVENT-PAYLOAD-SIZE when there would be more. Never unpacks far beyond the limit.
 */
export function unpackPayload(compression: number, bytes: Uint8Array, limit: number): Uint8Array | Code {
  if (compression === COMPRESSION_NONE) return bytes.length > limit ? "TRB-EVENT-PAYLOAD-SIZE" : bytes;
  if (compression === COMPRESSION_GZIP) return gunzip(bytes, limit);
  if (compression === COMPRESSION_ZSTD) return unzstd(bytes, limit);
  return "TRB-EVENT-COMPRESSION";
}

function gunzip(bytes: Uint8Array, limit: number): Uint8Array | Code {
  try {
    return gunzipSync(bytes, { maxOutputLength: limit });
  } catch (error) {
    return errno(error) === "ERR_BUFFER_TOO_LARGE" ? "TRB-EVENT-PAYLOAD-SIZE" : "TRB-EVENT-COMPRESSION";
  }
}

class TooLarge extends Error {}

function unzstd(bytes: Uint8Array, limit: number): Uint8Array | Code {
  const frame = zstdFrame(bytes, limit);
  if (frame === undefined) return "TRB-EVENT-COMPRESSION";
  if (frame.contentBytes !== undefined && frame.contentBytes > limit) return "TRB-EVENT-PAYLOAD-SIZE";
  const chunks: Uint8Array[] = [];
  let total = 0;
  try {
    const stream = new Decompress((chunk) => {
      total += chunk.length;
      if (total > limit) throw new TooLarge();
      chunks.push(chunk);
    });
    stream.push(frame.bytes, true);
  } catch (error) {
    return error instanceof TooLarge ? "TRB-EVENT-PAYLOAD-SIZE" : "TRB-EVENT-COMPRESSION";
  }
  return frame.contentBytes === undefined || frame.contentBytes === total
    ? Buffer.concat(chunks, total)
    : "TRB-EVENT-COMPRESSION";
}

/**
 * Checks the outside of what must be exactly one Zstandard frame (RFC 8878, 3.1.1): header, block sizes, end. The
 * decoder itself trusts them, and would allocate any window and walk any number of blocks that a header claims.
 * `contentBytes` is undefined when the header does not tell; `bytes` is the frame with a window no larger than needed.
 */
function zstdFrame(
  bytes: Uint8Array,
  limit: number,
): { contentBytes: number | undefined; bytes: Uint8Array } | undefined {
  if (bytes.length < 6) return undefined;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (view.getUint32(0, true) !== 0xfd2fb528) return undefined;
  const flags = bytes[4]!;
  const singleSegment = (flags & 0x20) !== 0;
  // The reserved bit must be clear, and dictionaries are not known here.
  if ((flags & 0x08) !== 0 || (flags & 0x03) !== 0) return undefined;
  let pos = singleSegment ? 5 : 6;
  const sizeBytes = [singleSegment ? 1 : 0, 2, 4, 8][flags >> 6]!;
  if (pos + sizeBytes > bytes.length) return undefined;
  const contentBytes = contentSize(view, pos, sizeBytes);
  pos += sizeBytes;
  const windowBytes = singleSegment ? (contentBytes ?? 0) : windowSize(bytes[5]!);
  if (!singleSegment && windowBytes > ZSTD_WINDOW) return undefined;
  const blockLimit = Math.min(ZSTD_BLOCK, windowBytes);
  let blocks = 0;
  for (let last = false; !last; blocks++) {
    if (pos + 3 > bytes.length) return undefined;
    const header = bytes[pos]! | (bytes[pos + 1]! << 8) | (bytes[pos + 2]! << 16);
    last = (header & 1) !== 0;
    const type = (header >> 1) & 3;
    const size = header >> 3;
    if (type === 3 || size > blockLimit) return undefined;
    pos += 3 + (type === 1 ? 1 : size);
  }
  // The decoder moves its whole window for every block: many tiny blocks would cost far more than their bytes.
  if (blocks > 64 + limit / 1024) return undefined;
  const checksum = (flags & 0x04) === 0 ? 0 : 4;
  if (pos + checksum !== bytes.length) return undefined;
  const needed = Math.max(limit, ZSTD_BLOCK);
  if (singleSegment || windowBytes <= needed) return { contentBytes, bytes };
  const narrowed = Uint8Array.from(bytes);
  narrowed[5] = Math.ceil(Math.log2(needed) - 10) << 3;
  return { contentBytes, bytes: narrowed };
}

function windowSize(descriptor: number): number {
  const base = 2 ** (10 + (descriptor >> 3));
  return base + (base / 8) * (descriptor & 7);
}

function contentSize(view: DataView, pos: number, sizeBytes: number): number | undefined {
  if (sizeBytes === 1) return view.getUint8(pos);
  if (sizeBytes === 2) return view.getUint16(pos, true) + 256;
  if (sizeBytes === 4) return view.getUint32(pos, true);
  return sizeBytes === 8 ? Number(view.getBigUint64(pos, true)) : undefined;
}
