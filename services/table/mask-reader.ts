import { TributaryError } from "../base/errors.js";
import { decodeVector, locateVector, unframeVector } from "./deletion-vector.js";
import type { LogPlace } from "./log-checkpoint.js";
import { Mask } from "./mask.js";
import type { TableFile } from "./types.js";

/** The masked rows of a file that has a vector. Errors: TRB-TABLE-CORRUPT, TRB-STORE-FAILED. */
export async function readMask({ store, root }: LogPlace, file: TableFile): Promise<Mask> {
  const vector = file.add.deletionVector!;
  const at = locateVector(vector);
  let payload: Buffer;
  if ("inline" in at) {
    payload = at.inline;
  } else {
    const start = vector.offset ?? 1;
    const frame = await store.getRange(`${root}/${at.path}`, start, start + vector.sizeInBytes + 8);
    payload = unframeVector(frame, vector.sizeInBytes);
  }
  const rows = decodeVector(payload);
  if (rows.length !== vector.cardinality || (rows.at(-1) ?? 0) >= Math.max(file.rows, 1)) {
    throw new TributaryError("TRB-TABLE-CORRUPT", "deletion vector: does not fit its file");
  }
  return Mask.of(file.rows, rows);
}
