import { ZSTDDecoder } from "zstddec/stream";

interface Decoder {
  readonly memory: { readonly buffer: ArrayBuffer };
  malloc(bytes: number): number;
  free(pointer: number): void;
  ZSTD_createDCtx(): number;
  ZSTD_freeDCtx(context: number): void;
  ZSTD_DStreamOutSize(): number;
  /** 0 at the end of a frame, what may come next otherwise; an error is negative. */
  ZSTD_decompressStream(context: number, out: number, input: number): number;
}

/** The package's own `decodeStreaming` turns for ever on damaged bytes, so the exports are called directly. */
class Loader extends ZSTDDecoder {
  static loaded: Decoder;
  override _init(source: Parameters<ZSTDDecoder["_init"]>[0]): void {
    super._init(source);
    Loader.loaded = (source as { instance: { exports: object } }).instance.exports as Decoder;
  }
}
await new Loader().init();
const decoder = Loader.loaded;

/** The reference decoder's limit on what a frame may ask it to remember, 128 MiB, holds here too. */
export class ZstdDamaged extends Error {
  override readonly name = "ZstdDamaged";
}

/** Any number of Zstandard frames, one after the other, unpacked as they come, in pieces of some 128 KB that are good until the next one is asked for. */
export async function* unzstd(packed: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  const context = decoder.ZSTD_createDCtx();
  const room = decoder.ZSTD_DStreamOutSize();
  const out = decoder.malloc(room);
  const unpacked = Buffer.allocUnsafeSlow(room);
  // Two structs of pointer, size and position.
  const structs = decoder.malloc(24);
  let input = 0;
  let ended = true;
  try {
    for await (const piece of packed) {
      input = decoder.malloc(piece.length);
      new Uint8Array(decoder.memory.buffer).set(piece, input);
      new Uint32Array(decoder.memory.buffer, structs, 3).set([input, piece.length, 0]);
      for (let more = true; more; ) {
        new Uint32Array(decoder.memory.buffer, structs + 12, 3).set([out, room, 0]);
        const result = decoder.ZSTD_decompressStream(context, structs + 12, structs);
        if (result < 0) throw new ZstdDamaged();
        ended = result === 0;
        // Growing memory makes views of it void, and it may have grown.
        const words = new Uint32Array(decoder.memory.buffer, structs, 6);
        const [consumed, written] = [words[2]!, words[5]!];
        unpacked.set(new Uint8Array(decoder.memory.buffer, out, written));
        if (written > 0) yield unpacked.subarray(0, written);
        // Full room may have left something behind.
        more = consumed < piece.length || written === room;
        if (consumed === piece.length && ended) more = false;
      }
      decoder.free(input);
      input = 0;
    }
    if (!ended) throw new ZstdDamaged();
  } finally {
    if (input !== 0) decoder.free(input);
    decoder.free(structs);
    decoder.free(out);
    decoder.ZSTD_freeDCtx(context);
  }
}
