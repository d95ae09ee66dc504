import { createReadStream } from "node:fs";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream";
import { createGunzip } from "node:zlib";
import { errno, TributaryError } from "../base/errors.js";
import { type Compression, damaged } from "./formats.js";
import { unzstd, ZstdDamaged } from "./zstd-stream.js";

const PIECE_BYTES = 1024 * 1024;

/**
 * A file's bytes in pieces, unpacked; from `start` where it is not packed. A piece is its reader's own.
 * Errors: TRB-SOURCE-DAMAGED for what is not packed so, or is cut short; TRB-SOURCE-UNREADABLE.
 */
export async function* bytesOf(
  file: { readonly path: string; readonly shown: string; readonly compression: Compression },
  start = 0,
): AsyncGenerator<Buffer> {
  const { path, shown, compression } = file;
  try {
    const raw = createReadStream(path, {
      highWaterMark: PIECE_BYTES,
      start: compression === "none" ? start : 0,
    });
    if (compression === "zstd") yield* unzstd(raw as AsyncIterable<Buffer>);
    else yield* compression === "gzip" ? gunzipped(raw) : (raw as AsyncIterable<Buffer>);
  } catch (error) {
    if (error instanceof TributaryError) throw error;
    const code = errno(error);
    if (error instanceof ZstdDamaged || code?.startsWith("Z_") === true) {
      throw damaged(shown, `its ${compression} is damaged or cut short`, error);
    }
    throw new TributaryError("TRB-SOURCE-UNREADABLE", `${shown}: ${code ?? "failed"}`, { cause: error });
  }
}

const gunzipped = (raw: Readable): AsyncIterable<Buffer> =>
  // What goes wrong is told to whoever reads the result.
  pipeline(raw, createGunzip({ chunkSize: PIECE_BYTES / 4 }), () => undefined) as AsyncIterable<Buffer>;
