import xxhash from "xxhash-wasm";

const { h64Raw } = await xxhash();
let scratch = Buffer.allocUnsafe(64 * 1024);

/**
 * xxh64 (seed 0) of type_url ‖ uncompressed payload, the tie-breaker of last-write-wins. Without a payload both are
 * empty. Stable: it is stored with every row.
 */
export function contentHash(
  bytes: Buffer,
  typeUrlStart: number,
  typeUrlEnd: number,
  payload: Buffer,
  payloadStart: number,
  payloadEnd: number,
): bigint {
  const urlBytes = typeUrlEnd - typeUrlStart;
  const total = urlBytes + (payloadEnd - payloadStart);
  if (scratch.length < total) scratch = Buffer.allocUnsafe(total * 2);
  bytes.copy(scratch, 0, typeUrlStart, typeUrlEnd);
  payload.copy(scratch, urlBytes, payloadStart, payloadEnd);
  return h64Raw(scratch.subarray(0, total));
}

/** As `contentHash`, of bytes that both lie in, one behind the other. */
export const contentHashOf = (urlAndPayload: Uint8Array): bigint => h64Raw(urlAndPayload);
