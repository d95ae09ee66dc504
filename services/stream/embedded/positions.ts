import { TributaryError } from "../../base/errors.js";
import type { Checkpoint } from "../change-stream.js";

const WIDTH = 16;
const LAST_DIGITS = Array.from({ length: 1000 }, (_, n) => String(n).padStart(3, "0"));

/** Positions count from 1 in each partition and are shown with a fixed width, so that they order as strings. */
export const formatPosition = (position: number): string => String(position).padStart(WIDTH, "0");

export function parsePosition(text: string): number {
  const position = /^\d{16}$/.test(text) ? Number(text) : Number.NaN;
  if (!Number.isSafeInteger(position)) {
    throw new TributaryError("TRB-STREAM-CORRUPT", "position: expected 16 decimal digits");
  }
  return position;
}

/** Formats growing positions several times faster than `formatPosition`: a thousand in a row share their front. */
export class PositionFormatter {
  private thousands = -1;
  private front = "";

  format(position: number): string {
    const thousands = Math.floor(position / 1000);
    if (thousands !== this.thousands) {
      this.thousands = thousands;
      this.front = String(thousands).padStart(WIDTH - 3, "0");
    }
    return this.front + LAST_DIGITS[position - thousands * 1000]!;
  }
}

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
