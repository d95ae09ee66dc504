import { createReadStream } from "node:fs";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream";
import { createGunzip } from "node:zlib";
import { errno, TributaryError } from "../base/errors.js";
import { type Compression, damaged } from "./formats.js";
import { unzstd, ZstdDamaged } from "./zstd-stream.js";

const PIECE_BYTES = 1024 * 1024;

/**
 * A file's bytes in pieces, unpacked; from `start` where it is not packed. A piece is its reader's own. `onRead` is told
 * how much of the file, as it is, has been gone through.
 * Errors: TRB-SOURCE-DAMAGED for what is not packed so, or is cut short; TRB-SOURCE-UNREADABLE.
 */
export async function* bytesOf(
  file: { readonly path: string; readonly shown: string; readonly compression: Compression },
  start = 0,
  onRead: (bytes: number) => void = () => undefined,
): AsyncGenerator<Buffer> {
  const { path, shown, compression } = file;
  try {
    const raw = createReadStream(path, {
      highWaterMark: PIECE_BYTES,
      start: compression === "none" ? start : 0,
    });
    if (compression === "gzip") yield* gunzipped(raw, onRead);
    else yield* compression === "zstd" ? unzstd(counted(raw, onRead)) : counted(raw, onRead);
  } catch (error) {
    if (error instanceof TributaryError) throw error;
    const code = errno(error);
    if (error instanceof ZstdDamaged || code?.startsWith("Z_") === true) {
      throw damaged(shown, `its ${compression} is damaged or cut short`, error);
    }
    throw new TributaryError("TRB-SOURCE-UNREADABLE", `${shown}: ${code ?? "failed"}`, { cause: error });
  }
}

async function* counted(raw: Readable, onRead: (bytes: number) => void): AsyncGenerator<Buffer> {
  let read = 0;
  for await (const piece of raw as AsyncIterable<Buffer>) {
    read += piece.length;
    onRead(read);
    yield piece;
  }
}

async function* gunzipped(raw: Readable, onRead: (bytes: number) => void): AsyncGenerator<Buffer> {
  const gunzip = createGunzip({ chunkSize: PIECE_BYTES / 4 });
  // What goes wrong is told to whoever reads the result.
  pipeline(raw, gunzip, () => undefined);
  for await (const piece of gunzip as AsyncIterable<Buffer>) {
    onRead(gunzip.bytesWritten);
    yield piece;
  }
}
