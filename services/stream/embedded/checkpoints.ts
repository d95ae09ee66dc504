import type { Checkpoint } from "../change-stream.js";
import { formatPosition, parsePosition } from "../positions.js";

/** Last position per partition (0 = none) → checkpoint without the partitions that have none. */
export function toCheckpoint(partitions: readonly string[], last: readonly number[]): Checkpoint {
  const result = new Map<string, string>();
  partitions.forEach((name, p) => {
    if (last[p]! > 0) result.set(name, formatPosition(last[p]!));
  });
  return result;
}

export const fromCheckpoint = (partitions: readonly string[], checkpoint: Checkpoint): number[] =>
  partitions.map((name) => {
    const position = checkpoint.get(name);
    return position === undefined ? 0 : parsePosition(position);
  });
