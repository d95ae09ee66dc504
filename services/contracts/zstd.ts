import { ZSTDDecoder } from "zstddec";
import type { Code } from "../base/codes.js";

/** The largest block of a Zstandard frame, and the largest window that every decoder must take. */
const BLOCK_BYTES = 128 * 1024;
const MAX_WINDOW_BYTES = 8 * 1024 * 1024;
/** What the decoder returns when the output has no room for the content. */
const NO_ROOM = -70;

interface Decoder {
  readonly memory: { readonly buffer: ArrayBuffer };
  malloc(bytes: number): number;
  free(pointer: number): void;
  /** Bytes written, or a negative error. */
  ZSTD_decompress(to: number, room: number, from: number, bytes: number): number;
}

/**
 * The reference decoder, compiled to WebAssembly. Its time is bounded by what it reads and writes; decoders written in
 * JavaScript believe a block's sequences, of which eighteen bytes can ask for minutes. The package's own `decode` does
 * not tell damage from lack of room, so the exports are called directly.
 */
class Loader extends ZSTDDecoder {
  static loaded: Decoder;
  override _init(source: Parameters<ZSTDDecoder["_init"]>[0]): void {
    super._init(source);
    Loader.loaded = (source as { instance: { exports: Decoder } }).instance.exports;
  }
}
await new Loader().init();
const decoder = Loader.loaded;

/**
 * The content of what must be exactly one Zstandard frame, at most `limit` bytes of it; TRB-EVENT-COMPRESSION when it
 * is none, TRB-EVENT-PAYLOAD-SIZE when there would be more.
 */
export function unzstd(bytes: Uint8Array, limit: number): Uint8Array | Code {
  const frame = zstdFrame(bytes);
  if (frame === undefined) return "TRB-EVENT-COMPRESSION";
  const { contentBytes, mostBytes } = frame;
  if (contentBytes !== undefined && contentBytes > limit) return "TRB-EVENT-PAYLOAD-SIZE";
  const room = contentBytes ?? Math.min(limit, mostBytes);
  const from = decoder.malloc(bytes.length);
  const to = decoder.malloc(Math.max(1, room));
  try {
    if (from === 0 || to === 0) return "TRB-EVENT-PAYLOAD-SIZE";
    new Uint8Array(decoder.memory.buffer).set(bytes, from);
    const written = decoder.ZSTD_decompress(to, room, from, bytes.length);
    if (written === NO_ROOM && contentBytes === undefined) return "TRB-EVENT-PAYLOAD-SIZE";
    if (written < 0) return "TRB-EVENT-COMPRESSION";
    return new Uint8Array(decoder.memory.buffer).slice(to, to + written);
  } finally {
    decoder.free(from);
    decoder.free(to);
  }
}

/**
 * Reads the outside of what must be exactly one Zstandard frame (RFC 8878, 3.1.1): header, block sizes, end, so that
 * nothing is allocated for what a header claims. `contentBytes` is undefined when the header does not tell; `mostBytes`
 * is what its blocks can hold.
 */
function zstdFrame(
  bytes: Uint8Array,
): { readonly contentBytes: number | undefined; readonly mostBytes: number } | undefined {
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
  if (!singleSegment && windowBytes > MAX_WINDOW_BYTES) return undefined;
  const blockLimit = Math.min(BLOCK_BYTES, windowBytes);
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
  const checksum = (flags & 0x04) === 0 ? 0 : 4;
  return pos + checksum === bytes.length ? { contentBytes, mostBytes: blocks * BLOCK_BYTES } : undefined;
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
