import type { AddAction } from "./actions.js";

/** The same file and vector, as a table sees them in whose folder `folder` the file's own table lies. */
export function rebased(add: AddAction, folder: string): AddAction {
  const vector = add.deletionVector;
  if (vector === undefined) return { ...add, path: `${folder}/${add.path}`, dataChange: true };
  if (vector.storageType === "i") return { ...add, path: `${folder}/${add.path}`, dataChange: true };
  // "u" is <prefix><20 characters of Z85>, the prefix being a folder below the table.
  const inner = vector.pathOrInlineDv.slice(0, -20);
  const prefix = inner === "" ? folder : `${folder}/${inner}`;
  return {
    ...add,
    path: `${folder}/${add.path}`,
    dataChange: true,
    deletionVector: { ...vector, pathOrInlineDv: `${prefix}${vector.pathOrInlineDv.slice(-20)}` },
  };
}
