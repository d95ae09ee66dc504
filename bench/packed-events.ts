import { gzipSync } from "node:zlib";
import { type EventInit, encodeEvent } from "../services/contracts/encode-event.js";

/** What each payload unpacks to: close to the limit of one. */
export const UNPACKED_BYTES = 999_004;

/**
 * Events of `scm.v1.File` whose payloads take a kilobyte or less, and unpack to a megabyte: packed by gzip, each tenth
 * by zstd.
 */
export function* packedEvents(count: number, tenantId: string): Generator<Buffer> {
  for (let i = 0; i < count; i++) {
    const zstd = i % 10 === 9;
    const event: EventInit = {
      tenantId,
      entityType: "scm.v1.File",
      entityId: `packed-${i}`,
      operation: 2,
      version: i + 1,
      compression: zstd ? 2 : 1,
      payload: { value: zstd ? ZSTD : GZIP },
    };
    yield encodeEvent(event);
  }
}

/** File.path, a string of so many bytes that the message has UNPACKED_BYTES. */
const head = Buffer.from([0x0a, ...lengthBytes(UNPACKED_BYTES - 4)]);
const path = Buffer.alloc(UNPACKED_BYTES - 4, "deep/folder/");
const GZIP = gzipSync(Buffer.concat([head, path]));
const ZSTD = zstdRun(head, 0x78, UNPACKED_BYTES - 4);

function lengthBytes(length: number): number[] {
  return [(length & 0x7f) | 0x80, ((length >> 7) & 0x7f) | 0x80, length >> 14];
}

/** A Zstandard frame of some bytes and then a run of one byte. */
function zstdRun(start: Buffer, byte: number, run: number): Buffer {
  const block = (type: number, size: number, last: boolean) => {
    const header = (size << 3) | (type << 1) | (last ? 1 : 0);
    return Buffer.from([header & 0xff, (header >> 8) & 0xff, header >> 16]);
  };
  // No checksum, content size in four bytes, a window of 1 MiB.
  const size = Buffer.alloc(4);
  size.writeUInt32LE(start.length + run);
  const parts = [
    Buffer.from([0x28, 0xb5, 0x2f, 0xfd, 0x80, 0x50]),
    size,
    block(0, start.length, false),
    start,
  ];
  for (let rest = run; rest > 0; ) {
    const length = Math.min(rest, 128 * 1024);
    rest -= length;
    parts.push(block(1, length, rest === 0), Buffer.from([byte]));
  }
  return Buffer.concat(parts);
}
