import { promisify } from "node:util";
import zlib from "node:zlib";
import { compressionsAlgorithms } from "@platformatic/kafka";
import { ZSTDDecoder } from "zstddec/stream";
import { TributaryError } from "../../base/errors.js";
import type { Compression } from "./settings.js";

/** Attribute bits of a batch, by codec. */
const CODECS: Readonly<Record<Compression, number>> = { none: 0, gzip: 1, snappy: 2, lz4: 3, zstd: 4 };

const gzip = promisify(zlib.gzip);
const gunzip = promisify(zlib.gunzip);

/** Not with every Node that we run on. */
interface Zstd {
  readonly zstdCompress?: (bytes: Buffer, done: (error: Error | null, packed: Buffer) => void) => void;
  readonly zstdDecompress?: (
    bytes: Buffer,
    options: { maxOutputLength: number },
    done: (error: Error | null, plain: Buffer) => void,
  ) => void;
}
const { zstdCompress, zstdDecompress } = zlib as Zstd;

/** Errors: TRB-CONFIG when this Node has no such codec to write with. */
export function checkCompression(compression: Compression): void {
  if (compression === "zstd" && zstdCompress === undefined) {
    throw new TributaryError(
      "TRB-CONFIG",
      `stream.kafka.compression: expected none, gzip, snappy or lz4 (zstd needs Node 22.15 or later), found zstd with Node ${process.version}`,
    );
  }
}

/** Records as they are sent, and the attribute bits that say how they were packed. */
export interface Packed {
  readonly records: Buffer;
  readonly codec: number;
}

/** Off this thread where there is a choice. */
export async function pack(compression: Exclude<Compression, "none">, records: Buffer): Promise<Packed> {
  const codec = CODECS[compression];
  if (compression === "gzip") return { records: await gzip(records, { level: 1 }), codec };
  if (compression === "zstd") return { records: await promisify(zstdCompress!)(records), codec };
  return { records: compressionsAlgorithms[compression].compressSync(records), codec };
}

let zstdDecoder: Promise<ZSTDDecoder> | undefined;

/** Records as they were before a producer packed them; that may be anybody's. Errors: TRB-STREAM-CORRUPT. */
export async function unpack(codec: number, packed: Buffer, limit: number): Promise<Buffer> {
  try {
    switch (codec) {
      case CODECS.gzip:
        return await gunzip(packed, { maxOutputLength: limit });
      case CODECS.snappy:
        return unsnap(packed, limit);
      case CODECS.lz4:
        return bounded(compressionsAlgorithms.lz4.decompressSync(packed), limit);
      case CODECS.zstd:
        if (zstdDecompress !== undefined) {
          return await new Promise((resolve, reject) =>
            zstdDecompress(packed, { maxOutputLength: limit }, (error, plain) =>
              error === null ? resolve(plain) : reject(error),
            ),
          );
        }
        return await unzstd(packed, limit);
    }
  } catch (cause) {
    throw new TributaryError("TRB-STREAM-CORRUPT", "a record batch cannot be unpacked", { cause });
  }
  throw new TributaryError("TRB-STREAM-CORRUPT", "a record batch is packed in an unknown way");
}

/** Piece by piece: what producers write does not tell how much it will be. */
async function unzstd(packed: Buffer, limit: number): Promise<Buffer> {
  zstdDecoder ??= (async () => {
    const decoder = new ZSTDDecoder();
    await decoder.init();
    return decoder;
  })();
  const decoder = await zstdDecoder;
  const pieces: Uint8Array[] = [];
  let bytes = 0;
  for (const piece of decoder.decodeStreaming([packed])) {
    bytes += piece.length;
    if (bytes > limit) throw tooMuch();
    pieces.push(piece.slice());
  }
  return Buffer.concat(pieces, bytes);
}

/** How Java's library frames blocks (snappy-java, SnappyOutputStream); others write one bare block. */
const SNAPPY_FRAME = Buffer.from([0x82, ...Buffer.from("SNAPPY"), 0]);
const SNAPPY_FRAME_HEADER_BYTES = 16;

function unsnap(packed: Buffer, limit: number): Buffer {
  const { decompressSync } = compressionsAlgorithms.snappy;
  if (!packed.subarray(0, SNAPPY_FRAME.length).equals(SNAPPY_FRAME)) {
    return bounded(decompressSync(packed), limit);
  }
  const blocks: Buffer[] = [];
  let bytes = 0;
  for (let at = SNAPPY_FRAME_HEADER_BYTES; at < packed.length; ) {
    const start = at + 4;
    at = start + packed.readInt32BE(at);
    const block = decompressSync(packed.subarray(start, at));
    bytes += block.length;
    if (bytes > limit) throw tooMuch();
    blocks.push(block);
  }
  return Buffer.concat(blocks, bytes);
}

function bounded(plain: Buffer, limit: number): Buffer {
  if (plain.length > limit) throw tooMuch();
  return plain;
}

const tooMuch = () => new RangeError("a record batch unpacks to more than is allowed");
