import { crc32 } from "node:zlib";
import { RoaringBitmap32, roaringLibraryInitialize } from "roaring-wasm";
import { TributaryError } from "../base/errors.js";
import type { DeletionVectorDescriptor } from "./actions.js";
import { decodeZ85, uuidToZ85, z85ToUuid } from "./z85.js";

// Delta protocol, "Deletion Vector Format": magic (LE), then 64-bit Roaring in the portable layout.
const MAGIC = 1681511377;
const FILE_VERSION = 1;

await roaringLibraryInitialize();

/** Row numbers (ascending, below 2^32) → payload: magic, bucket count (u64 LE), one bucket with key 0. */
export function encodeVector(rows: Uint32Array): Buffer {
  const bitmap = new RoaringBitmap32(rows);
  try {
    bitmap.runOptimize();
    const bits = bitmap.serialize("portable");
    const payload = Buffer.alloc(16 + bits.length);
    payload.writeInt32LE(MAGIC, 0);
    payload.writeBigUInt64LE(1n, 4);
    payload.writeUInt32LE(0, 12);
    payload.set(bits, 16);
    return payload;
  } finally {
    bitmap.dispose();
  }
}

/** Errors: TRB-TABLE-CORRUPT; TRB-TABLE-UNSUPPORTED for row numbers of 2^32 and more. */
export function decodeVector(payload: Buffer): Uint32Array {
  if (payload.length < 12 || payload.readInt32LE(0) !== MAGIC) {
    throw new TributaryError("TRB-TABLE-CORRUPT", "deletion vector: wrong magic number");
  }
  const buckets = payload.readBigUInt64LE(4);
  if (buckets === 0n) return new Uint32Array(0);
  if (payload.length < 16) {
    throw new TributaryError("TRB-TABLE-CORRUPT", "deletion vector: cut short");
  }
  if (buckets !== 1n || payload.readUInt32LE(12) !== 0) {
    throw new TributaryError("TRB-TABLE-UNSUPPORTED", "deletion vector: row numbers of 2^32 and more");
  }
  let bitmap: RoaringBitmap32 | undefined;
  try {
    bitmap = RoaringBitmap32.deserialize(payload.subarray(16), "portable");
    return bitmap.toUint32Array();
  } catch (cause) {
    throw new TributaryError("TRB-TABLE-CORRUPT", "deletion vector: unreadable bitmap", { cause });
  } finally {
    bitmap?.dispose();
  }
}

export interface VectorFile {
  readonly bytes: Buffer;
  readonly descriptors: readonly DeletionVectorDescriptor[];
}

/**
 * Packs several vectors into one file: version byte, then per vector BE size, payload, BE CRC-32 of the payload.
 * A descriptor's offset points at the size field; its sizeInBytes counts the payload alone.
 */
export function encodeVectorFile(uuid: string, vectors: readonly Uint32Array[]): VectorFile {
  const parts: Buffer[] = [Buffer.from([FILE_VERSION])];
  const descriptors: DeletionVectorDescriptor[] = [];
  let offset = 1;
  for (const rows of vectors) {
    const payload = encodeVector(rows);
    const frame = Buffer.alloc(payload.length + 8);
    frame.writeUInt32BE(payload.length, 0);
    payload.copy(frame, 4);
    frame.writeUInt32BE(crc32(payload), payload.length + 4);
    parts.push(frame);
    descriptors.push({
      storageType: "u",
      pathOrInlineDv: uuidToZ85(uuid),
      offset,
      sizeInBytes: payload.length,
      cardinality: rows.length,
    });
    offset += frame.length;
  }
  return { bytes: Buffer.concat(parts), descriptors };
}

export const vectorFileName = (uuid: string): string => `deletion_vector_${uuid}.bin`;

/** Path of a vector's file relative to the table, or its inline payload. */
export function locateVector(descriptor: DeletionVectorDescriptor): { path: string } | { inline: Buffer } {
  const { storageType, pathOrInlineDv } = descriptor;
  if (storageType === "i") {
    const inline = decodeZ85(pathOrInlineDv);
    if (inline !== undefined) return { inline: inline.subarray(0, descriptor.sizeInBytes) };
  } else if (storageType === "u" && pathOrInlineDv.length >= 20) {
    const uuid = z85ToUuid(pathOrInlineDv.slice(-20));
    const prefix = pathOrInlineDv.slice(0, -20);
    if (uuid !== undefined) return { path: `${prefix === "" ? "" : `${prefix}/`}${vectorFileName(uuid)}` };
  } else if (storageType === "p") {
    throw new TributaryError("TRB-TABLE-UNSUPPORTED", "deletion vector: absolute path");
  }
  throw new TributaryError("TRB-TABLE-CORRUPT", "deletion vector: unreadable descriptor");
}

/** The payload inside one frame of a vector file. Errors: TRB-TABLE-CORRUPT on a wrong size or checksum. */
export function unframeVector(frame: Buffer, sizeInBytes: number): Buffer {
  const payload = frame.subarray(4, 4 + sizeInBytes);
  if (
    frame.length !== sizeInBytes + 8 ||
    frame.readUInt32BE(0) !== sizeInBytes ||
    frame.readUInt32BE(4 + sizeInBytes) !== crc32(payload)
  ) {
    throw new TributaryError("TRB-TABLE-CORRUPT", "deletion vector: size or checksum does not match");
  }
  return payload;
}
