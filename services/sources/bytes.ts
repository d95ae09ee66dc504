import { createReadStream } from "node:fs";
import { open } from "node:fs/promises";
import { pipeline } from "node:stream";
import { createGunzip } from "node:zlib";
import { errno, TributaryError } from "../base/errors.js";
import { type Compression, damaged } from "./formats.js";
import { unzstd, ZstdDamaged } from "./zstd-stream.js";

const PIECE_BYTES = 1024 * 1024;

/**
 * A file's bytes in pieces, unpacked; from `start` where it is not packed. A piece is good until the next one is asked
 * for: with buffers of their own V8 would collect its heap for each 64 MB of them. `onRead` is told
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
    if (compression === "gzip") yield* gunzipped(path, onRead);
    else if (compression === "zstd") yield* unzstd(piecesOf(path, 0, onRead));
    else yield* piecesOf(path, start, onRead);
  } catch (error) {
    if (error instanceof TributaryError) throw error;
    const code = errno(error);
    if (error instanceof ZstdDamaged || code?.startsWith("Z_") === true) {
      throw damaged(shown, `its ${compression} is damaged or cut short`, error);
    }
    throw new TributaryError("TRB-SOURCE-UNREADABLE", `${shown}: ${code ?? "failed"}`, { cause: error });
  }
}

async function* piecesOf(
  path: string,
  start: number,
  onRead: (bytes: number) => void,
): AsyncGenerator<Buffer> {
  const file = await open(path);
  try {
    const piece = Buffer.allocUnsafeSlow(PIECE_BYTES);
    for (let read = 0; ; ) {
      const { bytesRead } = await file.read(piece, 0, piece.length, start + read);
      if (bytesRead === 0) return;
      read += bytesRead;
      onRead(read);
      yield piece.subarray(0, bytesRead);
    }
  } finally {
    await file.close();
  }
}

async function* gunzipped(path: string, onRead: (bytes: number) => void): AsyncGenerator<Buffer> {
  const gunzip = createGunzip({ chunkSize: PIECE_BYTES / 4 });
  // What goes wrong is told to whoever reads the result.
  pipeline(createReadStream(path, { highWaterMark: PIECE_BYTES }), gunzip, () => undefined);
  for await (const piece of gunzip as AsyncIterable<Buffer>) {
    onRead(gunzip.bytesWritten);
    yield piece;
  }
}
