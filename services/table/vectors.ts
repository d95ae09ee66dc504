import { randomUUID } from "node:crypto";
import { parse, stringify } from "lossless-json";
import { type Action, type AddAction, removeOf } from "./actions.js";
import { encodeVectorFile, vectorFileName } from "./deletion-vector.js";
import type { Mask } from "./mask.js";
import type { Staging } from "./staging.js";
import type { TableFile } from "./types.js";

/** `add` with a vector laid over it; bounds still bound, but no row needs to stand on them any more. */
const masked = (add: AddAction, vector: NonNullable<AddAction["deletionVector"]>): AddAction => ({
  ...add,
  // Bounds may have 64 bits.
  stats: stringify({ ...(parse(add.stats ?? "{}") as object), tightBounds: false })!,
  deletionVector: vector,
});

/**
 * Writes the vectors of files whose masks have grown, and of new files that are born masked, as one vector file.
 * Returns the actions that put them in force: remove(path, old vector) and add(path, new vector); a file without a
 * live row is removed altogether, a new file without a masked row is added as it is. The vector file is durable when
 * this resolves.
 */
export async function stageVectors(
  staging: Staging,
  grown: ReadonlyMap<TableFile, Mask>,
  born: readonly { readonly add: AddAction; readonly masked: Uint32Array }[] = [],
): Promise<readonly Action[]> {
  const now = Date.now();
  const actions: Action[] = [];
  const vectors: { add: AddAction; rows: Uint32Array }[] = [];
  for (const [file, mask] of grown) {
    actions.push({ remove: removeOf(file.add, now, true) });
    if (mask.count < file.rows) vectors.push({ add: { ...file.add, dataChange: true }, rows: mask.toRows() });
  }
  for (const { add, masked: rows } of born) {
    if (rows.length === 0) actions.push({ add });
    else vectors.push({ add, rows });
  }
  if (vectors.length === 0) return actions;
  const uuid = randomUUID();
  const { bytes, descriptors } = encodeVectorFile(
    uuid,
    vectors.map(({ rows }) => rows),
  );
  await staging.put(`${staging.table.root}/${vectorFileName(uuid)}`, bytes);
  for (const [index, { add }] of vectors.entries()) actions.push({ add: masked(add, descriptors[index]!) });
  return actions;
}
